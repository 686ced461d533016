"""Segments of device arrays: what goes down to the host and up again, element by element."""

from __future__ import annotations

import numpy as np
import pytest

from pycomm.algorithms.ring import chunk_counts
from pycomm.arrays import NOTHING, view
from pycomm.transport.device_segments import Segment, chunks_down, chunks_up, on_host
from pycomm.transport.job import Job
from pycomm.types import DTYPES

UNEVEN = (5, 0, 12, 1)


def cut(chunks, step):
    """Return the segments of `step` elements of every chunk."""
    return [Segment(k, k + step) for k in range(0, max(chunks, default=0), step)]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("chunks", [(), (0,), (9,), UNEVEN, (4, 4, 4)])
def test_every_element_goes_once_and_a_segment_has_no_gaps(step, chunks):
    seen = []
    for segment in cut(chunks, step):
        runs = segment.runs(chunks)
        inside = [run.in_segment + i for run in runs for i in range(run.elements)]
        assert inside == list(range(sum(segment.of(chunks))))
        seen += [run.in_array + i for run in runs for i in range(run.elements)]
    assert sorted(seen) == list(range(sum(chunks)))


def test_whole_chunks_that_follow_each_other_are_one_copy():
    assert Segment(0, 12).runs(UNEVEN) == [(0, 0, 18)]
    assert Segment(0, 6).runs((6, 6, 6)) == [(0, 0, 18)]
    assert Segment(0, 4).runs((6, 6)) == [(0, 0, 4), (6, 4, 4)]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 17, 100])
@pytest.mark.parametrize("step", [1, 3, 8])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_the_chunks_of_a_segment_are_those_of_its_own_count(count, step, ranks):
    """So that a sum that is ordered by chunks is the same in a segment as in the whole array."""
    parts = chunk_counts(count, ranks)
    for segment in cut(parts, step):
        taken = segment.of(parts)
        assert taken == chunk_counts(sum(taken), ranks)


def job(kind: str, **more) -> Job:
    x = view(np.zeros(18))
    return Job(kind, DTYPES["float64"], x, x, root=1, **more)


KINDS = {
    # kind: the chunks of rank 0 and of rank 1, the root: down, up
    "all_reduce": (((18,), (18,)), ((18,), (18,))),
    "reduce": (((18,), ()), ((18,), (18,))),
    "broadcast": (((), (18,)), ((18,), ())),
    "all_gather": (((5,), UNEVEN), ((0,), UNEVEN)),
    "gather": (((5,), ()), ((0,), UNEVEN)),
    "reduce_scatter": ((UNEVEN, (5,)), (UNEVEN, (0,))),
    "scatter": (((), (5,)), (UNEVEN, (0,))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_down_and_up(kind):
    counts = () if kind in ("all_reduce", "reduce", "broadcast") else UNEVEN
    of = job(kind, counts=counts)
    got = tuple((chunks_down(of, r, (18,)), chunks_up(of, r, (18,))) for r in range(2))
    assert got == KINDS[kind]


def test_an_all_to_all_sends_rows_and_receives_columns():
    sent = ((1, 2), (3, 4))
    of = job("all_to_all", counts=sent[1], sent=sent)
    assert chunks_down(of, 1, (18,)) == (3, 4) and chunks_up(of, 1, (18,)) == (2, 4)
    even = job("all_to_all", counts=(9, 9))
    assert chunks_down(even, 0, (18,)) == chunks_up(even, 0, (18,)) == (9, 9)


def test_the_hosts_collective_of_a_segment():
    source, target = np.zeros(64, np.uint8), np.zeros(64, np.uint8)
    memory = (18,), Segment(1, 4), source, target
    one = on_host(job("reduce_scatter", counts=UNEVEN), 2, *memory)
    assert one.counts == (3, 0, 3, 0) and (one.input.count, one.output.count) == (6, 3)
    assert one.input.address == source.ctypes.data and one.output.address == target.ctypes.data
    same = on_host(job("all_reduce"), 0, *memory)
    assert same.input is same.output and same.input.count == 3 and same.input.bytes.size == 24
    assert on_host(job("reduce"), 0, *memory).output is NOTHING
    assert on_host(job("reduce"), 1, *memory).output.count == 3
    assert on_host(job("broadcast"), 0, *memory).input is NOTHING
    sent = ((1, 2), (3, 4))
    rows = on_host(job("all_to_all", counts=sent[1], sent=sent), 1, *memory)
    assert rows.sent == ((0, 1), (2, 3)) and rows.counts == (2, 3)
