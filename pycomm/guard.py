"""Never a silent hang: fingerprints of calls, departures, and the end of a rank that fails."""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import select
import sys
import threading
import time
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

from pycomm import _native
from pycomm.arrays import HOST
from pycomm.errors import CommError, CommTimeoutError, DepartedError, RankFailedError
from pycomm.observe import flight
from pycomm.transport.job import Job
from pycomm.types import OPS, ReduceOp

_logger = logging.getLogger("pycomm")
_native.know_package(os.path.dirname(__file__) + os.sep)

TIMEOUT_EXIT_CODE = 86
UNCAUGHT_S = 2.0
"""So long a rank may take to end after an exception that nobody caught."""
ROOTED = ("broadcast", "reduce", "gather", "scatter")


def fingerprint(job: Job, algorithm: str) -> int:
    """Return 64 bits that differ for different calls, and are the same in every process."""
    elements = job.elements if isinstance(job.elements, tuple) else (job.elements,)
    if algorithm == "direct" and job.kind == "scatter":
        return _native.fingerprint(job.kind, 0, 0, job.root, ())
    plain = algorithm == "direct" and not job.part_of
    kind = job.kind if plain else f"{job.kind}/{algorithm}/{job.part_of}"
    op = job.op.code if job.op.name in OPS[:-1] else _digest(job.op)
    return _native.fingerprint(kind, job.dtype.code, op, job.root, elements)


def detail(job: Job) -> int:
    """Return what tells the chunks of a scatter apart; 0 on ranks that take any, and elsewhere."""
    if job.kind != "scatter" or job.allocate:
        return 0
    return _native.fingerprint(f"chunk{job.part_of}", job.dtype.code, 0, 0, job.shape or ())


@lru_cache(maxsize=1024)
def _digest(op: ReduceOp) -> int:
    return int.from_bytes(hashlib.blake2b(repr(op).encode(), digest_size=8).digest(), "little")


def call_site() -> str:
    """Return file and line of the innermost caller outside pycomm."""
    return _native.call_site()


def describe(job: Job, algorithm: str, site: str) -> str:
    """Return a call in words, for the error on ranks that made another."""
    if job.part_of or job.allocate:
        return f"{job.part_of or f'scatter(root={job.root})'} at {site}"
    words = [f"op={job.op.name!r}"] if "reduce" in job.kind else []
    words += [f"factor={job.op.factor}"] if job.op.name == "premul_sum" else []
    words += [f"root={job.root}"] if job.kind in ROOTED else []
    size = "elements" if job.shape is None else "shape"
    words += [job.dtype.name, f"{size}={job.elements}"]
    words += ["device='cuda'"] if job.device != HOST else []
    words += [f"algorithm={algorithm!r}"] if algorithm != "device" else []
    return f"{job.kind}({', '.join(words)}) at {site}"


def recorded(job: Job, algorithm: str, site: str | None) -> tuple[Any, ...]:
    """Return a call as the flight recorder wants it; None as its site: the caller's."""
    op = job.op.name if "reduce" in job.kind else ""
    root = job.root if job.kind in ROOTED else None
    return job.kind, op, job.dtype.name, job.nbytes, root, algorithm, site


class Member(Protocol):
    """What the guard tells of a departure: a communicator."""

    rank: int
    size: int

    def depart(self) -> None:
        """Let the other ranks know that this one takes no part any more."""

    def hush(self) -> None:
        """The user has been told why the job ends: name nobody who dies of it."""

    def abort(self, code: int) -> None:
        """End the whole job."""


class Guard:
    """Watches over the process's part in a job, from the first communicator on.

    It marks departures at exit, keeps forked children out, and on an uncaught exception names the
    rank. Excepthooks that were there before still run. The job itself is ended by the launcher,
    which sees a process leave with a status other than 0 and without MPI_Finalize.
    """

    def __init__(self) -> None:
        self._members: weakref.WeakSet[Any] = weakref.WeakSet()
        self._installed = False
        self.in_child = False

    def watch(self, member: Member) -> None:
        """Include a communicator."""
        self._members.add(member)
        if not self._installed:
            self._installed = True
            self._previous: Callable[..., Any] = sys.excepthook
            sys.excepthook = self._uncaught
            atexit.register(self.depart)
            os.register_at_fork(after_in_child=self._forked)
            if member.size > 1:
                _end_with_parent(member.rank)

    def check(self) -> None:
        """Raise in a forked child, which shares its parent's connections and must not use them."""
        if self.in_child:
            raise CommError(
                f"process {os.getpid()} was forked from a rank and cannot communicate: "
                "do it in the parent, or start the child with the 'spawn' method"
            )

    def depart(self) -> None:
        """Mark this rank as gone on all communicators."""
        if not self.in_child:
            for member in list(self._members):
                member.depart()

    def _forked(self) -> None:
        self.in_child = True
        sys.excepthook = self._previous

    def _uncaught(self, kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        self._previous(kind, error, traceback)
        world = max(self._members, key=lambda member: member.size, default=None)
        if world is None or world.size == 1 or hasattr(sys, "ps1"):
            return
        who, what = f"rank {world.rank} of {world.size}", kind.__name__
        file = flight.write(error)
        did = f"; what it did last is in {file}" if file else ""
        _logger.error("%s raised %s: the job ends%s", who, what, did)
        sys.stderr.flush()
        world.hush()
        if isinstance(error, (DepartedError, RankFailedError)):
            time.sleep(1.0)  # who left may have failed: then its exit status is to be the job's
        if isinstance(error, CommTimeoutError):
            world.abort(TIMEOUT_EXIT_CODE)
        held = f"pycomm: {who} raised {what}, and {UNCAUGHT_S:g} s later something keeps it"
        why = f"{held} from exiting, such as a thread or an exit handler: it aborts the job\n"
        _native.abort_after(UNCAUGHT_S, TIMEOUT_EXIT_CODE, why)


def _end_with_parent(rank: int) -> None:
    """End this process when its parent, the launcher, is killed: Open MPI leaves it running."""
    parent = os.getppid()
    try:
        launcher = os.pidfd_open(parent)
    except OSError:  # a kernel that has none
        return

    def wait() -> None:
        poll = select.poll()
        poll.register(launcher, select.POLLIN)
        poll.poll()
        _logger.error("rank %d ends, since process %d, which launched it, has ended", rank, parent)
        os._exit(1)

    threading.Thread(target=wait, name="pycomm-launcher", daemon=True).start()


guard = Guard()
"""The process's one guard."""


def finalize_on_success(address: int) -> None:
    """Have the function at `address` called when the process exits with status 0, and only then."""
    if address:
        _native.finalize_on_success(address)
