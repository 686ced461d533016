"""Dropout of torch tensors by number, and what parts of them a rank has."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch

from pycomm.errors import ArgumentError, MissingError
from pycomm.kernels.cuda import CudaKernels
from pycomm.kernels.cuda_launcher import CupyLauncher
from pycomm.kernels.dropout import DROPPABLE, Draw, Place, dropout
from pycomm.types import DType

_KERNEL_DTYPES: dict[torch.dtype, DType] = {getattr(torch, d.name): d for d in DROPPABLE}
_local = threading.local()


@dataclass(frozen=True)
class Part:
    """The indices of one dimension that this rank has: begin … of a dimension of size `whole`.

    Attributes:
        batch: the dimension of the samples; None: what `batch_dims` of KeyedDropout says.
    """

    dim: int
    begin: int
    whole: int
    batch: int | None = None


@contextmanager
def part_of(dim: int, begin: int, whole: int, batch: int | None = None) -> Iterator[None]:
    """Say that tensors that are dropped from inside are a part of larger ones.

    Their masks are then the same part of the larger ones' masks. For layers that are divided over
    ranks::

        with part_of(dim=-1, begin=rank * mine.shape[-1], whole=hidden):
            mine = F.dropout(mine, p)

    Dimension 0 is the batch and cannot be meant: `first_sample` of KeyedDropout says that. In
    attention, dimension 1 of the weights (batch, heads, queries, keys) are the heads. Within
    another `part_of` the inner one holds.

    Args:
        dim: the dimension; negative ones count from the last.
        begin: where this rank's indices begin in it.
        whole: its size over all ranks.
        batch: the dimension of the samples in these tensors, whatever `batch_dims` says of the
            module, as 0 in weights of attention; None: what that says.
    """
    with as_part(Part(dim, begin, whole, batch)):
        yield


def current_part() -> Part | None:
    """Return what the innermost `part_of` on this thread says."""
    return getattr(_local, "part", None)


@contextmanager
def as_part(part: Part | None) -> Iterator[None]:
    """Have `part` hold inside, and what held before afterwards."""
    before = current_part()
    _local.part = part
    try:
        yield
    finally:
        _local.part = before


def place_of(shape: Sequence[int], first_sample: int, part: Part | None) -> Place:
    """Return where the elements of a tensor (samples, …) lie in whole samples.

    Raises:
        ArgumentError: the part is not one of such a tensor.
    """
    samples, *rest = shape
    if part is None:
        return Place(first_sample, samples, 1, prod(rest))
    dim = part.dim + len(shape) if part.dim < 0 else part.dim
    if not 0 < dim < len(shape) or not 0 <= part.begin <= part.whole - shape[dim]:
        raise ArgumentError(
            f"part_of(dim={part.dim}, begin={part.begin}, whole={part.whole}) around the dropout "
            f"of a tensor of shape {tuple(shape)}, whose dimension 0 is the batch: dim must be "
            "another one, and begin plus its size at most whole"
        )
    inner = prod(shape[dim + 1 :])
    runs, length = prod(shape[1:dim]), shape[dim] * inner
    return Place(first_sample, samples, runs, length, part.begin * inner, part.whole * inner)


def drop(x: torch.Tensor, place: Place, draw: Draw) -> torch.Tensor:
    """Return `x`, scaled, with zeros for what is dropped; backward drops the same.

    No mask is kept: backward draws it again.
    """
    if x.dtype not in _KERNEL_DTYPES:
        return x * drop(torch.ones_like(x, dtype=torch.float32), place, draw)
    return _Drop.apply(x, place, draw)


class _Drop(torch.autograd.Function):
    """Multiplication by a mask that is a function of numbers alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, place: Place, draw: Draw) -> torch.Tensor:
        ctx.place, ctx.draw = place, draw
        x = x.contiguous()
        if x.is_cuda and (kernels := _kernels(x.get_device())) is not None:
            out = torch.empty_like(x)
            kernels.dropout(x, out, _KERNEL_DTYPES[x.dtype], place, draw)
            return out
        if x.device.type != "cpu":
            ones = torch.ones(x.shape, dtype=torch.float64 if x.dtype.itemsize == 8 else None)
            return x * _on_host(ones, place, draw).to(x.device, x.dtype)
        return _on_host(x, place, draw)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _Drop.apply(gradient, ctx.place, ctx.draw), None, None


def _on_host(x: torch.Tensor, place: Place, draw: Draw) -> torch.Tensor:
    out = torch.empty_like(x)
    dropout(x.data_ptr(), out.data_ptr(), _KERNEL_DTYPES[x.dtype], place, draw)
    return out


@cache
def _kernels(device: int) -> CudaKernels | None:
    """Return the kernels of a GPU; None without CuPy, where masks are drawn by the host."""
    try:
        return CudaKernels(CupyLauncher(device))
    except MissingError:
        return None
