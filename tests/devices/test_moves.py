"""The schedules of device collectives: every element moved once, by numbers alone."""

from __future__ import annotations

import pytest

from pycomm.arrays import View
from pycomm.transport.device_moves import Copy, Cut, Reduce, Round, chunks_of, cut, moves
from pycomm.transport.job import Job
from pycomm.types import DTYPES

F64 = DTYPES["float64"]
OUT = 1_000_000


def view(count: int, address: int = 0) -> View:
    return View(None, F64, count, address, device=0)


def whole(size: int, longest: int, launchers: list[int]) -> Round:
    """All in one round; rank r's source is at 10 000·(r + 1), a chunk follows after 1 000 bytes."""
    return Round(size, 0, longest, lambda r, c: 10_000 * (r + 1) + 1000 * c, launchers)


def test_an_all_reduce_is_shared_out_by_lines():
    job = Job("all_reduce", F64, view(200), view(200))
    now = whole(3, 200, [0, 2])
    first, none, last = (moves(job, rank, now) for rank in range(3))
    assert first == [Reduce([10_000, 20_000, 30_000], [10_000, 20_000, 30_000], 128)]
    assert none == []
    assert last == [Reduce([11_024, 21_024, 31_024], [11_024, 21_024, 31_024], 72)]


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000, 4097])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_shares_of_an_all_reduce_cover_every_element_once(count, ranks):
    job = Job("all_reduce", F64, view(count), view(count))
    now = whole(ranks, count, list(range(ranks)))
    covered = []
    for rank in range(ranks):
        for move in moves(job, rank, now):
            start = (move.sources[0] - 10_000) // 8
            covered += range(start, start + move.elements)
    assert covered == list(range(count))


def test_later_rounds_go_on_where_the_last_one_ended():
    job = Job("all_gather", F64, view(5), view(15, OUT), (5, 7, 3))
    now = Round(3, 4, 8, lambda r, c: 100 * (r + 1), [])
    assert moves(job, 0, now) == [Copy(OUT + 32, 100, 8), Copy(OUT + 72, 200, 24)]


def test_each_rank_pulls_its_part_of_an_all_to_all():
    sent = ((1, 2), (3, 4))
    jobs = [Job("all_to_all", F64, view(3), view(4, OUT), sent[r], sent=sent) for r in range(2)]
    now = whole(2, 4, [])
    assert moves(jobs[0], 0, now) == [Copy(OUT, 10_000, 8), Copy(OUT + 8, 20_000, 24)]
    assert moves(jobs[1], 1, now) == [Copy(OUT, 11_000, 16), Copy(OUT + 16, 21_000, 32)]
    assert [chunks_of(jobs[0], r) for r in range(2)] == [(1, 2), (3, 4)]
    assert cut(jobs[0], 2, 4096) == Cut([(1, 2), (3, 4)], [(0, 1, 3), (0, 3, 7)], 4, 2048, 256)


def test_only_the_roots_source_is_read():
    job = Job("scatter", F64, view(6), view(3, OUT), (3, 3), root=1)
    assert [chunks_of(job, r) for r in range(2)] == [(), (3, 3)]
    assert moves(job, 0, whole(2, 3, [])) == [Copy(OUT, 20_000, 24)]
    job = Job("reduce", F64, view(3), view(3, OUT), root=1)
    assert moves(job, 0, whole(2, 3, [])) == []
    assert moves(job, 1, whole(2, 3, [])) == [Reduce([10_000, 20_000], [OUT], 3)]
