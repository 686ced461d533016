"""More ranks than read each other's lines: collectives in groups, also on made-up sockets."""

from __future__ import annotations

import pytest

from tests.launch import mpirun

PROGRAM = """
import sys
import numpy as np
import pycomm
from pycomm.neighbours import Neighbours

if {grouped}:
    # As if each had a core.
    Neighbours.crowded = lambda self: False
    Neighbours.sockets = property(lambda self: {sockets}, lambda self, value: None)
comm = pycomm.init(timeout=60)
n, me = comm.size, comm.rank
for count in (3, 1000, 60000):
    ranks = [np.random.default_rng(r).standard_normal(count).astype(np.float32) for r in range(n)]
    mine, total = ranks[me], ranks[0].copy()
    for x in ranks[1:]:
        total += x
    symmetric = comm.empty(count, np.float32)
    symmetric[:] = mine
    assert comm.all_reduce(mine.copy()).tobytes() == total.tobytes()
    assert comm.all_reduce(symmetric).tobytes() == total.tobytes()
    assert (comm.broadcast(mine.copy(), root=17) == ranks[17]).all()
    assert (comm.all_gather(mine) == np.stack(ranks)).all()
    reduced = comm.reduce(mine.copy(), root=16)
    assert me != 16 or reduced.tobytes() == total.tobytes()
    gathered = comm.gather(mine, root=9)
    assert me != 9 or (gathered == np.stack(ranks)).all()
    scattered = comm.scatter(np.stack(ranks) if me == 8 else None, root=8)
    assert (scattered == mine).all()
    blocks = np.arange(n * 5).reshape(n, 5) + 1000 * me
    expected = np.stack([np.arange(5) + 5 * me + 1000 * r for r in range(n)])
    assert (comm.all_to_all(blocks) == expected).all()
    parts = comm.reduce_scatter(np.ones(n * 4) * me)
    assert (parts == n * (n - 1) / 2).all()
    comm.barrier()
try:
    comm.all_reduce(np.ones(4 if me == 13 else 5))
except pycomm.MismatchError as error:
    assert "rank 13" in str(error), error
    sys.stdout.write("told\\n")
"""


@pytest.mark.parametrize(
    ("grouped", "sockets"),
    [(False, None), (True, "[0, 1] * 9")],
    ids=["without groups", "two sockets in turn"],
)
def test_eighteen_ranks_do_every_collective(grouped, sockets):
    result = mpirun(18, "-c", PROGRAM.format(grouped=grouped, sockets=sockets), timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["told"] * 18
