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
from pycomm.types import DTYPES


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
        return _agree(transport, kernels, fingerprint)
    try:
        _agree(across, kernels, fingerprint)
    except MismatchError:
        with contextlib.suppress(MismatchError):
            _agree(local, kernels, fingerprint ^ 1)
        raise
    if not (opens and local.fused):
        _agree(local, kernels, fingerprint)


def gather_rows(transport: Transport, kernels: Kernels, row: np.ndarray) -> np.ndarray:
    """Return every rank's `row`; all have the same length."""
    rows = np.empty((transport.size, row.size), row.dtype)
    source, target = view(row), view(rows)
    job = Job("all_gather", source.dtype, source, target, (row.size,) * transport.size)
    all_gather(transport, kernels, job)
    return rows


def _agree(transport: Transport, kernels: Kernels, word: int) -> None:
    if "barrier" in transport.fused:
        transport.run(Job("barrier", DTYPES["uint8"], fingerprint=word))
        return
    mine = np.array([word], np.uint64)
    if (gather_rows(transport, kernels, mine) != mine).any():
        raise MismatchError
