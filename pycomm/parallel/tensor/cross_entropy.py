"""Cross-entropy of logits of which each rank has those of some classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from pycomm.errors import ArgumentError
from pycomm.parallel.tensor.division import even

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


def vocabulary_cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    comm: Communicator,
    classes: int,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> torch.Tensor:
    """Return the cross-entropy, as torch's, without all logits on any rank; collective.

    A rank sends three numbers for each target, and nothing backward.

    Args:
        logits: (…, this rank's classes), as a layer of style "vocabulary" gives them.
        targets: (…) classes, the same on all ranks.
        comm: the tensor-parallel group.
        classes: how many there are on all ranks.
        ignore_index: targets of this class count for nothing.
        reduction: "mean" over the targets that count, or "sum".

    Returns:
        A scalar, the same bits on all ranks, as float32 if logits are narrower.

    Raises:
        ArgumentError: shapes do not fit, a target is no class, or there is no such reduction.
    """
    counts = even(classes, comm.size)
    _check(logits, targets, counts[comm.rank], comm.rank)
    if reduction not in ("mean", "sum"):
        raise ArgumentError(f"reduction={reduction!r} is neither 'mean' nor 'sum'")
    counting = targets != ignore_index
    wrong = counting & ((targets < 0) | (targets >= classes))
    if wrong.any():
        raise ArgumentError(
            f"rank {comm.rank}: target {int(targets[wrong][0])} is none of {classes} classes, nor "
            f"ignore_index={ignore_index}"
        )
    begin = sum(counts[: comm.rank])
    losses = _CrossEntropy.apply(logits, targets - begin, counting, comm)
    return losses.sum() / counting.sum() if reduction == "mean" else losses.sum()


class _CrossEntropy(torch.autograd.Function):
    """log Σ exp(x − m) − (x_target − m) for each target; m is the largest x of any rank."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, targets: torch.Tensor, counting: torch.Tensor, comm: Communicator
    ) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        largest = comm.all_reduce(wide.amax(-1), "max")
        shifted = wide - largest.unsqueeze(-1)
        mine = counting & (targets >= 0) & (targets < x.shape[-1])
        index = targets.masked_fill(~mine, 0).unsqueeze(-1)
        of_target = shifted.gather(-1, index).squeeze(-1).masked_fill(~mine, 0)
        probabilities = shifted.exp_()
        total, target = comm.all_reduce(torch.stack([probabilities.sum(-1), of_target]))
        probabilities /= total.unsqueeze(-1)
        ctx.save_for_backward(probabilities, index, mine, counting)
        ctx.dtype = x.dtype
        return (total.log() - target).masked_fill(~counting, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        probabilities, index, mine, counting = ctx.saved_tensors
        ones = mine.unsqueeze(-1).to(probabilities.dtype)
        x = probabilities.scatter_add(-1, index, -ones)
        x *= gradient.masked_fill(~counting, 0).unsqueeze(-1)
        return x.to(ctx.dtype), None, None, None


def _check(logits: torch.Tensor, targets: torch.Tensor, classes: int, rank: int) -> None:
    if tuple(logits.shape) != (*targets.shape, classes):
        raise ArgumentError(
            f"rank {rank}: logits of shape {tuple(logits.shape)} do not fit targets of shape "
            f"{tuple(targets.shape)}: this rank has {classes} classes, so they must have shape "
            f"{(*targets.shape, classes)}"
        )
