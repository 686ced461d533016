"""views: the symmetric buffers of all ranks, mapped on each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pycomm.errors import ArgumentError, UnsupportedError


@pytest.fixture
def shared(comm):
    if comm.size > 1 and not comm.config.shared_memory:
        pytest.skip("no shared memory")
    return comm


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.float64, torch.bfloat16])
def test_all_ranks_see_what_each_writes(shared, dtype) -> None:
    comm = shared
    x = comm.empty((3, 1000), dtype)
    x[...] = comm.rank
    views = comm.views(x)
    assert views[comm.rank] is x
    comm.barrier()
    for rank, view in enumerate(views):
        assert type(view) is type(x) and view.dtype == x.dtype and tuple(view.shape) == (3, 1000)
        assert bool((view[0] == rank).all())
        view[1 + (comm.rank > 0), comm.rank] = 100 + comm.rank
    comm.barrier()
    for rank in range(comm.size):
        assert float(x[1 + (rank > 0), rank]) == 100 + rank


def test_part_of_a_buffer(shared) -> None:
    comm = shared
    x = comm.empty((4, 512), "int32")
    x[...] = comm.rank
    part = comm.views(x[2])
    comm.barrier()
    part[(comm.rank + 1) % comm.size][...] = 10 + comm.rank
    comm.barrier()
    assert (x[2] == 10 + (comm.rank - 1) % comm.size).all()
    assert (x[1] == comm.rank).all() and (x[3] == comm.rank).all()


def test_collectives_take_views(shared) -> None:
    comm = shared
    x = comm.empty(5000, "float64")
    mine = comm.views(x)[comm.rank]
    mine[...] = comm.rank + 1
    comm.all_reduce(mine)
    assert (x == comm.size * (comm.size + 1) // 2).all()


def test_of_no_elements(shared) -> None:
    assert [v.shape for v in shared.views(shared.empty((0, 3)))] == [(0, 3)] * shared.size


def test_ordinary_memory_of_one_rank_is_refused_on_all(shared) -> None:
    comm = shared
    if comm.size == 1:
        assert len(comm.views(np.ones(3))) == 1
        return
    x = np.ones(64) if comm.rank == comm.size - 1 else comm.empty(64, "float64")
    with pytest.raises(ArgumentError, match=f"rank {comm.size - 1} passes memory that others"):
        comm.views(x)


def test_of_several_shapes(shared) -> None:
    comm = shared
    mine = comm.empty((comm.rank, 2), f"float{32 << (comm.rank % 2)}")
    mine[...] = comm.rank
    views = comm.views(mine)
    comm.barrier()
    assert [v.shape for v in views] == [(rank, 2) for rank in range(comm.size)]
    assert [v.itemsize for v in views] == [4 << (rank % 2) for rank in range(comm.size)]
    assert all((v == rank).all() for rank, v in enumerate(views))
    comm.barrier()


def test_without_shared_memory(comm) -> None:
    if comm.size == 1 or comm.config.shared_memory:
        return
    with pytest.raises(UnsupportedError, match=r"use comm\.local"):
        comm.views(comm.empty(4))
