"""broadcast, all_gather and barrier: every algorithm moves the bytes, and only where it should."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pycomm.algorithms.recursive import all_gather as bruck
from pycomm.transport.threads import run_threads
from pycomm.types import DTYPES

from . import harness
from .harness import name, portable
from .reference import DTYPE_NAMES, random_inputs

RANKS = range(1, 7)
COUNTS = [0, 1, 2, 7, 13, 64, 65537]


@pytest.mark.parametrize("algorithm", portable("broadcast"), ids=name)
@pytest.mark.parametrize("ranks", RANKS)
def test_broadcast_every_root(algorithm, ranks):
    inputs = [random_inputs(ranks, c, DTYPES[d]) for c in COUNTS for d in DTYPE_NAMES]

    def body(transport, rank):
        return [
            harness.broadcast(algorithm.run, transport, x[rank], i % ranks)
            for i, x in enumerate(inputs)
        ]

    for result in run_threads(ranks, body):
        for i, (got, x) in enumerate(zip(result, inputs, strict=True)):
            assert got.tobytes() == x[i % ranks].tobytes()


@pytest.mark.parametrize("algorithm", portable("broadcast"), ids=name)
@pytest.mark.parametrize("root", RANKS)
def test_broadcast_segments_delayed(algorithm, root):
    x = random_inputs(7, 13, DTYPES["int32"])
    results = run_threads(
        7,
        lambda t, rank: harness.broadcast(algorithm.run, t, x[rank], root, segment_bytes=5),
        delays=root,
    )
    assert all(got.tobytes() == x[root].tobytes() for got in results)


@pytest.mark.parametrize("algorithm", portable("all_gather"), ids=name)
@pytest.mark.parametrize("ranks", RANKS)
def test_all_gather_equal_counts(algorithm, ranks):
    inputs = [random_inputs(ranks, c, DTYPES[d]) for c in COUNTS for d in DTYPE_NAMES]

    def body(transport, rank):
        return [
            harness.all_gather(algorithm.run, transport, x[rank], (x[rank].size,) * ranks)
            for x in inputs
        ]

    for result in run_threads(ranks, body):
        for got, x in zip(result, inputs, strict=True):
            assert got.tobytes() == np.concatenate(x).tobytes()


@pytest.mark.parametrize("algorithm", portable("all_gather"), ids=name)
@pytest.mark.parametrize("counts", [(0, 5, 1, 0, 7, 2), (0, 0, 0, 0, 0, 9), (3, 0, 0), (0, 0)])
@pytest.mark.parametrize("seed", [None, 1])
def test_all_gather_uneven_counts(algorithm, counts, seed):
    inputs = [np.arange(count, dtype=np.int32) + 100 * rank for rank, count in enumerate(counts)]
    options = {} if algorithm.run is bruck else {"segment_bytes": 8}
    results = run_threads(
        len(counts),
        lambda t, rank: harness.all_gather(algorithm.run, t, inputs[rank], counts, **options),
        delays=seed,
    )
    assert all(got.tobytes() == np.concatenate(inputs).tobytes() for got in results)


@pytest.mark.parametrize("algorithm", portable("all_gather"), ids=name)
def test_all_gather_in_place(algorithm):
    """The input may be this rank's chunk of the output, as it is within an all_reduce."""

    def body(transport, rank):
        out = np.full(9, -1, np.int64)
        own = out[3 * rank : 3 * rank + 3]
        own[:] = rank
        memory, dtype = harness.view(out, result=True), DTYPES["int64"]
        job = harness.Job("all_gather", dtype, harness.view(own), memory, (3, 3, 3))
        algorithm.run(transport, harness.KERNELS, job)
        return out.tolist()

    assert run_threads(3, body) == [[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 3


@pytest.mark.parametrize("algorithm", portable("barrier"), ids=name)
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("late", [0, -1])
def test_barrier_waits_for_the_last(algorithm, ranks, late):
    def body(transport, rank):
        if rank == late % ranks:
            time.sleep(0.02)
        came = time.perf_counter()
        harness.barrier(algorithm.run, transport)
        return came, time.perf_counter()

    for seed in range(3):
        times = run_threads(ranks, body, delays=seed)
        assert max(came for came, _ in times) <= min(left for _, left in times)
