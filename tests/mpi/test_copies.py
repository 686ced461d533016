"""How bytes are copied: past the caches, and straight from the memory of peers where it may be."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest

import pycomm
from pycomm import _native
from tests.mpi.test_all_to_all import incoming, outgoing, part, table
from tests.mpi.test_rooted import data, symmetric

NEVER, HUGE_PAGES, ALWAYS = range(3)
SOMETIMES = HUGE_PAGES
PAGE, PROT_NONE = 4096, 0


@pytest.fixture
def uncached() -> Iterator[None]:
    """Have everything copied past the caches."""
    before = _native.use_cache_bytes(0)
    yield
    _native.use_cache_bytes(before)


@pytest.fixture
def other(comm) -> Iterator[pycomm.Communicator]:
    """A communicator of one's own on shared memory."""
    other = comm.split(0)
    if not other._quick.quick_barrier():
        pytest.skip("there is no shared memory")
    yield other
    other.close()


@pytest.mark.parametrize("count", [0, 1, 63, 1009, 70_001])
@pytest.mark.parametrize("shift", [0, 1, 63])
def test_copies_past_the_caches_from_and_to_any_address(comm, uncached, count, shift):
    def at(x: np.ndarray) -> np.ndarray:
        memory = np.full(x.size + 128, 99, np.uint8)
        placed = memory[shift : shift + x.size].reshape(x.shape)
        placed[...] = x
        return placed

    root = count % comm.size
    everyone = np.stack([data(r, count, "uint8") for r in range(comm.size)])
    for where in (at, lambda x: symmetric(comm, at(x))):
        mine, whole = where(everyone[comm.rank]), where(np.zeros_like(everyone))
        assert np.array_equal(comm.all_gather(mine, whole), everyone)
        whole[...] = 0
        comm.gather(mine, root, whole)
        assert np.array_equal(whole, everyone if comm.rank == root else np.zeros_like(whole))
        x = where(everyone[root] if comm.rank == root else np.zeros(count, np.uint8))
        assert np.array_equal(comm.broadcast(x, root), everyone[root])
        part_of = where(np.zeros(count, np.uint8))
        assert np.array_equal(comm.scatter(where(everyone), root, part_of), everyone[comm.rank])
        sent, out = where(outgoing(comm, count, "uint8")), where(np.zeros_like(everyone))
        assert np.array_equal(comm.all_to_all(sent, out), incoming(comm, count, "uint8"))


@pytest.mark.parametrize("ways", [(NEVER,), (SOMETIMES,), (ALWAYS,), (ALWAYS, NEVER)])
@pytest.mark.parametrize("count", [100_003, 700_001])
def test_pieces_staged_past_the_caches_are_the_same(other, ways, count):
    """Of 4 bytes an element: two pieces and eleven; rank r stages them by ways[r]."""
    board, everyone = other._quick, [data(r, count, "float32") for r in range(other.size)]
    board.peer_reads, board.past_caches = NEVER, ways[other.rank % len(ways)]
    total = sum(everyone[1:], everyone[0].copy())
    for root in range(other.size):
        mine = everyone[other.rank].copy()
        assert np.array_equal(other.all_reduce(mine.copy()), total)
        x = mine.copy()
        other.reduce(x, root)
        assert np.array_equal(x, total if other.rank == root else mine)
        assert np.array_equal(other.all_gather(mine), np.stack(everyone))
        x = mine.copy()
        assert np.array_equal(other.broadcast(x, root), everyone[root])


@pytest.mark.parametrize("ways", [(NEVER,), (HUGE_PAGES,), (ALWAYS,), (ALWAYS, NEVER)])
def test_peers_are_read_only_where_all_agree_and_the_result_is_the_same(other, ways):
    """2 MiB a chunk; also with symmetric memory on some ranks, and uneven counts."""
    board, count = other._quick, 1 << 18
    board.peer_reads = ways[other.rank % len(ways)]
    for mixed in (False, True):
        x = outgoing(other, count)
        x = symmetric(other, x) if mixed and other.rank == 0 else x
        assert np.array_equal(other.all_to_all(x, np.zeros_like(x)), incoming(other, count))
        out = np.zeros((other.size, 2 * count), np.int64)
        other.all_gather(x.reshape(-1)[: 2 * count] if other.size > 1 else np.tile(x[0], 2), out)
        for r in range(other.size):
            assert np.array_equal(out[r, :count], part(r, 0, count))
    for root in range(other.size):
        x = outgoing(other, count // 2)
        out = np.zeros(count // 2, np.int64)
        out = symmetric(other, out) if other.rank % 2 else out
        other.scatter(x if other.rank == root else None, root, out)
        assert np.array_equal(out, part(root, other.rank, count // 2))
    counts = table(5, other.size, 600_000)
    x = np.concatenate([part(other.rank, r, c) for r, c in enumerate(counts[other.rank])])
    expected = [part(r, other.rank, c) for r, c in enumerate(counts[:, other.rank])]
    assert np.array_equal(other.all_to_all(x, None, counts[other.rank]), np.concatenate(expected))
    done = sum(other.all_gather_object(board.peer_reads_done))
    if ways == (NEVER,) or (len(ways) > 1 < other.size):
        assert done == 0
    if ways == (ALWAYS,) and other.size > 1 and may_read(other):
        assert done > 0


def may_read(comm: pycomm.Communicator) -> bool:
    """Say whether the system lets all ranks read each other: Yama may forbid it."""
    uio = ctypes.CDLL(None, use_errno=True).process_vm_readv
    secret, got = ctypes.c_uint64(comm.rank + 77), ctypes.c_uint64()
    ok = True
    for pid, address in comm.all_gather_object((os.getpid(), ctypes.addressof(secret))):
        here = (ctypes.c_uint64 * 2)(ctypes.addressof(got), 8)
        there = (ctypes.c_uint64 * 2)(address, 8)
        ok = uio(pid, here, 1, there, 1, 0) == 8 and ok
    return all(comm.all_gather_object(ok))


def test_a_read_that_is_refused_is_an_error_on_every_rank(other):
    """Of rank 1's memory, the page that rank 0 wants cannot be read."""
    if other.size == 1 or not may_read(other):
        pytest.skip("nothing is read")
    other._quick.peer_reads = ALWAYS
    memory = mmap.mmap(-1, other.size * (1 << 21))
    x = np.frombuffer(memory, np.uint8).reshape(other.size, -1)
    libc = ctypes.CDLL(None)
    address = ctypes.c_void_p(x.ctypes.data)
    if other.rank == 1:
        assert libc.mprotect(address, ctypes.c_size_t(PAGE), PROT_NONE) == 0
    refused = other.rank == 0
    error, text = (
        (pycomm.CommError, "cannot read the memory of rank 1: Bad address; PYCOMM_PEER_READS=never")
        if refused
        else (pycomm.DepartedError, "rank 0 has left")
    )
    with pytest.raises(error, match=text):
        other.all_to_all(x, np.zeros_like(x))
    with pytest.raises(pycomm.CommError, match="failed before"):
        other.barrier()
    libc.mprotect(address, ctypes.c_size_t(PAGE), mmap.PROT_READ | mmap.PROT_WRITE)
