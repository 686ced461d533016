"""What crosses the edge of a divided region: four pairs of conjugate operations.

Each one's backward is the other of its pair, so gradients of gradients are right, too. In terms of
S, the bytes of the whole tensor, a rank of n sends, at best:

    forward             backward            bytes each way       where
    ------------------  ------------------  -------------------  ---------------------------------
    copy (nothing)      sum over ranks      0, 2(n−1)/n·S        into a column layer
    reduce (sum)        nothing             2(n−1)/n·S, 0        out of a row layer
    scatter (nothing)   gather              0, (n−1)/n·S         into a sequence-parallel region
    gather              scatter (nothing)   (n−1)/n·S, 0         out of one, or of a column layer
    all_gather          reduce_scatter      (n−1)/n·S, the same  sequence-parallel → column layer
    reduce_scatter      all_gather          (n−1)/n·S, the same  row layer → sequence-parallel

Sources: f and g of Shoeybi et al., Megatron-LM (2019), section 3; g and g̅ of Korthikanti et al.,
Reducing Activation Recomputation (2022), section 4.2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pycomm.parallel.tensor.division import even

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

Counts = Sequence[int]
"""How many elements along the divided dimension each rank has."""


def copy(x: torch.Tensor, comm: Communicator) -> torch.Tensor:
    """Return `x`, the same on all ranks, for uses that differ: its gradients are added."""
    return x if comm.size == 1 else _Copy.apply(x, comm)


def reduce(x: torch.Tensor, comm: Communicator) -> torch.Tensor:
    """Return the sum of all ranks' `x`, for uses that are the same on all."""
    return x if comm.size == 1 else _Reduce.apply(x, comm)


def scatter(
    x: torch.Tensor, comm: Communicator, dim: int, counts: Counts | None = None
) -> torch.Tensor:
    """Return this rank's part of `x`, which is the same on all ranks.

    Args:
        dim: the dimension that is divided.
        counts: how much of it each rank gets; None divides it evenly.
    """
    if comm.size == 1:
        return x
    return _Scatter.apply(x, comm, dim, counts or even(x.shape[dim], comm.size))


def gather(
    x: torch.Tensor, comm: Communicator, dim: int, counts: Counts | None = None
) -> torch.Tensor:
    """Return the parts of all ranks along `dim`, for uses that are the same on all.

    Args:
        dim: the dimension that is divided.
        counts: how much of it each rank has; None asks them.
    """
    return x if comm.size == 1 else _Gather.apply(x, comm, dim, counts or lengths(x, comm, dim))


def all_gather(x: torch.Tensor, comm: Communicator, dim: int) -> torch.Tensor:
    """Return the parts of all ranks along `dim`, for uses that differ: gradients are added."""
    return x if comm.size == 1 else _AllGather.apply(x, comm, dim, lengths(x, comm, dim))


def reduce_scatter(x: torch.Tensor, comm: Communicator, dim: int) -> torch.Tensor:
    """Return this rank's part, evenly divided along `dim`, of the sum of all ranks' `x`."""
    if comm.size == 1:
        return x
    return _ReduceScatter.apply(x, comm, dim, even(x.shape[dim], comm.size))


def lengths(x: torch.Tensor, comm: Communicator, dim: int) -> list[int]:
    """Return the size of a dimension on every rank."""
    counts = np.empty((comm.size, 1), np.int64)
    return comm.all_gather(np.array([x.shape[dim]]), counts)[:, 0].tolist()


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, comm: Communicator) -> torch.Tensor:
        ctx.comm = comm
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        return _Reduce.apply(gradient, ctx.comm), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, comm: Communicator) -> torch.Tensor:
        ctx.comm = comm
        return comm.all_reduce(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        return _Copy.apply(gradient, ctx.comm), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, comm: Communicator, dim: int, counts: Counts
    ) -> torch.Tensor:
        ctx.where = comm, dim, counts
        return x.split([*counts], dim)[comm.rank].clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        return _Gather.apply(gradient, *ctx.where), None, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, comm: Communicator, dim: int, counts: Counts
    ) -> torch.Tensor:
        ctx.where = comm, dim, counts
        return _gathered(x, *ctx.where)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        return _Scatter.apply(gradient, *ctx.where), None, None, None


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, comm: Communicator, dim: int, counts: Counts
    ) -> torch.Tensor:
        ctx.where = comm, dim, counts
        return _gathered(x, *ctx.where)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        return _ReduceScatter.apply(gradient, *ctx.where), None, None, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, comm: Communicator, dim: int, counts: Counts
    ) -> torch.Tensor:
        ctx.where = comm, dim, counts
        return _reduce_scattered(x, *ctx.where)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        return _AllGather.apply(gradient, *ctx.where), None, None, None


def _gathered(x: torch.Tensor, comm: Communicator, dim: int, counts: Counts) -> torch.Tensor:
    if len(set(counts)) > 1:
        rows = comm.all_gather(x.movedim(dim, 0).contiguous(), counts=counts)
        return rows.movedim(0, dim).contiguous()
    parts = comm.all_gather(x.contiguous(), x.new_empty(comm.size, *x.shape))
    dim %= x.dim()
    return parts.movedim(0, dim).flatten(dim, dim + 1)


def _reduce_scattered(
    x: torch.Tensor, comm: Communicator, dim: int, counts: Counts
) -> torch.Tensor:
    if len(set(counts)) > 1:
        rows = comm.reduce_scatter(x.movedim(dim, 0).contiguous(), counts=counts)
        return rows.movedim(0, dim).contiguous()
    parts = x.unflatten(dim, (comm.size, counts[0])).movedim(dim, 0).contiguous()
    return comm.reduce_scatter(parts, out=torch.empty_like(parts[:1]))[0]
