"""The opening of a collective between hosts: all calls are compared before any memory changes.

What a rank exchanges first depends on where the ranks are and never on what it calls, so that
ranks that call different things still understand each other.
"""

from __future__ import annotations

import contextlib

import numpy as np

from pycomm.algorithms.recursive import all_gather
from pycomm.arrays import view
from pycomm.errors import MismatchError
from pycomm.kernels.base import Kernels
from pycomm.transport.base import Transport
from pycomm.transport.job import Job
from pycomm.transport.shm import SharedMemory
from pycomm.types import DTYPES

_NOTE_BYTES = 512


def compare(transport: Transport, kernels: Kernels, fingerprint: int, opens: bool) -> None:
    """Return if all ranks gave the same fingerprint; in ⌈log₂ n⌉ steps at most.

    Between hosts with as many ranks each these are ⌈log₂ h⌉, among counterparts. What they found is
    then compared on every host, in shared memory if there is some: a rank whose counterparts
    disagree gives another word than node-mates whose counterparts agree.

    Args:
        opens: whether the algorithm's own first step compares fingerprints on a board.

    Raises:
        MismatchError: they differ, and every rank raises it.
    """
    local, across = transport.local, transport.across
    if local is None or across is None:
        return agree(transport, kernels, fingerprint)
    try:
        agree(across, kernels, fingerprint)
    except MismatchError:
        with contextlib.suppress(MismatchError):
            agree(local, kernels, fingerprint ^ 1)
        raise
    if not (opens and local.fused):
        agree(local, kernels, fingerprint)


def exchange_notes(transport: Transport, kernels: Kernels, note: str) -> list[str]:
    """After a MismatchError: return what every rank says of its call, "" for no answer."""
    if isinstance(transport, SharedMemory):
        return transport.exchange_notes(note)
    padded = note.encode()[:_NOTE_BYTES].ljust(_NOTE_BYTES, b"\0")
    rows = gather_rows(transport, kernels, np.frombuffer(padded, np.uint8))
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]


def gather_rows(transport: Transport, kernels: Kernels, row: np.ndarray) -> np.ndarray:
    """Return every rank's `row`; all have the same length."""
    rows = np.empty((transport.size, row.size), row.dtype)
    source, target = view(row), view(rows)
    job = Job("all_gather", source.dtype, source, target, (row.size,) * transport.size)
    all_gather(transport, kernels, job)
    return rows


def agree(transport: Transport, kernels: Kernels, word: int, what: str = "") -> None:
    """Return if all ranks of `transport` gave the same word, or raise MismatchError on all.

    Args:
        what: the operation that this is part of, for errors.
    """
    if "barrier" in transport.fused:
        transport.run(Job("barrier", DTYPES["uint8"], fingerprint=word, part_of=what))
        return
    mine = np.array([word], np.uint64)
    if (gather_rows(transport, kernels, mine) != mine).any():
        raise MismatchError
