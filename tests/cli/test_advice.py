"""Every problem that the doctor knows is found, said once, and absent where all is well."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pycomm.cli.advice import advice
from pycomm.cli.facts import Facts
from pycomm.cli.report import report, spans
from pycomm.config import SETTINGS
from pycomm.costs import Costs, Link

WELL = Facts(
    versions={"Python": "3.12.1", "pycomm": "0.1.0"},
    mpi="Open MPI 5.0.11",
    threads="multiple",
    launched=2,
    host="a",
    machine="a, 2 × Processor",
    cores=(0, 1),
    level="avx2",
    huge_pages="advise",
    settings={},
    mates=2,
    hidden={},
    costs=Costs(),
)
ELSEWHERE = replace(WELL, host="b", machine="b, 2 × Processor", mates=1)
MEASURED = Costs(hosts=Link(20, 1, "measured"))


def with_setting(name, value):
    return replace(WELL, settings={name: value})


def test_nothing_is_wrong_where_all_is_well():
    assert advice([WELL, WELL]) == []
    assert advice([replace(f, mates=1, costs=MEASURED) for f in (WELL, ELSEWHERE)]) == []


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([replace(WELL, mates=1)], "mpirun started 2 processes, but Open MPI 5.0.11 knows of 1"),
        ([replace(WELL, threads="funneled")] * 2, "thread level funneled"),
        (
            [WELL, replace(WELL, versions={"Python": "3.12.1"})],
            "pycomm is 0.1.0 on rank 0 and missing on rank 1 (a)",
        ),
        ([WELL, replace(WELL, mpi="MPICH 5")], "MPI is Open MPI 5.0.11 on rank 0 and MPICH 5 on"),
        ([with_setting("PYCOMM_TIMEOT", "3")] * 2, "did you mean PYCOMM_TIMEOUT?"),
        (
            [with_setting("PYCOMM_ORDER", "rank"), WELL],
            "PYCOMM_ORDER is 'rank' on rank 0 and not set on rank 1: give it to all hosts",
        ),
        (
            [replace(with_setting("PYCOMM_SHARED_MEMORY", "0"), mates=1)] * 2,
            "shared memory is off",
        ),
        ([replace(WELL, mates=3)] * 3, "a has 3 ranks on 2 cores"),
        ([replace(WELL, cores=(1,))] * 2, "a has 2 ranks on 1 core:"),
        (
            [replace(WELL, mates=1, hidden={1: "Permission denied"})] * 2,
            "the ranks on a do not share memory (Permission denied)",
        ),
        ([replace(WELL, mates=1), ELSEWHERE], "is a guess"),
    ],
)
def test_a_problem_is_found_and_said_once(ranks, expected):
    found = advice(ranks)
    assert [expected in text for text in found] == [True], found


def test_the_report_has_every_fact():
    ranks = [replace(f, costs=MEASURED, mates=1) for f in (WELL, ELSEWHERE)]
    ranks[0] = replace(ranks[0], settings={"PYCOMM_ORDER": "rank"})
    text = report(ranks, ["that"])
    for part in [
        "Python 3.12.1, pycomm 0.1.0",
        "MPI: Open MPI 5.0.11, thread level multiple",
        "ranks: 2 ranks on 2 hosts",
        "rank 0 on a, 2 × Processor",
        "rank 1 on b, 2 × Processor",
        "cores they may use: 0-1",
        "loops: avx2",
        "between hosts: 20 us a step + bytes / 1 GB/s, measured",
        "* PYCOMM_ORDER=rank: ",
        "  1. that",
        *(f"{name}=" for name in SETTINGS),
    ]:
        assert part in text


@pytest.mark.parametrize(
    ("numbers", "expected"), [([], ""), ([3], "3"), ([0, 1, 2, 5, 7, 8], "0-2,5,7-8")]
)
def test_spans(numbers, expected):
    assert spans(numbers) == expected
