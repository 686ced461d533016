"""Buckets: gradients that are reduced together, in flat symmetric buffers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from pycomm.errors import UnsupportedError

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

ALIGNMENT_BYTES = 64
"""Every gradient starts on a cache line, as it would in memory of its own."""


@dataclass(eq=False)
class Slot:
    """The place of one parameter's gradient in a bucket.

    Attributes:
        name: the parameter's full name.
        parameter: the parameter itself.
        view: the place, with the parameter's shape and strides.
        offset: where it begins in the bucket, in elements.
    """

    name: str
    parameter: nn.Parameter
    view: torch.Tensor
    offset: int

    def collect(self) -> None:
        """Move the parameter's gradient into the bucket, unless it is there already.

        Raises:
            UnsupportedError: the gradient is sparse, or part of a graph itself.
        """
        grad = self.parameter.grad
        if grad is self.view or grad is None:
            return
        if grad.requires_grad:
            raise UnsupportedError(
                f"the gradient of {self.name!r} is part of a graph (create_graph=True), which "
                "reducing it would cut: compute second derivatives with torch.autograd.grad"
            )
        if grad.layout is not torch.strided:
            raise UnsupportedError(
                f"the gradient of {self.name!r} is {grad.layout}: only an nn.Embedding may have "
                "such ones; build the layer with sparse=False"
            )
        self.view.copy_(grad)
        self.parameter.grad = self.view

    def fill(self) -> None:
        """Make the place what the gradient counts for: zeros where there is none."""
        self.collect()
        if self.parameter.grad is None:
            self.view.zero_()


@dataclass(eq=False)
class Bucket:
    """Gradients of one dtype; the buffer belongs to the bucket.

    Attributes:
        flat: all of them, with the gaps between them zero.
        slots: where each is.
    """

    flat: torch.Tensor
    slots: list[Slot]

    @classmethod
    def of(
        cls, members: Sequence[tuple[str, nn.Parameter]], comm: Communicator, device: torch.device
    ) -> Bucket:
        """Return a bucket for the gradients of (name, parameter) pairs of one dtype."""
        dtype = members[0][1].dtype
        step = ALIGNMENT_BYTES // dtype.itemsize
        offsets = [0]
        for _, p in members:
            offsets.append(offsets[-1] + -(-p.numel() // step) * step)
        flat = comm.empty(offsets[-1], dtype, device=device).zero_()
        slots = [Slot(n, p, _place(flat, p, o), o) for (n, p), o in zip(members, offsets)]
        return cls(flat, slots)


def plan_buckets(
    gradients: Sequence[tuple[Hashable, int]], bucket_bytes: int, order: Iterable[int]
) -> list[list[int]]:
    """Return which gradients share a bucket, by their index.

    Gradients of one kind fill buckets in the order in which they become ready. One that is larger
    than a bucket has one of its own. A bucket comes where its last gradient does.

    Args:
        gradients: (kind, such as a dtype, and size in bytes) of each gradient.
        bucket_bytes: how much a bucket holds at most.
        order: the indices of all gradients, as a backward pass finishes them.
    """
    buckets: list[list[int]] = []
    open_: dict[Hashable, tuple[list[int], int]] = {}
    last: dict[int, int] = {}
    for at, index in enumerate(order):
        kind, nbytes = gradients[index]
        bucket, filled = open_.get(kind, ([], bucket_bytes))
        if filled + nbytes > bucket_bytes or not bucket:
            bucket, filled = [], 0
            buckets.append(bucket)
        bucket.append(index)
        last[id(bucket)] = at
        open_[kind] = bucket, filled + nbytes
    return sorted(buckets, key=lambda bucket: last[id(bucket)])


def _place(flat: torch.Tensor, p: nn.Parameter, offset: int) -> torch.Tensor:
    strides = torch.empty_like(p, device="meta").stride()
    return flat.as_strided(p.shape, strides, offset)
