"""Buckets: gradients that are reduced together, in flat symmetric buffers."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.parallel.compression import Compression, Factory, find_factory

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

ALIGNMENT_BYTES = 64
"""Every gradient starts on a cache line, as it would in memory of its own."""


@dataclass
class Slot:
    """The place of one parameter's gradient: `view` has its shape and strides, in a bucket."""

    name: str
    parameter: nn.Parameter
    view: torch.Tensor

    def collect(self) -> None:
        """Move the parameter's gradient into the bucket, unless it is there already."""
        grad = self.parameter.grad
        if grad is self.view or grad is None:
            return
        if grad.layout is not torch.strided:
            raise UnsupportedError(
                f"the gradient of {self.name!r} is {grad.layout}: build its layer with sparse=False"
            )
        self.view.copy_(grad.detach())
        self.parameter.grad = self.view


def plan_buckets(
    gradients: Sequence[tuple[torch.dtype, int]], bucket_bytes: int
) -> list[list[int]]:
    """Return which gradients share a bucket, by their index.

    Gradients of one dtype fill buckets from the last parameter to the first, the order in which a
    backward pass finishes them. A gradient larger than a bucket has one of its own.

    Args:
        gradients: (dtype, size in bytes) of each gradient.
        bucket_bytes: how much a bucket holds at most.
    """
    buckets: list[list[int]] = []
    open_: dict[torch.dtype, tuple[list[int], int]] = {}
    for index in reversed(range(len(gradients))):
        dtype, nbytes = gradients[index]
        bucket, filled = open_.get(dtype, ([], bucket_bytes))
        if filled + nbytes > bucket_bytes or not bucket:
            bucket, filled = [], 0
            buckets.append(bucket)
        bucket.append(index)
        open_[dtype] = bucket, filled + nbytes
    return buckets


class GradientBuckets:
    """The gradients of a model in buckets, and their reduction across ranks.

    Hooks copy each gradient that autograd finished into its bucket, once, and make `p.grad` the
    view there; later gradients of the same group are added in place. The buffers belong to this
    object; between a backward pass and `reduce` the user may read and change `p.grad`.

    Args:
        parameters: (name, parameter) pairs; those that require no gradient are left out.
        bucket_bytes: how much a bucket holds at most.
        op: "sum" or "avg", over the ranks.
        algorithm: of all_reduce; None lets pycomm choose.
        compression: reduces buckets in place of all_reduce; see `compression.find`.

    Raises:
        ArgumentError: bucket_bytes is not positive.
        UnsupportedError: a parameter is not in CPU memory.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        comm: Communicator,
        *,
        bucket_bytes: int,
        op: str,
        algorithm: str | None,
        compression: str | Factory | None = None,
    ):
        if bucket_bytes <= 0:
            raise ArgumentError(f"bucket_bytes={bucket_bytes} must be positive (rank {comm.rank})")
        self.comm, self.op, self.algorithm = comm, op, algorithm
        self._compression = find_factory(compression, algorithm)
        self.compressed: list[Compression] = []
        self.flats: list[torch.Tensor] = []
        self.slots: list[Slot] = []
        trainable = [(name, p) for name, p in parameters if p.requires_grad]
        sizes = [(p.dtype, p.numel() * p.element_size()) for _, p in trainable]
        for indices in plan_buckets(sizes, bucket_bytes):
            self._allocate([trainable[i] for i in indices])
        self._hook()

    def reduce(self, scale: float = 1.0) -> None:
        """Reduce all gradients across the ranks, then multiply them by `scale`.

        A parameter that has no gradient here but has one elsewhere counts as zeros; one that has
        none anywhere keeps `grad` None, as in one process. Every rank must call this.
        """
        if not self.slots:
            return
        used = torch.tensor([s.parameter.grad is not None for s in self.slots], dtype=torch.uint8)
        self.comm.all_reduce(used, op="max")
        for slot, somewhere in zip(self.slots, used.tolist()):
            self._fill(slot, bool(somewhere))
        for compressed in self.compressed:
            compressed.reduce()
        for flat in self.flats:
            if not self.compressed:
                self.comm.all_reduce(flat, op=self.op, algorithm=self.algorithm)
            if scale != 1.0:
                flat.mul_(scale)

    @staticmethod
    def _fill(slot: Slot, somewhere: bool) -> None:
        slot.collect()
        if slot.parameter.grad is None:
            slot.view.zero_()
            slot.parameter.grad = slot.view if somewhere else None

    def _allocate(self, members: list[tuple[str, nn.Parameter]]) -> None:
        dtype = members[0][1].dtype
        step = ALIGNMENT_BYTES // dtype.itemsize
        offsets = [0]
        for name, p in members:
            if p.device.type != "cpu":
                raise UnsupportedError(
                    f"parameter {name!r} is on {p.device} (rank {self.comm.rank}): "
                    f"move the model with .cpu()"
                )
            offsets.append(offsets[-1] + -(-p.numel() // step) * step)
        flat = self.comm.empty(offsets[-1], dtype).zero_()
        self.flats.append(flat)
        for (name, p), offset in zip(members, offsets):
            strides = torch.empty_like(p, device="meta").stride()
            self.slots.append(Slot(name, p, flat.as_strided(p.shape, strides, offset)))
        if self._compression is not None:
            views = [slot.view for slot in self.slots[-len(members) :]]
            self.compressed.append(self._compression(self.comm, flat, views, self.op))

    def _hook(self) -> None:
        # The model must not keep a dropped wrapper's buckets alive, nor go on filling them.
        for slot in self.slots:
            weak = weakref.ref(slot)

            def collect(_: torch.Tensor, weak: weakref.ref[Slot] = weak) -> None:
                if (slot := weak()) is not None:
                    slot.collect()

            handle = slot.parameter.register_post_accumulate_grad_hook(collect)
            weakref.finalize(self, handle.remove)
