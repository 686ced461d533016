"""Kernels of several ranks that meet: the bytes of `reduce`, whoever is late, and errors."""

from __future__ import annotations

import random
import re
import time

import numpy as np
import pytest

from pycomm.errors import UnsupportedError
from pycomm.kernels import cuda_collective
from pycomm.kernels.cuda_collective import BOARD_BYTES, Group
from pycomm.types import DTYPES, SUM, DType, ReduceOp
from tests.algorithms.reference import operations, random_inputs
from tests.cuda.host import ROOT
from tests.cuda.ranks import Ranks, aligned, pause
from tests.cuda.test_reduce import alignment, every_dtype, on_cpu

F32 = DTYPES["float32"]
GARBAGE = 0xA5


def raw(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def put(x: np.ndarray, residue: int = 0) -> np.ndarray:
    array = aligned(x.nbytes, residue)
    array[:] = raw(x)
    return array


def at(array: np.ndarray, nbytes: int = 0) -> int:
    return int(array.ctypes.data) + nbytes


def shares(count: int, size: int) -> list[tuple[int, int]]:
    edges = [count * k // size for k in range(size + 1)]
    return list(zip(edges, edges[1:]))


def two_shots(kernels, rank: int, arrays: list[np.ndarray], dtype: DType, op: ReduceOp) -> None:
    """Reduce this rank's share of all arrays into all of them."""
    count, size = arrays[0].nbytes // dtype.itemsize, len(arrays)
    low, high = shares(count, size)[rank]
    mine = [at(array, low * dtype.itemsize) for array in arrays]
    kernels.reduce(mine, mine, high - low, -(-count // size), dtype, op)


def one_shot(arrays: list[np.ndarray]):
    """Return what each rank does to sum arrays of float32 in place."""

    def body(rank: int, kernels) -> None:
        mine = at(arrays[rank])
        kernels.all_reduce(mine, mine, arrays[rank].nbytes // 4, F32, SUM)

    return body


@every_dtype
@pytest.mark.parametrize("size", [2, 3])
def test_one_shot_and_two_have_the_bits_of_reduce(dtype: DType, size: int):
    ranks = Ranks(size)
    for op in operations(dtype):
        for count in (1, 1021) if size == 2 else (0, 700):
            parts = random_inputs(size, count, dtype)
            once, twice, expected = [*map(put, parts)], [*map(put, parts)], on_cpu(parts, dtype, op)

            def both(rank, kernels, once=once, twice=twice, count=count, op=op):
                mine = at(once[rank])
                kernels.all_reduce(mine, mine, count, dtype, op)
                two_shots(kernels, rank, twice, dtype, op)

            ranks.run(both)
            for array in (*once, *twice):
                assert np.array_equal(array, expected), (op, count)


@every_dtype
def test_arrays_at_every_alignment(dtype: DType):
    size, op, step = 2, operations(dtype)[0], alignment(dtype)
    ranks = Ranks(size, blocks=3)
    for residue in range(0, 16, step):
        parts = random_inputs(size, 1500, dtype)
        arrays = [put(x, (residue + rank * step) % 16) for rank, x in enumerate(parts)]
        outs = [aligned(parts[0].nbytes, (residue + 3 * step) % 16) for _ in parts]

        def both(rank, kernels, arrays=arrays, outs=outs):
            kernels.all_reduce(at(arrays[rank]), at(outs[rank]), 1500, dtype, op)
            two_shots(kernels, rank, arrays, dtype, op)

        ranks.run(both)
        expected = on_cpu(parts, dtype, op)
        for array in (*arrays, *outs):
            assert np.array_equal(array, expected), residue


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_one_shot_up_to_the_slots(blocks: int):
    ranks = Ranks(2, blocks)
    most = ranks.kernels[0].group.one_shot_bytes
    for nbytes in (most // 2, most // 2 + 4, most - 4, most):
        parts = random_inputs(2, nbytes // 4, F32)
        arrays = [*map(put, parts)]
        ranks.run(one_shot(arrays))
        assert np.array_equal(arrays[0], on_cpu(parts, F32, SUM))
        assert np.array_equal(arrays[0], arrays[1])
    assert all(0 < grid <= blocks for _, grid in ranks.launchers[0].launches)


class Sequence:
    """Random collectives, one after the other; what their sources hold is there just in time.

    Every rank writes its source right before its launch, and overwrites it right after: the
    kernel's meetings alone keep that from being seen.
    """

    def __init__(self, size: int, seed: int, steps: int):
        self.size = size
        draw = random.Random(seed)
        kinds = ["one shot", "two shots", "reduce_scatter", "all_gather", "broadcast", "all_to_all"]
        self.steps = [(draw.choice(kinds), draw.choice([1, 7, 300, 2500])) for _ in range(steps)]
        self.inputs = [random_inputs(size, size * n, F32, k) for k, (_, n) in enumerate(self.steps)]
        self.sources = [[aligned(4 * size * n) for _ in range(size)] for _, n in self.steps]
        self.targets = [[aligned(4 * size * n) for _ in range(size)] for _, n in self.steps]
        self.seed = seed

    def run(self, rank: int, kernels) -> None:
        draw = random.Random(100 * self.seed + rank)
        for k, (kind, _) in enumerate(self.steps):
            pause(draw)
            source, target = self.sources[k][rank], self.targets[k][rank]
            source[:] = raw(self.inputs[k][rank])
            self.launch(kind, k, rank, kernels)
            if kind == "two shots":
                target[:] = source
            source[:] = GARBAGE

    def launch(self, kind: str, k: int, rank: int, kernels) -> None:
        rows, size = self.steps[k][1], self.size
        sources, target, chunk = self.sources[k], self.targets[k][rank], 4 * self.steps[k][1]
        if kind == "one shot":
            kernels.all_reduce(at(sources[rank]), at(target), size * rows, F32, SUM)
        elif kind == "two shots":
            two_shots(kernels, rank, sources, F32, SUM)
        elif kind == "reduce_scatter":
            inputs = [at(source, rank * chunk) for source in sources]
            kernels.reduce(inputs, [at(target)], rows, rows, F32, SUM)
        elif kind == "broadcast":
            root = k % size
            copies = [(at(target), at(sources[root]), size * chunk)] if rank != root else []
            kernels.copy(copies, size * chunk)
        else:
            begin = rank * chunk if kind == "all_to_all" else 0
            copies = [(at(target, r * chunk), at(sources[r], begin), chunk) for r in range(size)]
            kernels.copy(copies, size * chunk)

    def expected(self, k: int, rank: int) -> np.ndarray:
        (kind, rows), parts = self.steps[k], self.inputs[k]
        cut = slice(rank * rows, (rank + 1) * rows)
        if kind in ("one shot", "two shots"):
            return on_cpu(parts, F32, SUM)
        if kind == "reduce_scatter":
            chunk = on_cpu([part[cut] for part in parts], F32, SUM)
            return np.append(chunk, np.zeros((self.size - 1) * rows * 4, np.uint8))
        if kind == "broadcast":
            root = k % self.size
            return raw(parts[root]) if rank != root else np.zeros(4 * self.size * rows, np.uint8)
        cut = cut if kind == "all_to_all" else slice(0, rows)
        return raw(np.concatenate([part[cut] for part in parts]))


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("blocks", [1, 3])
def test_any_sequence_whoever_is_late(size: int, blocks: int):
    sequence = Sequence(size, seed=size + 10 * blocks, steps=60)
    Ranks(size, blocks).run(sequence.run)
    for k, step in enumerate(sequence.steps):
        for rank in range(size):
            assert np.array_equal(sequence.targets[k][rank], sequence.expected(k, rank)), (k, step)


def test_meetings_alone():
    """What was written before a meeting of all is seen after it."""
    ranks, seen = Ranks(3), np.zeros((3, 20), int)

    def meet(rank, kernels):
        draw = random.Random(rank)
        for k in range(20):
            pause(draw)
            seen[rank, k] = 1
            kernels.meet()
            assert seen[:, k].all()

    ranks.run(meet)


@pytest.mark.parametrize("size", [2, 3])
def test_a_rank_that_does_not_come_is_named_and_nothing_is_written(size: int):
    ranks = Ranks(size, patience_s=0.05)
    x = [put(np.ones(1000, np.float32)) for _ in range(size)]
    for rank in range(size - 1):
        start = time.monotonic()
        two_shots(ranks.kernels[rank], rank, x, F32, SUM)
        first, start = time.monotonic() - start, time.monotonic()
        assert 0.05 <= first < 5 and (x[rank].view("f4") == 1).all()
        named = int(ranks.late[rank][0]) - 1
        assert named in range(rank + 1, size)
        one_shot(x)(rank, ranks.kernels[rank])
        ranks.kernels[rank].meet()
        assert time.monotonic() - start < 0.05, "a rank that has given up waits no more"


def test_who_comes_after_the_others_gave_up_is_not_left_waiting():
    ranks = Ranks(2, patience_s=0.05)
    x = [put(np.ones(64, np.float32)) for _ in range(2)]
    for rank in range(2):
        two_shots(ranks.kernels[rank], rank, x, F32, SUM)
    assert [int(late[0]) for late in ranks.late] == [2, 1]


def test_the_constants_are_those_of_the_header():
    text = (ROOT / "csrc" / "cuda" / "meet.h").read_text()
    found = dict(re.findall(r"constexpr int k(\w+) = (\d+);", text))
    names = {"MostRanks": "MOST_RANKS", "MostBlocks": "MOST_BLOCKS", "SlotBytes": "SLOT_BYTES"}
    for name, ours in names.items():
        assert int(found[name]) == getattr(cuda_collective, ours)
    most, slot = int(found["MostRanks"]), int(found["SlotBytes"])
    assert int(found["MostBlocks"]) * (128 + 16 * most + 2 * slot) == BOARD_BYTES
    assert "sizeof(Board) == 128 + 2 * sizeof(uint64_t) * kMostRanks + 2 * kSlotBytes" in text


def test_operations_of_the_user_are_refused():
    group = Group(0, (0, 0), 1.0, 0, 2)
    kernels = cuda_collective.CollectiveKernels(Ranks(1).launchers[0], group)
    with pytest.raises(UnsupportedError, match="user's operation"):
        kernels.reduce([0, 0], [0], 1, 1, F32, ReduceOp("add#1"))
