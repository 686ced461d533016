"""Building: a model is built for real, but keeps memory only for what this rank wants of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pycomm.errors import ArgumentError

BUDGET_BYTES = 16 << 20
"""What may stay of what is not wanted; or six times the largest tensor, if that is more."""

_OVERWRITING = {
    "bernoulli_.float",
    "cauchy_",
    "copy_",
    "exponential_",
    "fill_.Scalar",
    "fill_.Tensor",
    "geometric_",
    "log_normal_",
    "normal_",
    "random_",
    "random_.from",
    "random_.to",
    "uniform_",
    "zero_",
}
"""Operations of aten whose first argument has no effect on what it becomes."""


@dataclass
class _Known:
    """A storage that was seen.

    Attributes:
        number: storages are numbered in the order in which they appear.
        reference: does not keep it alive, but its address from being used again.
        nbytes: its size, while it has memory.
        origins: numbers of the storages whose contents went into it, itself included.
        lost: whether its contents are gone; it then has no memory between operations.
        used: when it was used last.
    """

    number: int
    reference: StorageWeakRef
    nbytes: int
    origins: frozenset[int]
    lost: bool = False
    used: int = 0


class Building(TorchDispatchMode):
    """Inside `with`, memory of tensors that were not used for long is given back.

    Every operation runs, with real numbers. What is computed from contents that are gone counts as
    gone, too; only a decision by such values is an error.

    Args:
        wanted: numbers of the storages that stay.
    """

    def __init__(self, wanted: Collection[int] = ()):
        super().__init__()
        self._wanted = frozenset(wanted)
        self._known: dict[int, _Known] = {}
        self._count = self._clock = self._held = 0
        self._budget = BUDGET_BYTES
        self._reading = _Reading(self)

    def __enter__(self) -> Building:
        self._reading.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._reading.__exit__(*error)
        if error[0] is not None:
            self.settle()

    def settle(self) -> None:
        """Give memory to all tensors that are still alive: looking at one must not crash."""
        for known in self._known.values():
            storage = _storage(known.reference) if known.lost else None
            if storage is not None and storage.resizable():
                storage.resize_(known.nbytes)

    def origins(self, x: torch.Tensor) -> frozenset[int]:
        """Return the numbers of the storages without which the tensor has not its values."""
        return self._of(x).origins

    def lost(self, x: torch.Tensor) -> bool:
        """Say whether the values of a tensor are gone."""
        return self._of(x).lost

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation; give back what it is not needed for."""
        kwargs = kwargs or {}
        taken = {id(k): (k, t) for t in _tensors((args, kwargs)) for k in [self._of(t)]}
        lost = [(k, t) for k, t in taken.values() if k.lost]
        fresh = self._overwritten(func, args)
        read = [k for k, _ in taken.values() if k is not fresh]
        if any(k.lost for k in read):
            _refuse_decision(func)
        for known, tensor in lost:
            _resize(tensor, known.nbytes)
        result = func(*args, **kwargs)
        self._follow(func, args, kwargs, result, read, fresh)
        for known, tensor in taken.values():
            if known.lost:
                _resize(tensor, 0)
        self._trim()
        return result

    def _of(self, x: torch.Tensor) -> _Known:
        storage = x.untyped_storage()
        if storage._cdata not in self._known:
            nbytes = storage.nbytes()
            number, self._count = self._count, self._count + 1
            known = _Known(number, StorageWeakRef(storage), nbytes, frozenset([number]))
            self._known[storage._cdata] = known
            self._held += nbytes
            self._budget = max(self._budget, 6 * nbytes)
        self._clock += 1
        self._known[storage._cdata].used = self._clock
        return self._known[storage._cdata]

    def _overwritten(self, func: Any, args: tuple[Any, ...]) -> _Known | None:
        """Return the storage that an operation fills anew, all of it."""
        name = func._schema.name.removeprefix("aten::")
        if f"{name}.{func._overloadname}".removesuffix(".default") not in _OVERWRITING:
            return None
        target = args[0]
        known = self._of(target)
        whole = target.numel() * target.itemsize == known.nbytes
        others = [t for t in _tensors(args[1:]) if self._of(t) is known]
        return known if whole and not others else None

    def _follow(
        self, func: Any, args: Any, kwargs: Any, result: Any, read: list[_Known], fresh: Any
    ) -> None:
        """Note what went into what, and whether it is known."""
        lost = any(known.lost for known in read)
        origins = frozenset().union(*(known.origins for known in read))
        if fresh is not None:
            self._held += fresh.nbytes if fresh.lost else 0
            fresh.lost, fresh.origins = False, frozenset([fresh.number])
        changed = [] if func.is_view else [*_written(func, args, kwargs), *_tensors(result)]
        for tensor in changed:
            known = self._of(tensor)
            known.origins |= origins
            if lost and not known.lost:
                known.lost = True
                self._held -= known.nbytes
            if known.lost:
                _resize(tensor, 0)

    def _trim(self) -> None:
        """Give back what was not used for longest, if too much is held."""
        if self._held <= self._budget:
            return
        alive = {c: k for c, k in self._known.items() if not k.reference.expired()}
        self._known = alive
        own = [k for k in alive.values() if not k.lost and k.number not in self._wanted]
        self._held = sum(k.nbytes for k in own)
        for known in sorted(own, key=lambda k: k.used):
            if self._held <= self._budget // 2:
                return
            storage = _storage(known.reference)
            if storage is not None and storage.resizable():
                storage.resize_(0)
                known.lost = True
                self._held -= known.nbytes


class _Reading(TorchFunctionMode):
    """Refuses to look past torch at memory that is not there."""

    def __init__(self, building: Building):
        super().__init__()
        self._building = building

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch."""
        if func in _LOOKS and self._building.lost(args[0]):
            _raise_decision(func.__name__)
        return func(*args, **(kwargs or {}))


_LOOKS = {torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__, torch.Tensor.data_ptr}


def _refuse_decision(func: Any) -> None:
    tags = {
        torch.Tag.data_dependent_output,
        torch.Tag.dynamic_output_shape,
        torch.Tag.nondeterministic_seeded,
    }
    if tags & set(func.tags):
        _raise_decision(func._schema.name.removeprefix("aten::"))


def _raise_decision(name: str) -> None:
    raise ArgumentError(
        f"{name}: building the model decides by values of a layer that was built long before, and "
        f"whose memory was given back: let it use them earlier, or build the model on every rank, "
        f"without a factory"
    )


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    """Yield the arguments that a function of aten changes."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from _tensors(given)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]


def _resize(x: torch.Tensor, nbytes: int) -> None:
    storage = x.untyped_storage()
    if storage.resizable() and storage.nbytes() != nbytes:
        storage.resize_(nbytes)


def _storage(reference: StorageWeakRef) -> torch.UntypedStorage | None:
    """Return the storage, or None if it is gone."""
    return torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
