"""The collectives in which all ranks do the same, of arrays and of small objects."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from pycomm import arrays
from pycomm._native import Board
from pycomm.arrays import View, is_tensor, place_name, view
from pycomm.dispatch import Dispatcher
from pycomm.errors import ArgumentError
from pycomm.shapes import checked_rank, gathered, scattered
from pycomm.transport.job import Job
from pycomm.transport.shm import NeverQuick
from pycomm.types import DTYPES, ReduceOp, resolve_op


class UniformCollectives:
    """What a Communicator can do with all its ranks where none has a part of its own."""

    rank: int
    size: int
    _collectives: Dispatcher
    _quick: Board | NeverQuick

    def all_reduce(
        self,
        x: Any,
        op: str | ReduceOp = "sum",
        *,
        async_op: bool = False,
        algorithm: str | None = None,
        order: str | None = None,
    ) -> Any:
        """Reduce `x` element by element over all ranks, in place.

        Args:
            x: an array of the same dtype and number of elements on every rank.
            op: "sum", "avg", "prod", "min", "max", "band", "bor", "bxor",
                premul_sum(factor), or reduce_op(function).
            async_op: return a Work at once.
            algorithm: for instance "ring"; None chooses, see `explain`.
            order: "rank" adds in rank order between hosts, too.

        Returns:
            `x`, or a Work whose result it is.

        Raises:
            MismatchError: ranks disagree on the call; nothing was changed.
            ArgumentError, UnsupportedError: the arguments cannot be used.
        """
        simple = algorithm is None and order is None
        if simple and not async_op and self._quick.quick_all_reduce(x, op):
            return x
        if simple and async_op and (work := self._collectives.start_all_reduce(x, op)):
            return work
        target = view(x, result=True)
        job = Job("all_reduce", target.dtype, target, target, op=resolve_op(op, target.dtype))
        return self._collectives.start(job, x, async_op, algorithm, order)

    def broadcast(
        self, x: Any, root: int = 0, *, async_op: bool = False, algorithm: str | None = None
    ) -> Any:
        """Copy `x` of rank `root` into `x` of every other rank; return `x`, or a Work."""
        if not async_op and algorithm is None and self._quick.quick_broadcast(x, root):
            return x
        root = checked_rank(root, "root", self.rank, self.size)
        target = view(x, result=self.rank != root)
        job = Job("broadcast", target.dtype, output=target, root=root)
        return self._collectives.start(job, x, async_op, algorithm)

    def all_gather(
        self,
        x: Any,
        out: Any = None,
        counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
        algorithm: str | None = None,
    ) -> Any:
        """Gather `x` of every rank.

        Args:
            x: an array of the same dtype and number of elements on every rank; shapes are not
                compared, the result goes by this rank's. With `counts`, rank r has counts[r] rows.
            out: an array for the result, or None to allocate one.
            counts: the number of rows (axis 0) of every rank, the same list on all.

        Returns:
            (size, *x.shape) in rank order; with `counts`, (sum(counts), *x.shape[1:]).
        """
        simple = out is not None and counts is None and not async_op and algorithm is None
        if simple and self._quick.quick_all_gather(x, out):
            return out
        source = view(x)
        shape, elements = gathered(tuple(x.shape), self.rank, self.size, counts)
        target = self._output(out, shape, source, is_tensor(x))
        job = Job("all_gather", source.dtype, source, target, elements)
        return self._collectives.start(job, out, async_op, algorithm)

    def reduce_scatter(
        self,
        x: Any,
        op: str | ReduceOp = "sum",
        out: Any = None,
        counts: Sequence[int] | None = None,
        *,
        async_op: bool = False,
        algorithm: str | None = None,
        order: str | None = None,
    ) -> Any:
        """Reduce over all ranks and leave each rank its chunk of rows.

        Args:
            x: (size·k, …) on every rank; with `counts`, (sum(counts), …).
            op: as for `all_reduce`.
            out: an array for the result, or None to allocate one.
            counts: the number of rows that each rank gets, the same list on all.

        Returns:
            (k, …), or (counts[rank], …): rank r has the r-th rows.
        """
        simple = out is not None and counts is None and not async_op and algorithm is None
        if simple and order is None and self._quick.quick_reduce_scatter(x, op, out):
            return out
        source = view(x)
        shape, elements = scattered(tuple(x.shape), self.rank, self.size, counts)
        target = self._output(out, shape, source, is_tensor(x))
        operation = resolve_op(op, source.dtype)
        job = Job("reduce_scatter", source.dtype, source, target, elements, operation)
        return self._collectives.start(job, out, async_op, algorithm, order)

    def barrier(self, *, async_op: bool = False) -> Any:
        """Return when every rank has called it."""
        if not async_op and self._quick.quick_barrier():
            return None
        return self._collectives.start(Job("barrier", DTYPES["uint8"]), None, async_op)

    def broadcast_object(self, o: Any, root: int = 0) -> Any:
        """Return rank `root`'s small picklable object on every rank."""
        data = np.frombuffer(pickle.dumps(o if self.rank == root else None), np.uint8).copy()
        length = self.broadcast(np.array([data.size]), root)[0]
        payload = self.broadcast(data if self.rank == root else np.empty(length, np.uint8), root)
        return o if self.rank == root else pickle.loads(payload)

    def all_gather_object(self, o: Any) -> list[Any]:
        """Return every rank's small picklable object, in rank order."""
        data = np.frombuffer(pickle.dumps(o), np.uint8)
        counts = self.all_gather(np.array([data.size]))[:, 0].tolist()
        payload = self.all_gather(data, counts=counts)
        return [pickle.loads(part) for part in np.split(payload, np.cumsum(counts)[:-1])]

    def _output(self, out: Any, shape: tuple[int, ...], source: View, as_tensor: bool) -> View:
        if out is None:
            return arrays.empty_beside(source, shape, as_tensor)
        target = view(out, result=True)
        if target.device != source.device:
            where = [place_name(v.device) for v in (source, target)]
            raise ArgumentError(f"rank {self.rank}: x is on {where[0]}, but out= on {where[1]}")
        if tuple(out.shape) != shape or target.dtype != source.dtype:
            raise ArgumentError(
                f"rank {self.rank}: out= has shape {tuple(out.shape)} of {target.dtype.name}, the "
                f"result has {shape} of {source.dtype.name}"
            )
        return target
