"""Shared memory between the ranks of one host: collectives in one call of csrc/shm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pycomm import _native
from pycomm._native import Board, Engine, Operation, Prepared
from pycomm.errors import MismatchError
from pycomm.observe.stats import Stats
from pycomm.transport.base import Request, Transport
from pycomm.transport.failures import FAILURES, Failures, Reporter
from pycomm.transport.job import Job, traffic_bytes
from pycomm.transport.sharing import Exchange, share

_logger = logging.getLogger("pycomm")


def _warn(rank: int, peer: int, waited_s: float) -> None:
    _logger.warning("rank %d has waited %.1f s for rank %d", rank, waited_s, peer)


_native.call_when_late(_warn)


class NeverQuick:
    """Stands for a board where there is none: the long way does every call."""

    def __getattr__(self, name: str) -> Callable[..., bool]:
        return lambda *arguments: False


class SharedMemory(Transport):
    """Ranks on one host: collectives on a board, messages by another transport."""

    fused = frozenset(
        "barrier all_reduce broadcast all_gather reduce_scatter reduce gather scatter "
        "all_to_all".split()
    )

    def __init__(
        self,
        board: Board,
        messages: Transport,
        timeout: float,
        stats: Stats,
        peers: Reporter,
        names: Sequence[int],
        cores: Sequence[int],
    ):
        self._board = board
        self._engine = Engine(board, list(cores))
        self._messages = messages
        self.rank = messages.rank
        self.size = messages.size
        self._stats = stats
        self._failures = Failures(self.rank, names, timeout, peers)

    @classmethod
    def connect(
        cls,
        messages: Transport,
        exchange: Exchange,
        crowded: bool,
        sockets: Sequence[int],
        timeout: float,
        stats: Stats,
        peers: Reporter,
        names: Sequence[int],
        peer_reads: str,
        cores: Sequence[int],
    ) -> SharedMemory | None:
        """Create the board on rank 0 and map it everywhere; None, on all ranks, if one cannot.

        Args:
            messages: carries point-to-point messages, before and after.
            exchange: gathers one object of every rank, without a board.
            crowded: whether ranks of this host share cores.
            sockets: the socket of each rank; ranks with the same number may share one.
            timeout: seconds that an operation may wait for another rank.
            stats: where waiting is counted.
            peers: says where everyone is, for error messages.
            names: what error messages call the ranks.
            peer_reads: as in Config.
            cores: those that asynchronous operations may run on; none for the process's own.
        """
        rank, size = messages.rank, messages.size
        about = crowded, timeout, list(sockets)
        board = share(
            lambda: Board.create(rank, size, *about),
            lambda pid, fd, nonce: Board.open(pid, fd, nonce, rank, size, *about),
            exchange,
            0 if rank > 0 else None,
        )
        if board is None:
            return None
        board.peer_reads = ("never", "auto", "always").index(peer_reads)
        return cls(board, messages, timeout, stats, peers, names, cores)

    def watch(self, waits: _native.Waits, processes: Sequence[int]) -> None:
        """Publish in `waits` for whom this rank waits; rank r is there as processes[r]."""
        self._board.watch(waits, list(processes))

    def serve(self, mailbox: _native.Mailbox) -> None:
        """Make progress with messages while this rank waits in a collective."""
        self._board.serve(mailbox)

    def heed(self, watchdog: _native.Watchdog, processes: Sequence[int]) -> None:
        """Raise in operations once `watchdog` knows one of the communicator's processes as dead."""
        self._board.heed(watchdog, list(processes))

    def isend(self, data: np.ndarray, peer: int) -> Request:
        """Start to send `data` to `peer`."""
        return self._messages.isend(data, peer)

    def irecv(self, out: np.ndarray, peer: int) -> Request:
        """Start to receive exactly `out.nbytes` bytes from `peer`."""
        return self._messages.irecv(out, peer)

    def wait(self, *requests: Request) -> None:
        """Return when all of the requests are complete."""
        self._messages.wait(*requests)

    def run(self, job: Job) -> None:
        """Run a collective of `fused`; reductions add in rank order.

        Raises:
            MismatchError: another rank opened another operation; nothing was changed. The caller
                says which, see `exchange_notes`.
            CommTimeoutError: a rank did not come within the timeout.
            DepartedError: a rank has left that was waited for.
            DeadlockError: a rank that is waited for waits for this one.
            CommError: the system does not let this rank read another's memory any more.
            RankFailedError: a rank of the communicator died.
        """
        waited_s = self._board.waited_s
        try:
            self._prepared(job).run()
        except FAILURES as error:
            raise self._failures.explained(error, job.part_of or job.kind) from None
        finally:
            self._stats.add_idle(self._board.waited_s - waited_s)

    def submit(self, job: Job, call: str, record: int) -> Operation:
        """Start what `run` does, behind all that was submitted before; no thread has to wait.

        Args:
            call: the call in words, for ranks that make another.
            record: its number in the flight recorder.
        """
        return self._engine.submit(self._prepared(job), job.kind, call, job, record)

    def submit_all_reduce(self, x: Any, op: Any) -> Operation | None:
        """Start an all_reduce by a short way, or return None."""
        return _native.start_all_reduce(self._engine, x, op)

    def wait_for(self, operation: Operation, timeout: float | None) -> bool:
        """Wait at most `timeout` seconds, and say whether the operation is finished."""
        return self._engine.wait(operation, timeout)

    def drain(self) -> bool:
        """Wait for all that was submitted; say whether there was any."""
        return self._engine.drain()

    def failure(self, operation: Operation | None = None) -> BaseException | None:
        """Return what an operation, or else the first one to fail, failed with; None if it has not.

        The error says what `run` would have raised.
        """
        operation = operation or self._engine.failed
        try:
            if operation:
                operation.check()
        except _native.Mismatch:
            return MismatchError.of_calls(self.rank, operation.notes)
        except FAILURES as error:
            return self._failures.explained(error, operation.kind)
        except Exception as error:
            return error
        return None

    def _prepared(self, job: Job) -> Prepared:
        prepared: Prepared = getattr(self, f"_{job.kind}")(job)
        return prepared

    def _barrier(self, job: Job) -> Prepared:
        return self._board.barrier(job.fingerprint)

    def _all_reduce(self, job: Job) -> Prepared:
        x, code, op = job.output, job.dtype.code, job.op
        return self._board.all_reduce(job.fingerprint, x.address, x.count, code, op.code, op.factor)

    def _broadcast(self, job: Job) -> Prepared:
        x = job.output
        return self._board.broadcast(job.fingerprint, x.address, x.nbytes, job.root)

    def _all_gather(self, job: Job) -> Prepared:
        offsets = [o * job.dtype.itemsize for o in job.offsets]
        source, target = job.input.address, job.output.address
        return self._board.all_gather(job.fingerprint, source, target, offsets)

    def _reduce_scatter(self, job: Job) -> Prepared:
        source, target, code, op = job.input.address, job.output.address, job.dtype.code, job.op
        return self._board.reduce_scatter(
            job.fingerprint, source, target, list(job.offsets), code, op.code, op.factor
        )

    def _reduce(self, job: Job) -> Prepared:
        x, dtype, op = job.input, job.dtype.code, job.op
        return _native.board_reduce(
            self._board, job.fingerprint, x.address, x.count, dtype, op.code, op.factor, job.root
        )

    def _gather(self, job: Job) -> Prepared:
        source, target, nbytes = job.input.address, job.output.address, job.input.nbytes
        return _native.board_gather(self._board, job.fingerprint, source, target, nbytes, job.root)

    def _scatter(self, job: Job) -> Prepared:
        make, source, target = job.allocate, job.input.address, job.output

        def allocate(header: Sequence[int]) -> tuple[int, int]:
            job.output = make(header) if make else job.output
            return job.output.address, job.output.nbytes

        return _native.board_scatter(
            self._board,
            job.fingerprint,
            job.detail,
            job.header,
            source,
            target.address,
            target.nbytes,
            allocate if make else None,
            job.root,
        )

    def _all_to_all(self, job: Job) -> Prepared:
        source, target = job.input.address, job.output.address
        traffic = traffic_bytes(job, self.rank, self.size)
        return _native.board_all_to_all(self._board, job.fingerprint, source, target, *traffic)

    def exchange_notes(self, note: str) -> list[str]:
        """After a MismatchError: return every rank's note, "" for those that give none in 2 s."""
        return self._board.exchange_notes(note)

    @property
    def quick(self) -> Board:
        """Its quick_… methods do simple calls without `run`, or return False."""
        return self._board

    def has_left(self, rank: int) -> bool:
        """Say whether a rank has closed its communicator or exited."""
        return self._board.has_departed(rank)

    def leave(self) -> None:
        """Tell the others that this rank takes no part any more; give up what is under way."""
        self._engine.stop()
        self._board.depart()
