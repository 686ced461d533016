"""Batch norm over the global batch: statistics of the samples of all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.parallel.group import Group

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class SyncBatchNorm(_BatchNorm):
    """A batch norm whose mean and variance, in training, are those of the samples of all ranks.

    Forward, backward and running statistics are those of torch's BatchNorm1d, 2d or 3d in one
    process that has the samples of all ranks; ranks may have different numbers of samples, also
    none. Gradients of weight and bias are this rank's part, as are those of every other layer. All
    ranks must run forward and backward equally often. A forward gathers a count and two numbers for
    each channel, a backward adds two up. In evaluation mode nothing is exchanged.

    Args:
        num_features: channels, axis 1 of the input.
        comm: the ranks; one used for nothing else does not wait for gradients under way.
        eps, momentum, affine, track_running_stats, device, dtype: as of torch.nn.BatchNorm2d.
    """

    def __init__(
        self,
        num_features: int,
        comm: Communicator,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.group = Group(comm)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the normalised input, (samples, num_features, …), in its dtype.

        Raises:
            ArgumentError: the shape is another one; or, on all ranks, there is one value for each
                channel in all.
        """
        if not self.training:
            return super().forward(input)
        counts = self._counts(input)
        y, mean, variance = _Normalise.apply(
            input, self.weight, self.bias, self.eps, self.group.comm, counts
        )
        if count := sum(counts):
            self._track(mean, variance * (count / (count - 1)))
        return y

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ArgumentError(
                f"SyncBatchNorm of {self.num_features} channels got an input of shape "
                f"{tuple(input.shape)}: it must be (samples, {self.num_features}, …)"
            )

    def _counts(self, input: torch.Tensor) -> list[int]:
        """Return how many values a channel has on each rank."""
        self._check_input_dim(input)
        comm = self.group.comm
        mine = np.array([input.numel() // self.num_features], np.int64)
        counts = comm.all_gather(mine)[:, 0].tolist()
        if sum(counts) == 1:
            raise ArgumentError(
                f"SyncBatchNorm in training mode got one value for each channel in all "
                f"{comm.size} ranks (rank {comm.rank} has {tuple(input.shape)}): give it more"
            )
        return counts

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Move the running statistics, if there are any, to those of this batch."""
        statistics, batches = (self.running_mean, self.running_var), self.num_batches_tracked
        if batches is not None:
            batches.add_(1)
        step = 1.0 / int(batches or 1) if self.momentum is None else self.momentum
        for running, now in zip(statistics, (mean, variance)):
            if running is not None:
                running.mul_(1 - step).add_(now.to(running.dtype) * step)


class _Normalise(torch.autograd.Function):
    """y = (x − mean) / √(variance + eps) · weight + bias, over the samples of all ranks.

    Also returns mean and biased variance, (channels,), which are not differentiable.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
        comm: Communicator,
        counts: list[int],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, variance = _moments(wide, comm, counts)
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.comm, ctx.count, ctx.has_bias = comm, max(1, sum(counts)), bias is not None
        ctx.mark_non_differentiable(mean, variance)
        y = (wide - _along(mean, x)) * _along(scale, x)
        if weight is not None:
            y = y * _along(weight, x)
        if bias is not None:
            y = y + _along(bias, x)
        return y.to(x.dtype), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        dy = dy.to(mean.dtype)
        normalised = (x - _along(mean, x)) * _along(scale, x)
        sums = torch.stack([dy.sum(_others(x)), (dy * normalised).sum(_others(x))])
        of_bias, of_weight = sums.clone()
        dx = None
        if ctx.needs_input_grad[0]:
            by_count = ctx.comm.all_reduce(sums) / ctx.count
            dx = dy - _along(by_count[0], x) - normalised * _along(by_count[1], x)
            dx = dx * _along(scale if weight is None else scale * weight, x)
            dx = dx.to(x.dtype)
        dweight = None if weight is None else of_weight.to(weight.dtype)
        return dx, dweight, of_bias if ctx.has_bias else None, None, None, None


def _moments(
    x: torch.Tensor, comm: Communicator, counts: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and biased variance over all ranks, (channels,): the same bits on each.

    A rank contributes its mean, and its variance about that; they are put together as in Chan et
    al., Updating Formulae (1979), in rank order.
    """
    mine = x.new_zeros(2, x.shape[1])
    if x.numel():
        torch.stack(torch.var_mean(x, _others(x), correction=0), out=mine)
    parts = [(count, *row) for count, row in zip(counts, comm.all_gather(mine))]
    total = max(1, sum(counts))
    mean = _added([count * m / total for count, _, m in parts])
    return mean, _added([count * (v + (m - mean).square()) / total for count, v, m in parts])


def _added(parts: list[torch.Tensor]) -> torch.Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _others(x: torch.Tensor) -> list[int]:
    """Return the axes of `x` but that of its channels."""
    return [axis for axis in range(x.dim()) if axis != 1]


def _along(channels: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return (channels,) in a shape that is broadcast along axis 1 of `x`."""
    return channels.view(-1, *[1] * (x.dim() - 2))


def convert(module: nn.Module, comm: Communicator) -> nn.Module:
    """Let every BatchNorm1d, 2d and 3d of `module` work over the samples of all ranks; return it.

    The layers stay the same objects, with their parameters, buffers and hooks; they get a
    Communicator of their own together. Every rank must call it, with the same model.

    Raises:
        UnsupportedError: a batch norm is of a class of its own; on every rank, nothing was changed.
    """
    layers = [(n, m) for n, m in module.named_modules() if isinstance(m, _BatchNorm)]
    for name, layer in layers:
        if type(layer) not in _CONVERTED:
            raise UnsupportedError(
                f"{name!r} is a {type(layer).__name__}, which may do more than a batch norm (rank "
                f"{comm.rank}): let it use a torch.nn.BatchNorm2d, or a SyncBatchNorm"
            )
    if layers:
        group = Group(comm.split(0))
        for _, layer in layers:
            layer.__class__ = SyncBatchNorm
            vars(layer)["group"] = group
    return module


_CONVERTED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, SyncBatchNorm)
