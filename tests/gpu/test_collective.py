"""Kernels that meet, on one GPU: ranks are streams of this process, few blocks each have room."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gpu.device import cupy_or_skip

cupy = cupy_or_skip()

from pycomm.kernels.cuda_collective import BOARD_BYTES, CollectiveKernels, Group  # noqa: E402
from pycomm.kernels.cuda_launcher import CupyLauncher  # noqa: E402
from pycomm.types import DTYPES, SUM  # noqa: E402
from tests.algorithms.reference import random_inputs  # noqa: E402
from tests.cuda.test_reduce import on_cpu  # noqa: E402

COUNT = 5003
STEPS = 40


class Ranks:
    """The ranks of one group, and the board, the stream and the host's word of each."""

    def __init__(self, size: int, patience_s: float = 5.0, blocks: int = 4):
        self.size = size
        self.streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(size)]
        self.launcher = CupyLauncher(stream=lambda: self.current.ptr)
        self.current = self.streams[0]
        self._boards = [cupy.zeros(BOARD_BYTES, np.uint8) for _ in range(size)]
        self.late = [
            np.frombuffer(cupy.cuda.alloc_pinned_memory(8), np.uint64, 1) for _ in range(size)
        ]
        boards = tuple(board.data.ptr for board in self._boards)
        groups = []
        for rank, late in enumerate(self.late):
            late[0] = 0
            groups.append(Group(rank, boards, patience_s, late.ctypes.data, blocks))
        self.kernels = [CollectiveKernels(self.launcher, group) for group in groups]
        cupy.cuda.Device().synchronize()

    def each(self, body) -> None:
        """Let every rank enqueue `body` on its stream."""
        for rank, stream in enumerate(self.streams):
            self.current = stream
            with stream:
                body(rank, self.kernels[rank])

    def finish(self) -> None:
        """Wait for all streams."""
        for stream in self.streams:
            stream.synchronize()


def two_shots(kernels, rank: int, arrays, dtype) -> None:
    """Reduce this rank's share of all arrays into all of them."""
    size, item = len(arrays), dtype.itemsize
    low, high = (COUNT * k // size for k in (rank, rank + 1))
    mine = [array.data.ptr + low * item for array in arrays]
    kernels.reduce(mine, mine, high - low, -(-COUNT // size), dtype, SUM)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "int8"])
def test_both_shots_add_in_rank_order_what_is_there_just_in_time(size, name):
    """Every source is written right before its launch, and overwritten right after."""
    dtype = DTYPES[name]
    parts = [random_inputs(size, COUNT, dtype, seed) for seed in range(4)]
    expected = [on_cpu(part, dtype, SUM) for part in parts]
    inputs = [[cupy.asarray(np.ascontiguousarray(x).view(np.uint8)) for x in p] for p in parts]
    nbytes = COUNT * dtype.itemsize
    sources = [cupy.zeros(nbytes, np.uint8) for _ in range(size)]
    results = [cupy.zeros((2, STEPS, nbytes), np.uint8) for _ in range(size)]

    def enqueue(ranks: Ranks, k: int) -> None:
        def once(rank: int, kernels) -> None:
            source = sources[rank]
            source[...] = inputs[k % 4][rank]
            kernels.all_reduce(source.data.ptr, source.data.ptr, COUNT, dtype, SUM)
            results[rank][0, k] = source
            source[...] = inputs[k % 4][rank]
            two_shots(kernels, rank, sources, dtype)
            results[rank][1, k] = source
            source.fill(0xA5)

        ranks.each(once)

    alone = Ranks(1)  # loads the kernels: no stream waits for another one meanwhile
    alone.each(lambda rank, kernels: two_shots(kernels, 0, sources[:1], dtype))
    alone.finish()
    ranks = Ranks(size)
    ranks.launcher._functions.update(alone.launcher._functions)
    for k in range(STEPS):
        enqueue(ranks, k)
    ranks.finish()
    assert not any(late[0] for late in ranks.late)
    for rank in range(size):
        for k in range(STEPS):
            for shot in range(2):
                got = cupy.asnumpy(results[rank][shot, k])
                assert np.array_equal(got, expected[k % 4]), (rank, k, shot)


def test_a_rank_that_does_not_come_is_told_to_the_host():
    ranks = Ranks(2, patience_s=0.05)
    x = cupy.ones(COUNT, np.float32)
    ranks.current = ranks.streams[0]
    two_shots(ranks.kernels[0], 0, [x, x], DTYPES["float32"])
    ranks.finish()
    assert [int(late[0]) for late in ranks.late] == [2, 0]
    assert bool((x == 1).all())


def test_a_graph_goes_on_where_the_last_launch_ended():
    ranks, stream = Ranks(1), cupy.cuda.Stream(non_blocking=True)
    ranks.current = stream
    x = cupy.ones(COUNT, np.float32)
    address = x.data.ptr
    ranks.kernels[0].all_reduce(address, address, COUNT, DTYPES["float32"], SUM)
    stream.synchronize()
    with stream:
        stream.begin_capture()
        ranks.kernels[0].all_reduce(address, address, COUNT, DTYPES["float32"], SUM)
        graph = stream.end_capture()
    for _ in range(3):
        graph.launch(stream)
    stream.synchronize()
    assert not ranks.late[0][0] and bool((x == 1).all())
