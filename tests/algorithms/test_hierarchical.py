"""Several ranks on each of several hosts: the order of sums, the bytes, and when it is chosen."""

from __future__ import annotations

import numpy as np
import pytest

from pycomm.algorithms.hierarchical import all_reduce as hierarchical
from pycomm.algorithms.registry import find
from pycomm.errors import ArgumentError
from pycomm.transport.base import counterparts
from pycomm.transport.job import Job
from pycomm.transport.threads import run_threads
from pycomm.tuning import Tuning
from pycomm.types import DTYPES, ReduceOp, resolve_op

from . import harness
from .harness import layered, name, options
from .reference import CASES, by_host, random_inputs, rank_order

LAYOUTS = {
    "two of two": [0, 0, 1, 1],
    "dealt": [5, 3, 5, 3],
    "two of three": [0, 0, 0, 1, 1, 1],
    "three of two": [0, 1, 1, 2, 2, 0],
}

all_reduces = pytest.mark.parametrize("algorithm", layered("all_reduce"), ids=name)
layouts = pytest.mark.parametrize("hosts", LAYOUTS.values(), ids=LAYOUTS.keys())


def grouped(hosts, inputs):
    """Return the inputs of each host, hosts in the order of their first rank."""
    numbers = dict.fromkeys(hosts)
    return [[x for x, h in zip(inputs, hosts, strict=True) if h == host] for host in numbers]


def check(algorithm, hosts, count, cases, delays=None, **options):
    """All-reduce every case and compare the bytes on each rank with the reference."""
    inputs = [random_inputs(len(hosts), count, dtype) for dtype, _ in cases]

    def body(transport, rank):
        return [
            harness.all_reduce(algorithm.run, transport, x[rank], op, **options)
            for x, (_, op) in zip(inputs, cases, strict=True)
        ]

    results = run_threads(len(hosts), body, delays=delays, hosts=hosts)
    for i, (dtype, op) in enumerate(cases):
        expected = by_host(grouped(hosts, inputs[i]), dtype, op)
        for rank, result in enumerate(results):
            assert result[i].tobytes() == expected.tobytes(), (dtype.name, op, rank)


@all_reduces
@layouts
@pytest.mark.parametrize("count", [0, 1, 5, 64])
def test_every_operation(algorithm, hosts, count):
    check(algorithm, hosts, count, CASES)


@all_reduces
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("segment_bytes", [1, 12, 100])
def test_segments_and_delays_change_nothing(algorithm, seed, segment_bytes):
    cases = [(DTYPES[d], resolve_op("avg", DTYPES[d])) for d in ("float32", "bfloat16")]
    check(algorithm, [0, 0, 1, 1], 61, cases, delays=seed, **options(algorithm, segment_bytes))


def test_the_order_can_be_told_from_rank_order():
    dtype = DTYPES["float32"]
    op, inputs = resolve_op("sum", dtype), random_inputs(4, 999, dtype)
    nested = by_host(grouped([0, 0, 1, 1], inputs), dtype, op)
    assert nested.tobytes() != rank_order(inputs, (), dtype, op).tobytes()


@layouts
def test_bytes_between_hosts_are_those_registered(hosts):
    """What is sent is counted; what stays on a host is a pairwise all_reduce there."""
    algorithm, within, count = (
        find("all_reduce", "hierarchical"),
        find("all_reduce", "pairwise"),
        60,
    )
    ranks, number = len(hosts), len(set(hosts))

    def body(transport, rank):
        x = np.arange(count, dtype=np.int32)
        harness.all_reduce(algorithm.run, transport, x, ReduceOp("sum"))
        steps, wire_bytes = algorithm.cost(transport, x.nbytes)
        local = transport.local.size
        bytes_within = within.wire_bytes(local, x.nbytes)
        assert transport.sent_bytes == wire_bytes + bytes_within
        assert transport.messages == steps - 2 + within.steps(local, x.nbytes)
        return wire_bytes

    a_host = run_threads(ranks, body, hosts=hosts)[0] * ranks / number
    assert a_host == 2 * (number - 1) / number * count * 4


def chosen(hosts, nbytes, name=None, order=None):
    """Return the name of the algorithm chosen for an all_reduce on such hosts."""
    return run_threads(
        len(hosts),
        lambda t, rank: Tuning().choose("all_reduce", t, nbytes, name, order).algorithm.name,
        hosts=hosts,
    )[0]


@pytest.mark.parametrize(
    ("hosts", "small", "large"),
    [
        ([0, 0, 1, 1], "hierarchical_gather", "hierarchical"),
        ([0, 1, 0, 1], "hierarchical_gather", "hierarchical"),
        ([0, 0, 1], "ring_gather", "ring"),
        ([0, 1, 2], "ring_gather", "ring"),
    ],
)
def test_hosts_decide_the_order_and_size_the_algorithm(hosts, small, large):
    assert [chosen(hosts, 4), chosen(hosts, 1 << 25)] == [small, large]
    assert [chosen(hosts, 4, order="rank"), chosen(hosts, 1 << 25, order="rank")] == [
        "gather",
        "pairwise",
    ]
    assert chosen(hosts, 4, name="ring") == "ring"


def test_by_name_it_says_what_it_needs():
    needs = "'hierarchical' on 3 ranks needs several hosts with the same number of ranks"
    with pytest.raises(ArgumentError, match=needs):
        chosen([0, 0, 1], 4, name="hierarchical")
    with pytest.raises(ArgumentError, match="rank 0 of 1: this needs several hosts"):
        run_threads(1, lambda t, rank: hierarchical(t, None, Job("all_reduce", DTYPES["int8"])))


@pytest.mark.parametrize(
    ("hosts", "rank", "expected"),
    [
        ("aabb", 3, ([2, 3], [1, 3])),
        ("baba", 3, ([1, 3], [2, 3])),
        ("abcabc", 0, ([0, 3], [0, 1, 2])),
        ("aaaa", 0, None),
        ("abcd", 0, None),
        ("aaab", 0, None),
        ("a", 0, None),
    ],
)
def test_counterparts_have_one_number_on_every_host(hosts, rank, expected):
    assert counterparts(hosts, rank) == expected
