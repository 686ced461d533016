"""Making ranks agree: the same arguments, the same model, the same values in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from pycomm.errors import UNUSABLE, CommError, MismatchError

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


T = TypeVar("T")


def tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter and buffer of `module` once, with its full name, detached.

    A detached tensor shares its memory, so writing to it changes the model.
    """
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        yield name, tensor.detach()


def check_equal(comm: Communicator, what: str, value: Any) -> None:
    """Return if all ranks gave an equal `value`, a small picklable object.

    Raises:
        MismatchError: on every rank; the message names the first rank that differs from rank 0.
    """
    check_all_equal(comm, lambda: {what: value})


def check_all_equal(comm: Communicator, told: Callable[[], Mapping[str, Any]]) -> None:
    """Return if all ranks have equal values, small picklable objects, for each name.

    Of a function it is only compared that there is one.

    Raises:
        CommError: `told` raises on some rank; raised on all.
        MismatchError: on every rank; the message names the first rank that differs from rank 0.
    """

    def comparable() -> dict[str, Any]:
        return {what: "a function" if callable(v) else v for what, v in told().items()}

    everyone = gather_from_every_rank(comm, comparable, "reading the arguments")
    for what, first in everyone[0].items():
        for rank, values in enumerate(everyone):
            if values[what] != first:
                raise _told_to_all(
                    comm,
                    MismatchError(
                        f"{what} differ: rank 0 has {first}, rank {rank} has {values[what]} "
                        f"(this is rank {comm.rank}): pass the same on every rank"
                    ),
                )


def on_every_rank(comm: Communicator, action: Callable[[], T], doing: str = "") -> T:
    """Return what `action` returns here; if it raises on any rank, raise on all.

    An action may call this, too, for all of the ranks or some of them, and after a call for all do
    other collectives. A rank that raises before answers in the place of that call, and its error
    is that of all; what all have been told is not told again.

    Args:
        comm: the ranks.
        action: what each does.
        doing: what that is, in words, for the message.

    Raises:
        CommError: names the first rank whose action raised, and what it raised, which is the cause
            on that rank; an error of pycomm keeps its class.
    """
    results: list[T] = []
    gather_from_every_rank(comm, lambda: results.append(action()), doing)
    return results[0]


def gather_from_every_rank(comm: Communicator, action: Callable[[], T], doing: str = "") -> list[T]:
    """Return what `action` returns on each rank, picklable; else as `on_every_rank`."""
    result: T | None = None
    cause: Exception | None = None
    error: CommError | None = None
    try:
        result = action()
    except UNUSABLE:
        raise
    except CommError as caught:
        if caught.told >= comm.size:
            raise
        cause = error = caught
    except Exception as caught:
        cause, error = caught, CommError(f"{doing}: {_in_words(caught)}".removeprefix(": "))
    everyone = comm.all_gather_object((result, error))
    _raise_first(comm, [failure for _, failure in everyone], cause)
    return [cast(T, value) for value, _ in everyone]


def _raise_first(
    comm: Communicator, failures: Sequence[CommError | None], cause: Exception | None
) -> None:
    for rank, failure in enumerate(failures):
        if failure is not None:
            text = str(failure).removeprefix(f"rank {rank}: ")
            raise _told_to_all(comm, type(failure)(f"rank {rank}: {text}")) from cause


def _told_to_all(comm: Communicator, error: CommError) -> CommError:
    error.told = comm.size
    return error


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error} (that rank has the traceback)"


def check_same_model(module: nn.Module, comm: Communicator) -> None:
    """Return if parameters and buffers have the same names, shapes and dtypes on all ranks.

    Only a digest travels, unless the models differ.

    Raises:
        MismatchError: on every rank; the message names the first parameter that differs.
    """
    rows = _signature(module)
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()
    digests = gather_from_every_rank(comm, lambda: digest)
    if len(set(digests)) == 1:
        return
    signatures = gather_from_every_rank(comm, lambda: rows)
    other = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    raise _told_to_all(
        comm,
        MismatchError(
            f"models differ: {_first_difference(signatures, other)} "
            f"(this is rank {comm.rank}): build the same model on every rank"
        ),
    )


def copy_from_rank_0(module: nn.Module, comm: Communicator, *, buffers_only: bool = False) -> None:
    """Overwrite parameters and buffers with those of rank 0; every rank must call it."""
    parameters = {name for name, _ in module.named_parameters()} if buffers_only else set()
    for name, tensor in tensors(module):
        if name not in parameters:
            comm.broadcast(tensor, root=0)


def _signature(module: nn.Module) -> list[tuple[str, str]]:
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    return [
        (name, f"{t.dtype} of shape {tuple(t.shape)}{', trainable' * (name in trainable)}")
        for name, t in tensors(module)
    ]


def _first_difference(signatures: list[list[tuple[str, str]]], other: int) -> str:
    ours, theirs = signatures[0], signatures[other]
    for mine, its in zip(ours, theirs):
        if mine != its:
            return f"rank 0 has {mine[0]!r} ({mine[1]}), rank {other} has {its[0]!r} ({its[1]})"
    longer, rank = (ours, 0) if len(ours) > len(theirs) else (theirs, other)
    name, kind = longer[min(len(ours), len(theirs))]
    return f"only rank {rank} has {name!r} ({kind})"
