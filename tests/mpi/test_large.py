"""More than 2³¹ elements: what counts is the far end of the array."""

from __future__ import annotations

import numpy as np
import pytest

COUNT = 2**31 + 3
PLACES = [0, 1, 2**30, 2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, COUNT - 1]
"""Where a count or an offset of 32 bits would show."""

NEEDED_BYTES = 10 << 30
"""Both ranks hold an ordinary and a symmetric array."""


@pytest.fixture
def two_ranks_with_memory(comm):
    """Skip unless there are 2 ranks, and memory for them."""
    if comm.size != 2:
        pytest.skip("large arrays are tested on 2 ranks only")
    with open("/proc/meminfo") as file:
        sizes = dict(line.split(":") for line in file)
    available = min(comm.all_gather_object(int(sizes["MemAvailable"].split()[0]) << 10))
    if available < NEEDED_BYTES:
        pytest.skip(f"needs {NEEDED_BYTES >> 30} GiB of memory, {available >> 30} are available")


def fill(x: np.ndarray, rank: int) -> None:
    """Write the rank everywhere, and other numbers at PLACES."""
    x.fill(rank + 1)
    x[PLACES] = np.arange(len(PLACES)) * (rank + 2)


def holds(x: np.ndarray, elsewhere: int, factor: int) -> bool:
    """Say whether PLACES hold multiples of their number, and the rest (as a sample) `elsewhere`."""
    sample = x[3::65_537]
    return (x[PLACES] == np.arange(len(PLACES)) * factor).all() and (sample == elsewhere).all()


def test_more_than_2_31_elements(comm, two_ranks_with_memory):
    x, symmetric = np.empty(COUNT, np.int8), comm.empty(COUNT, "int8")
    for y in (x, symmetric):
        fill(y, comm.rank)
        comm.all_reduce(y)
        assert holds(y, 3, 5)
    fill(x, comm.rank)
    comm.broadcast(x, 1)
    assert holds(x, 2, 3)
    fill(x, comm.rank)
    if comm.rank == 0:
        comm.send(x, 1)
    else:
        assert comm.recv(0, out=x) is x and holds(x, 1, 2)
    fill(x, comm.rank)
    first = [2**31 - 1, 4]
    for counts in (first, first[::-1]):
        part, begin = symmetric[: counts[comm.rank]], sum(counts[: comm.rank])
        comm.reduce_scatter(x, out=part, counts=counts)
        mine = [(i - begin, n) for n, i in enumerate(PLACES) if begin <= i < begin + part.size]
        assert all(part[i] == 5 * n for i, n in mine)
