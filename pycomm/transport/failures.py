"""What collectives in shared memory fail with: of csrc/shm, and as errors of pycomm."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from pycomm import _native
from pycomm.errors import (
    CommError,
    CommTimeoutError,
    DeadlockError,
    DepartedError,
    MismatchError,
    RankFailedError,
)

FAILURES = (
    _native.Mismatch,
    _native.Interrupted,
    _native.Stalled,
    _native.Deadlock,
    _native.Departed,
    _native.Died,
    _native.Unreadable,
)


class Reporter(Protocol):
    """Says where everyone is, for error messages."""

    def report(self) -> str:
        """Return where every rank is."""

    def failure(self, what: object) -> RankFailedError | None:
        """Return the error for `what`, an operation, if a rank has died."""

    def deadlock(self, cycle: list[int]) -> DeadlockError:
        """Return the error for a cycle of processes that wait for each other."""


class Failures:
    """The words of one communicator for what its collectives fail with.

    Args:
        rank: this one, in the communicator.
        names: what error messages call the ranks.
        timeout: seconds that an operation may wait for another rank.
        peers: says where everyone is.
    """

    def __init__(self, rank: int, names: Sequence[int], timeout: float, peers: Reporter):
        self._rank = rank
        self._names = names
        self._timeout = timeout
        self._peers = peers

    def explained(self, error: Exception, kind: str) -> CommError:
        """Return the error of pycomm for one of FAILURES, in a collective `kind`."""
        me = f"rank {self._names[self._rank]}"
        if isinstance(error, _native.Mismatch):
            return MismatchError()
        if isinstance(error, _native.Interrupted):
            return CommError(f"{me}: an earlier operation was interrupted")
        if isinstance(error, _native.Deadlock):
            return self._peers.deadlock(error.args[0])
        if isinstance(error, _native.Died):
            what = f"{me} waits in {kind}"
            return self._peers.failure(what) or RankFailedError(what)
        who = f"rank {self._names[error.args[0]]}"
        if isinstance(error, _native.Unreadable):
            what = f"{me} cannot read the memory of {who}: {os.strerror(error.args[1])}"
            return CommError(f"{what}; PYCOMM_PEER_READS=never does without")
        if isinstance(error, _native.Departed):
            return DepartedError(f"{me} waits in {kind}, but {who} has left")
        late = f"{who} did not come to {kind} within {self._timeout:g} s"
        return CommTimeoutError(f"{me}: {late}\n{self._peers.report()}")
