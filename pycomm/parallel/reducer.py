"""Reducer: sums the gradients of all ranks while backward still computes the others.

::

    backward   g5 g4 │ g3 g2 │ g1 g0
    reduction        └─ g5 g4 ─┘└ g3 g2 ┘└ g1 g0 ┘      one bucket after the other
                                        └ exposed ┘

Buckets are filled in the order in which gradients became ready in the first backward pass, and are
reduced in that order on all ranks. Source: Li et al., PyTorch Distributed (2020), section 3.2.
Gradients that change once more after backward, those of tied weights, are in buckets of their own,
which come last, and are reduced when all is said to be over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.parallel.bucket import Bucket, Slot, plan_buckets
from pycomm.parallel.compression import Compression, Factory, Leftover, find_factory
from pycomm.parallel.finite import is_finite
from pycomm.parallel.gradient_hooks import on_gradient
from pycomm.parallel.placement import common_device
from pycomm.parallel.sparse import SparseGradient
from pycomm.parallel.whole_gradient import WholeGradient

if TYPE_CHECKING:
    from pycomm.communicator import Communicator
    from pycomm.work import Work


class Reducer:
    """The gradients of a model in buckets, and their reduction across ranks.

    Hooks copy each gradient that autograd finished into its bucket, once, and make `p.grad` the
    view there; later gradients of the same group are added in place. The buffers belong to this
    object, and are where the parameters are, in memory of the host or of the rank's GPU; between a
    backward pass that is not `synchronizing` and `finish` the user may read and change `p.grad`.

    Args:
        parameters: (name, parameter) pairs; those that require no gradient are left out.
        sparse: names of those that may have sparse gradients; they have no place in a bucket.
        bucket_bytes: how much a bucket holds at most.
        op: "sum" or "avg", over the ranks.
        algorithm: of all_reduce; None lets pycomm choose.
        at_end: called when a backward pass that synchronizes has computed all gradients; then no
            `expect` is needed before it.
        check_finite: look at every gradient before it is reduced.
        whole: the gradient that this is a part of; None: all of it.
        compression: reduces buckets in place of all_reduce, after backward; see `compression.find`.

    Attributes:
        unused: names of the parameters that no rank's last group of backward passes reached.
        hidden: how much of the bytes of the last `finish` was reduced before the last gradient was
            there, 0…1; never anything of a single bucket.

    Raises:
        ArgumentError: bucket_bytes is not positive, compression does not exist, or a parameter is
            on another GPU than the rank's, or not where others are.
        UnsupportedError: a parameter is neither in CPU memory nor on a GPU.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        comm: Communicator,
        *,
        sparse: frozenset[str] = frozenset(),
        bucket_bytes: int,
        op: str,
        algorithm: str | None,
        at_end: Callable[[], None] | None = None,
        check_finite: bool = False,
        whole: WholeGradient | None = None,
        compression: str | Factory | None = None,
    ):
        if bucket_bytes <= 0:
            raise ArgumentError(f"bucket_bytes={bucket_bytes} must be positive (rank {comm.rank})")
        self.comm, self.op, self.algorithm = comm, op, algorithm
        self.unused: list[str] = []
        self.hidden = 0.0
        self._bucket_bytes = bucket_bytes
        self._at_end = at_end
        self._check_finite, self._not_finite = check_finite, set[str]()
        self._whole = whole or WholeGradient(comm)
        trainable = [(name, p) for name, p in parameters if p.requires_grad]
        self._device = common_device(trainable, comm)
        self._sparse = [SparseGradient(n, p, comm, op) for n, p in trainable if n in sparse]
        self._parameters = [(name, p) for name, p in trainable if name not in sparse]
        self._order: list[int] = []
        self._compression = find_factory(compression, algorithm)
        self._ordered = self._compression is not None
        self.synchronizing_now = False
        self._pass = -1
        self._allocate(self._planned(reversed(range(len(self._parameters)))))
        self._hook()

    @property
    def slots(self) -> list[Slot]:
        """The places of all gradients."""
        return [slot for bucket in self.buckets for slot in bucket.slots]

    def expect(self, last: bool) -> None:
        """Say whether the next backward pass is the last before `finish`.

        Then buckets are reduced in it; else gradients are only added up.
        """
        if last:
            self._begin()
        self.synchronizing_now = last

    @contextmanager
    def synchronizing(self, on: bool = True) -> Iterator[None]:
        """Expect the last backward pass inside, or without `on` none, and then what was before."""
        before = self.synchronizing_now
        self.expect(on)
        try:
            yield
        finally:
            self.synchronizing_now = before

    def start_all(self) -> None:
        """Start to reduce what backward did not: every rank must call this after its last one."""
        while self._next < len(self.buckets):
            self._start()

    def finish(self, scale: float = 1.0) -> None:
        """Reduce all gradients across the ranks, then multiply them by `scale`.

        A parameter that has no gradient here but has one elsewhere counts as zeros; one that has
        none anywhere keeps `grad` None, as in one process. Every rank must call this.

        Raises:
            NonFiniteError: with `check_finite`, a gradient of some rank is not; raised on all.
        """
        self.start_all()
        if self._check_finite:
            self._raise_not_finite()
        self._keep_used()
        for work in self._works:
            work.wait()
        if scale != 1.0 and self.buckets:
            torch._foreach_mul_([bucket.flat for bucket in self.buckets], scale)
        self.unused += [g.name for g in self._sparse if not g.reduce(scale)]
        nbytes = sum(bucket.flat.nbytes for bucket in self.buckets)
        self.hidden = sum(b.flat.nbytes for b in self.buckets[: self._early]) / (nbytes or 1)
        self._reset()
        self._reorder()

    def leftovers(self) -> dict[str, Leftover]:
        """Return what compression has left for later on this rank, by the parameters' names."""
        return {
            slot.name: left
            for bucket, compression in zip(self.buckets, self._compressed)
            for slot, left in zip(bucket.slots, compression.leftovers())
        }

    def restore(self, saved: Sequence[Mapping[str, Leftover]]) -> None:
        """Take what `leftovers` returned on every rank, of any number; see Compression.restore."""
        for bucket, compression in zip(self.buckets, self._compressed):
            names = [slot.name for slot in bucket.slots]
            compression.restore([[r[name] for r in saved if name in r] for name in names])

    def _raise_not_finite(self) -> None:
        sparse = [g.name for g in self._sparse if not g.is_finite()]
        found, self._not_finite = self._not_finite, set()
        names = [name for name, _ in self._parameters if name in found] + sparse
        for work in self._works:
            work.wait()
        self._whole.raise_not_finite(names)

    def _keep_used(self) -> None:
        """Give every parameter that some rank used its gradient, and the others none."""
        slots = self.slots
        used = torch.tensor([s.parameter.grad is not None for s in slots], dtype=torch.uint8)
        self.comm.all_reduce(used, op="max")
        for slot, somewhere in zip(slots, used.tolist()):
            slot.parameter.grad = slot.view if somewhere else None
        self.unused = [slot.name for slot, used_ in zip(slots, used.tolist()) if not used_]

    def _start(self) -> None:
        """Start to reduce the next bucket."""
        bucket = self.buckets[self._next]
        for slot in bucket.slots:
            slot.fill()
        if self._compressed:
            self._compressed[self._next].reduce()
        else:
            self._works.append(self._all_reduce(bucket))
        self._next += 1

    def _all_reduce(self, bucket: Bucket) -> Work:
        return self.comm.all_reduce(
            bucket.flat, op=self.op, algorithm=self.algorithm, async_op=True
        )

    # ---- buckets, in the order in which backward fills them

    def _planned(self, order: Iterable[int]) -> list[list[int]]:
        """Return who shares a bucket, in the order of backward; late ones last, by their names."""
        late, kind_of = self._whole.late, self._whole.kind_of
        names = [name for name, _ in self._parameters]
        sizes = [((p.dtype, kind_of(name)), p.nbytes) for name, p in self._parameters]
        order = sorted(
            order, key=lambda i: (names[i] in late, names[i] if names[i] in late else "")
        )
        return plan_buckets(sizes, self._bucket_bytes, order)

    def _allocate(self, plan: list[list[int]]) -> None:
        members = ([self._parameters[i] for i in indices] for indices in plan)
        self.buckets = [Bucket.of(of, self.comm, self._device) for of in members]
        self._compressed = self._compressions()
        self._plan = plan
        self._home: dict[int, tuple[int, Slot]] = {}
        for number, (indices, bucket) in enumerate(zip(plan, self.buckets)):
            self._home.update({i: (number, s) for i, s in zip(indices, bucket.slots)})
        self._reset()

    def _compressions(self) -> list[Compression]:
        make = self._compression
        if make is None:
            return []
        flats = [(b.flat, [slot.view for slot in b.slots]) for b in self.buckets]
        return [make(self.comm, flat, views, self.op) for flat, views in flats]

    def _reset(self) -> None:
        self._missing = [set(indices) for indices in self._plan]
        self._works: list[Work] = []
        self._next = 0
        self._early = 0

    def _reorder(self) -> None:
        """Fill buckets anew in the order of the first backward pass, once; that of rank 0."""
        if self._ordered:
            return
        order = self.comm.broadcast_object(self._order, 0)
        if not order:
            return
        self._ordered = True
        seen = set(order)
        order += [i for i in reversed(range(len(self._parameters))) if i not in seen]
        plan = self._planned(order)
        if plan != self._plan:
            self._allocate(plan)
            for slot in self.slots:
                slot.collect()

    # ---- what autograd calls

    def _hook(self) -> None:
        for index, (_, parameter) in enumerate(self._parameters):
            on_gradient(parameter, self, partial(Reducer._ready, index=index))
        for gradient in self._sparse:
            on_gradient(gradient.parameter, self, Reducer._begin_pass)

    def _ready(self, index: int) -> None:
        """Collect a gradient; reduce buckets that are full, in their order."""
        number, slot = self._home[index]
        self._begin_pass()
        if self.synchronizing_now and number < self._next:
            raise UnsupportedError(self._twice(slot.name))
        slot.collect()
        if self._check_finite and not is_finite(slot.view):
            self._not_finite.add(slot.name)
        if not self.synchronizing_now or self._compressed or slot.name in self._whole.late:
            return
        while self._early < self._next and self._works[self._early].done():
            self._early += 1
        if not self._ordered:
            self._order.append(index)
        self._missing[number].discard(index)
        while self._next < len(self.buckets) and not self._missing[self._next]:
            self._start()

    def _begin_pass(self) -> None:
        # A backward pass has a number of its own: one that raised cannot silence the next.
        current, at_end = torch._C._current_graph_task_id(), self._at_end
        if self.synchronizing_now and at_end is not None and current != self._pass:
            self._pass = current
            self._begin()
            torch.autograd.Variable._execution_engine.queue_callback(at_end)

    def _begin(self) -> None:
        """Begin anew, also after a backward pass that failed."""
        for work in self._works:
            work.wait()
        self._order = []
        self._reset()

    def _twice(self, name: str) -> str:
        return (
            f"the gradient of {name!r} became ready twice in one backward pass (rank "
            f"{self.comm.rank}), when it was being reduced already: use checkpoint(…, "
            "use_reentrant=False), or no_sync() and a backward pass of its own"
        )
