"""What every method of compression is, and the table of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch

from pycomm.errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


Leftover = dict[str, Any]
"""What lasts of one gradient on one rank: tensors, and numbers, by their name."""


class Compression(ABC):
    """The reduction of one bucket of gradients with fewer bytes on the wire.

    What a rank could not send of its gradients is its residual, which it adds to those of the next
    step: error feedback (Seide et al., 1-bit SGD, 2014; Karimireddy et al., Error Feedback Fixes
    SignSGD, 2019). So nothing is lost, it only comes later. A gradient that is not finite makes the
    result not finite on every rank, and leaves no residual.

    Args:
        comm: the ranks; creating one is local, but all must do so equally.
        flat: the bucket, (count,) of float16, bfloat16, float32 or float64, on the CPU or a GPU.
        views: the gradients in it, each dense, of any shape and strides, in their order there;
            what lies between them is zero.
        op: "sum" or "avg", over the ranks.

    Attributes:
        name: what `compression=` calls the method.
        state: its tensors that last from step to step; they are this rank's own.

    Raises:
        UnsupportedError: the gradients are of another dtype.
    """

    name: ClassVar[str]

    def __init__(
        self,
        comm: Communicator,
        flat: torch.Tensor,
        views: Sequence[torch.Tensor],
        op: str,
    ):
        if flat.dtype not in _COMPRESSIBLE:
            raise UnsupportedError(
                f"compression={self.name!r} does not take gradients of {flat.dtype} "
                f"(rank {comm.rank}): leave compression= out for this model"
            )
        self.comm, self.flat, self.views = comm, flat, list(views)
        self.divisor = comm.size if op == "avg" else 1
        self.work = torch.promote_types(flat.dtype, torch.float32)
        self._gaps = _gaps(flat, self.views)
        self.state = {"residual": torch.zeros_like(flat, dtype=self.work)}

    @classmethod
    def settings(cls, text: str) -> dict[str, Any]:
        """Return the keyword arguments that `text` of "NAME:text" stands for.

        Raises:
            ArgumentError: the method has no setting, or not this one.
        """
        raise ArgumentError(f"compression={cls.name}:{text}: {cls.name!r} has no setting")

    @property
    @abstractmethod
    def wire_bytes(self) -> int:
        """Bytes that this rank passes to others in one reduction, as `comm.stats` counts them."""

    @abstractmethod
    def _reduce(self) -> None:
        """Reduce a bucket that is not empty."""

    def reduce(self) -> None:
        """Replace the bucket by its compressed sum or average: the same bits on every rank.

        Every rank must call it. The bucket belongs to it until it returns.
        """
        if self.flat.numel():
            self._reduce()
        if self._gaps:  # a block with a bad number may have spread it there, where it would stay
            torch._foreach_zero_(self._gaps)

    def leftovers(self) -> list[Leftover]:
        """Return what lasts of each of `views` on this rank, as copies."""
        return [{"residual": self._residual_of(view).clone()} for view in self.views]

    def restore(self, saved: Sequence[Sequence[Leftover]]) -> None:
        """Take for each of `views` what `leftovers` returned on every rank, or nothing of any.

        On as many ranks each takes its own. On another number all take the same part of the sum of
        residuals, so that a sum over the ranks will get, to rounding, what it would have got.
        Elements that are not there begin anew. Other methods' leftovers do, as far as they go.
        """
        for view, ranks in zip(self.views, saved):
            found = [of_rank["residual"] for of_rank in ranks if "residual" in of_rank]
            self._residual_of(view).copy_(self._share_of(found, view))

    def _share_of(self, residuals: Sequence[torch.Tensor], view: torch.Tensor) -> torch.Tensor:
        if len(residuals) == self.comm.size:
            return residuals[self.comm.rank]
        total = torch.zeros_like(view, dtype=self.work)
        for residual in residuals:
            total += residual.to(total.device)
        return total.div_(self.comm.size)

    def _residual_of(self, view: torch.Tensor) -> torch.Tensor:
        """Return the part of the residual that belongs to one of `views`, in its shape."""
        residual = self.state["residual"]
        return residual.as_strided(view.shape, view.stride(), self._start_of(view))

    def _start_of(self, view: torch.Tensor) -> int:
        """Return where one of `views` begins in the bucket."""
        return int(view.storage_offset() - self.flat.storage_offset())

    def _add_residual(self) -> torch.Tensor:
        """Return what there is to send, (count,) of `work`: the memory of the residual."""
        return self.state["residual"].add_(self.flat)

    def _empty(self, *shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        """Return a symmetric buffer of zeros beside the bucket."""
        return self.comm.empty(shape, dtype, self.flat.device).zero_()

    def _sent(self, kind: str, nbytes: int) -> int:
        """Return what a rank sends in a collective of `nbytes` in all; docs/algorithms.md."""
        times = 2 if kind == "all_reduce" else 1
        return int(times * (self.comm.size - 1) / self.comm.size * nbytes)


Factory = Callable[["Communicator", torch.Tensor, Sequence[torch.Tensor], str], Compression]
"""(comm, flat, views, op) → the Compression of that bucket."""

METHODS: dict[str, type[Compression]] = {}
"""Every method by its name; tests, benchmarks and train.py iterate over it."""

_COMPRESSIBLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
C = TypeVar("C", bound=type[Compression])


def compression(name: str) -> Callable[[C], C]:
    """Register the decorated class as the method `name`."""

    def register(cls: C) -> C:
        cls.name = name
        METHODS[name] = cls
        return cls

    return register


def find(method: str) -> Factory:
    """Return what makes the Compression of a bucket.

    Args:
        method: "NAME" or "NAME:SETTING", such as "powersgd:2".

    Raises:
        ArgumentError: there is no such method or setting; the message lists those that exist.
    """
    name, _, text = str(method).partition(":")
    if name not in METHODS:
        names = ", ".join(repr(known) for known in METHODS)
        raise ArgumentError(f"compression={method!r} does not exist: choose from {names}")
    return partial(METHODS[name], **METHODS[name].settings(text)) if text else METHODS[name]


def find_factory(compression: str | Factory | None, algorithm: str | None) -> Factory | None:
    """Return what `compression=` stands for, next to `algorithm=` of all_reduce; None if nothing.

    Raises:
        ArgumentError: there is no such method; or both were given.
    """
    if compression is None:
        return None
    if algorithm is not None:
        raise ArgumentError(
            f"algorithm={algorithm!r} is one of all_reduce, which compression={compression!r} "
            "does not use: leave one of them out"
        )
    return compression if callable(compression) else find(compression)


def _gaps(flat: torch.Tensor, views: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the parts of a bucket that lie in no view."""
    begins = [int(view.storage_offset() - flat.storage_offset()) for view in views]
    ends = [begin + view.numel() for begin, view in zip(begins, views)]
    bounds = zip([0, *ends], [*begins, flat.numel()])
    return [flat[end:begin] for end, begin in bounds if begin > end]


def without_overflow(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return `x` as `dtype`, where finite values stay finite."""
    most = torch.finfo(dtype).max
    if most >= torch.finfo(x.dtype).max:
        return x.to(dtype)
    return torch.where(x.isfinite(), x.clamp(-most, most), x).to(dtype)


def keep_finite(residual: torch.Tensor) -> None:
    """Forget what is not finite, in place: a bad gradient must not return in the next step."""
    residual.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
