"""The collectives in which ranks have different parts: a root's, or one for every peer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pycomm import arrays
from pycomm.arrays import HOST, NOTHING, View, is_tensor, view
from pycomm.chunk import Chunk
from pycomm.dispatch import Part
from pycomm.errors import ArgumentError
from pycomm.shapes import Shape, checked_rank, checked_traffic, exchanged, one_each
from pycomm.transport.job import Job
from pycomm.types import ReduceOp, resolve_op
from pycomm.uniform import UniformCollectives


class Collectives(UniformCollectives):
    """What a Communicator can do with all its ranks."""

    def reduce(
        self,
        x: Any,
        root: int = 0,
        op: str | ReduceOp = "sum",
        *,
        async_op: bool = False,
        algorithm: str | None = None,
        order: str | None = None,
    ) -> Any:
        """Reduce `x` element by element over all ranks, in place on the root.

        Args:
            x: an array of the same dtype and number of elements on every rank; the other ranks'
                stay as they are, and may be read-only.
            root: the rank that gets the result.
            op: as for `all_reduce`, of which the root gets the bits.
            async_op: return a Work at once.
            algorithm: for instance "ring"; None chooses, see `explain`.
            order: "rank" adds in rank order between hosts, too.

        Returns:
            `x` on the root, None on the others; or a Work whose result that is.
        """
        simple = not async_op and algorithm is None and order is None
        if simple and self._quick.quick_reduce(x, root, op):
            return x if self.rank == root else None
        root = checked_rank(root, "root", self.rank, self.size)
        mine = self.rank == root
        source = view(x, result=mine)
        target = source if mine else NOTHING
        operation = resolve_op(op, source.dtype)
        job = Job("reduce", source.dtype, source, target, op=operation, root=root)
        return self._collectives.start(job, x, async_op, algorithm, order)

    def gather(
        self,
        x: Any,
        root: int = 0,
        out: Any = None,
        *,
        async_op: bool = False,
        algorithm: str | None = None,
    ) -> Any:
        """Gather `x` of every rank on the root.

        Args:
            x: an array of the same dtype and shape on every rank.
            root: the rank that gets the result.
            out: on the root an array for the result, or None to allocate one; else ignored.
            async_op: return a Work at once.
            algorithm: for instance "linear"; None chooses, see `explain`.

        Returns:
            (size, *x.shape) in rank order on the root, None on the others; or a Work of that.
        """
        if not async_op and algorithm is None and self._quick.quick_gather(x, root, out):
            return out if self.rank == root else None
        root = checked_rank(root, "root", self.rank, self.size)
        source, shape, target = view(x), tuple(x.shape), NOTHING
        if self.rank == root:
            target = self._output(out, (self.size, *shape), source, is_tensor(x))
        counts = (source.count,) * self.size
        job = Job("gather", source.dtype, source, target, counts, root=root, shape=shape)
        return self._collectives.start(job, out, async_op, algorithm)

    def scatter(
        self,
        x: Any,
        root: int = 0,
        out: Any = None,
        *,
        async_op: bool = False,
        algorithm: str | None = None,
    ) -> Any:
        """Give every rank its part of the root's `x`.

        The root tells dtype and shape: between hosts, in a broadcast of 640 bytes ahead; also where
        arrays are on GPUs, in an exchange ahead.

        Args:
            x: (size, …) on the root; ignored elsewhere, where it may be None.
            root: the rank whose `x` it is.
            out: an array for the result, or None to allocate one, a torch tensor if the root's `x`
                is one, on the rank's GPU if that is on a GPU; some ranks may pass one and others
                not.
            async_op: return a Work at once.
            algorithm: for instance "linear"; None chooses, see `explain`.

        Returns:
            x[rank] of the root's `x`, of shape (…); or a Work of that.

        Raises:
            MismatchError: some rank's `out` has not the shape and dtype of a part; nothing was
                changed.
        """
        if not async_op and algorithm is None and self._quick.quick_scatter(x, root, out):
            return out
        root = checked_rank(root, "root", self.rank, self.size)
        source, target, shape = self._scatter_ends(x, root, out)
        of = target or source
        chunk = Chunk(of.dtype, is_tensor(x), of.device != HOST, shape)
        chosen = self._collectives.choose("scatter", 0, algorithm, None).algorithm
        direct = chosen.name == "direct"
        if direct and target and not chunk.on_gpu:
            job = self._scatter_job(root, source, target, shape)
            job.header = chunk.header if self.rank == root else ()
            return self._collectives.start(job, out, async_op, algorithm)
        later = async_op and not chunk.on_gpu

        def parts(part: Part) -> Any:
            say = self._say_directly if direct else self._say_by_broadcast
            told, result = say(part, root, chunk, target is None)
            if result is not None:
                return result
            to = target or self._chunk_memory(told)
            job = self._scatter_job(root, source, to, chunk.shape if target else told.shape)
            return part(job, out, algorithm) if job.device == HOST or later else job

        result = self._collectives.start_parts(parts, later)
        if isinstance(result, Job):
            return self._collectives.start(result, out, async_op, algorithm)
        return result

    def _scatter_ends(self, x: Any, root: int, out: Any) -> tuple[View, View | None, Shape]:
        """Return the root's `x`, where this rank's part goes if it says so, and its shape."""
        if self.rank == root:
            source, shape = view(x), one_each(tuple(x.shape), self.rank, self.size)
            return source, self._output(out, shape, source, is_tensor(x)), shape
        if out is not None:
            return NOTHING, view(out, result=True), tuple(out.shape)
        return NOTHING, None, ()

    def _say_directly(
        self, part: Part, root: int, chunk: Chunk, takes_any: bool
    ) -> tuple[Chunk, Any]:
        """Tell ranks that pass no array what the root's chunks are; do it all, if on the host.

        Returns:
            A chunk, and the result if there is one already.
        """
        if not takes_any:
            name = f"scatter(root={root}, {chunk.dtype.name}, shape={chunk.shape}, device='cuda')"
            job = Job("scatter", chunk.dtype, root=root, shape=chunk.shape, part_of=name)
            job.header = chunk.header if self.rank == root else ()
            part(job, None, "direct")
            return chunk, None
        told: list[Chunk] = []

        def allocate(header: Sequence[int]) -> View:
            told.append(Chunk.told(header))
            return NOTHING if told[0].on_gpu else told[0].empty()

        job = Job("scatter", chunk.dtype, root=root, allocate=allocate)
        result = part(job, None, "direct")
        return told[0], result

    def _say_by_broadcast(
        self, part: Part, root: int, chunk: Chunk, takes_any: bool
    ) -> tuple[Chunk, Any]:
        """Tell all ranks what the root's chunks are: as `_say_directly`, but no more than that."""
        ahead, name = view(chunk.padded), f"scatter(root={root})"
        part(Job("broadcast", ahead.dtype, output=ahead, root=root, part_of=name), None)
        return Chunk.told(ahead.owner), None

    def _chunk_memory(self, chunk: Chunk) -> View:
        if not chunk.on_gpu:
            return chunk.empty()
        return view(self._collectives.on_device.empty(chunk.shape, chunk.dtype_of_kind, "cuda"))

    def _scatter_job(self, root: int, source: View, target: View, chunk: Shape) -> Job:
        counts = (target.count,) * self.size
        return Job("scatter", target.dtype, source, target, counts, root=root, shape=chunk)

    def all_to_all(
        self,
        x: Any,
        out: Any = None,
        send_counts: Sequence[int] | None = None,
        recv_counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
        algorithm: str | None = None,
    ) -> Any:
        """Send every rank its part of `x`, and receive a part from every rank.

        With counts, ranks compare them first: that costs one small all_gather.

        Args:
            x: (size, …): x[r] goes to rank r; of the same dtype and shape on every rank. With
                `send_counts`, (sum(send_counts), …).
            out: an array for the result, which must not overlap `x`; or None to allocate one.
            send_counts: how many rows (axis 0) of `x` go to each rank, in rank order; all ranks
                must pass them, or none.
            recv_counts: how many rows come from each rank; None takes what is sent.
            async_op: return a Work at once.
            algorithm: for instance "pairwise"; None chooses, see `explain`.

        Returns:
            An array of the shape of `x` whose row r came from rank r; with counts,
            (sum(recv_counts), …), in rank order; or a Work of that.

        Raises:
            MismatchError: a rank expects other counts than are sent to it; on every rank, and
                nothing was changed.
        """
        simple = out is not None and send_counts is None and recv_counts is None
        simple = simple and not async_op and algorithm is None
        if simple and self._quick.quick_all_to_all(x, out):
            return out
        source, shape = view(x), tuple(x.shape)
        if send_counts is None and recv_counts is not None:
            raise ArgumentError(f"rank {self.rank}: recv_counts= needs send_counts=, too")
        if send_counts is not None:
            mine = exchanged(shape, self.rank, self.size, send_counts, recv_counts)
            return self._rows_to_all(x, out, mine, async_op, algorithm)
        row = one_each(shape, self.rank, self.size)
        target = self._apart(self._output(out, shape, source, is_tensor(x)), source)
        counts = (math.prod(row),) * self.size
        job = Job("all_to_all", source.dtype, source, target, counts, shape=row)
        return self._collectives.start(job, out, async_op, algorithm)

    def _rows_to_all(
        self, x: Any, out: Any, mine: list[int], async_op: bool, algorithm: str | None
    ) -> Any:
        """Compare the counts of all ranks, of which `mine` are this one's; then do all_to_all."""
        source, row, target = view(x), tuple(x.shape[1:]), None
        rows = -1 if out is None else out.shape[0] if len(out.shape) else 0
        if out is not None:
            target = self._apart(self._output(out, (rows, *row), source, False), source)
        self._collectives.choose("all_to_all", 0, algorithm, None)
        entry = view(np.array([*mine, rows], np.int64))
        table = np.empty((self.size, entry.count), np.int64)

        def compared(part: Part) -> Job:
            lengths, name = (entry.count,) * self.size, "all_to_all(send_counts=…)"
            part(Job("all_gather", entry.dtype, entry, view(table), lengths, part_of=name), None)
            sent = checked_traffic(table, self.rank)
            shape = (sum(counts[self.rank] for counts in sent), *row)
            result = target or arrays.empty_beside(source, shape, is_tensor(x))
            elements = tuple(tuple(c * math.prod(row) for c in counts) for counts in sent)
            own = elements[self.rank]
            return Job("all_to_all", source.dtype, source, result, own, sent=elements, shape=row)

        if source.device != HOST:
            job = self._collectives.start_parts(compared)
            return self._collectives.start(job, out, async_op, algorithm)

        def parts(part: Part) -> Any:
            return part(compared(part), out, algorithm)

        return self._collectives.start_parts(parts, async_op)

    def _apart(self, target: View, source: View) -> View:
        begin, end = source.address, source.address + source.nbytes
        if target.nbytes and target.address < end and begin < target.address + target.nbytes:
            raise ArgumentError(f"rank {self.rank}: out= overlaps x: pass another array, or none")
        return target
