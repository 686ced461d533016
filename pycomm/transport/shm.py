"""Shared memory between the ranks of one host: collectives in one call of csrc/shm."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pycomm import _native
from pycomm._native import Board
from pycomm.errors import CommTimeoutError, DepartedError, MismatchError
from pycomm.observe.stats import Stats
from pycomm.transport.base import Request, Transport
from pycomm.transport.job import Job

_logger = logging.getLogger("pycomm")

Exchange = Callable[[Any], list[Any]]
"""Gathers one small object of every rank, in rank order."""


def host_identity() -> tuple[str, str, int]:
    """Return host, boot and PID namespace: equal for two processes that can share memory."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return socket.gethostname(), boot, os.stat("/proc/self/ns/pid").st_ino


class SharedMemory(Transport):
    """Ranks on one host: collectives on a board, messages by another transport."""

    fused = frozenset({"barrier", "all_reduce", "broadcast", "all_gather", "reduce_scatter"})

    def __init__(
        self, board: Board, messages: Transport, timeout: float, stats: Stats, names: Sequence[int]
    ):
        self._names = names
        self._board = board
        self._messages = messages
        self.rank = messages.rank
        self.size = messages.size
        self._timeout = timeout
        self._stats = stats

    @classmethod
    def connect(
        cls,
        messages: Transport,
        exchange: Exchange,
        crowded: bool,
        timeout: float,
        stats: Stats,
        names: Sequence[int] = (),
    ) -> SharedMemory | None:
        """Create the board on rank 0 and map it everywhere; None, on all ranks, if one cannot.

        Args:
            messages: carries point-to-point messages, before and after.
            exchange: gathers one object of every rank, without a board.
            crowded: whether this host has more ranks than cores.
            timeout: seconds that an operation may wait for another rank.
            stats: where waiting is counted.
            names: what error messages call the ranks, if not by their numbers here.
        """
        rank, size = messages.rank, messages.size

        def attempt(make: Callable[[], Board]) -> Board | None:
            try:
                return make()
            except (OSError, RuntimeError) as error:
                _logger.warning("rank %d cannot share memory: %s", rank, error)
                return None

        board = attempt(lambda: Board.create(rank, size, crowded, timeout)) if rank == 0 else None
        pid, fd, nonce = exchange((os.getpid(), board.fd, board.nonce) if board else (0, 0, 0))[0]
        if rank > 0 and nonce:
            board = attempt(lambda: Board.open(pid, fd, nonce, rank, size, crowded, timeout))
        if not all(exchange(board is not None)) or board is None:
            return None
        board.close_descriptor()
        return cls(board, messages, timeout, stats, names or range(size))

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
        """
        waited_s = self._board.waited_s
        try:
            getattr(self, f"_{job.kind}")(job)
        except _native.Mismatch:
            raise MismatchError() from None
        except _native.Stalled as error:
            me, who = self._names[self.rank], self._names[error.args[0]]
            late = f"rank {who} did not come to {job.kind} within {self._timeout:g} s"
            raise CommTimeoutError(f"rank {me}: {late}") from None
        except _native.Departed as error:
            me, who = self._names[self.rank], self._names[error.args[0]]
            raise DepartedError(f"rank {me} waits in {job.kind}, but rank {who} has left") from None
        finally:
            self._stats.add_idle(self._board.waited_s - waited_s)

    def _barrier(self, job: Job) -> None:
        self._board.barrier(job.fingerprint)

    def _all_reduce(self, job: Job) -> None:
        x, code, op = job.output, job.dtype.code, job.op
        self._board.all_reduce(job.fingerprint, x.address, x.count, code, op.code, op.factor)

    def _broadcast(self, job: Job) -> None:
        self._board.broadcast(job.fingerprint, job.output.address, job.output.nbytes, job.root)

    def _all_gather(self, job: Job) -> None:
        offsets = [o * job.dtype.itemsize for o in job.offsets]
        self._board.all_gather(job.fingerprint, job.input.address, job.output.address, offsets)

    def _reduce_scatter(self, job: Job) -> None:
        source, target, code, op = job.input.address, job.output.address, job.dtype.code, job.op
        self._board.reduce_scatter(
            job.fingerprint, source, target, list(job.offsets), code, op.code, op.factor
        )

    def exchange_notes(self, note: str) -> list[str]:
        """After a MismatchError: return every rank's note, "" for those that give none in 2 s."""
        return self._board.exchange_notes(note)

    def has_left(self, rank: int) -> bool:
        """Say whether a rank has closed its communicator or exited."""
        return self._board.has_departed(rank)

    def leave(self) -> None:
        """Tell the others that this rank takes no part any more."""
        self._board.depart()
