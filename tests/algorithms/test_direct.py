"""Direct: one fused operation of the transport, where it has one."""

from __future__ import annotations

import pytest

from pycomm.algorithms.registry import algorithms, find
from pycomm.errors import ArgumentError
from pycomm.transport.job import Job
from pycomm.transport.threads import run_threads
from pycomm.types import DTYPES

DIRECT = [a for a in algorithms() if a.name == "direct"]


class Fused:
    """A transport that only notes what it is asked to run."""

    fused = frozenset({"all_reduce", "barrier"})

    def __init__(self):
        self.jobs = []

    def run(self, job):
        """Note the job."""
        self.jobs.append(job)


@pytest.mark.parametrize("algorithm", DIRECT, ids=lambda a: a.kind)
def test_direct_runs_one_fused_job(algorithm):
    transport, job = Fused(), Job(algorithm.kind, DTYPES["int32"])
    assert algorithm.supports(transport) == (algorithm.kind in Fused.fused)
    algorithm.run(transport, None, job)
    assert transport.jobs == [job]
    assert algorithm.order == "rank"


def test_direct_costs():
    costs = {a.kind: (a.steps(4, 1000), a.wire_bytes(4, 1000)) for a in DIRECT}
    assert costs == {
        "all_reduce": (1, 1500),
        "broadcast": (1, 1000),
        "all_gather": (1, 750),
        "reduce_scatter": (1, 750),
        "reduce": (1, 1000),
        "gather": (1, 750),
        "scatter": (1, 750),
        "all_to_all": (1, 750),
        "barrier": (1, 0),
    }


def test_threads_have_nothing_fused():
    with pytest.raises(NotImplementedError, match="ThreadTransport has no fused barrier"):
        run_threads(1, lambda t, rank: t.run(Job("barrier", DTYPES["uint8"])))


def test_an_unknown_algorithm_lists_those_that_exist():
    with pytest.raises(ArgumentError, match="'direct', 'ring', .*'pairwise'"):
        find("all_reduce", "rings")
