"""reduce, gather, scatter, all_to_all: every algorithm, from and to every root, also uneven."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from pycomm.algorithms.ring import chunk_counts
from pycomm.transport.job import Job, traffic_bytes
from pycomm.transport.threads import run_threads
from pycomm.types import DTYPES

from . import harness
from .harness import name, portable
from .reference import CASES, DTYPE_NAMES, ORDERS, random_inputs

RANKS = range(1, 7)
COUNTS = [0, 1, 2, 7, 13, 64, 65537]
UNEVEN = {"mixed": (0, 5, 1, 0, 7, 2), "none": (0,) * 6, "one": (0, 0, 9, 0, 0, 0)}

reduces = pytest.mark.parametrize("algorithm", portable("reduce"), ids=name)
gathers = pytest.mark.parametrize("algorithm", portable("gather"), ids=name)
scatters = pytest.mark.parametrize("algorithm", portable("scatter"), ids=name)
all_to_alls = pytest.mark.parametrize("algorithm", portable("all_to_all"), ids=name)


def small_segments(algorithm):
    """Return options that cut messages into tiny segments, where the algorithm has any."""
    cut = "segment_bytes" in inspect.signature(algorithm.run).parameters
    return {"segment_bytes": 8} if cut else {}


# ---- reduce


def check_reduce(algorithm, ranks, count, root, cases, delays=None, **options):
    """Reduce every case on `ranks` threads; compare every rank's bytes."""
    inputs = [random_inputs(ranks, count, dtype) for dtype, _ in cases]

    def body(transport, rank):
        return [
            harness.reduce(algorithm.run, transport, x[rank], root, op, **options)
            for (_, op), x in zip(cases, inputs, strict=True)
        ]

    results = run_threads(ranks, body, delays=delays)
    for i, (dtype, op) in enumerate(cases):
        total = ORDERS[algorithm.order](inputs[i], chunk_counts(count, ranks), dtype, op)
        for rank in range(ranks):
            expected = total if rank == root else inputs[i][rank]
            assert results[rank][i].tobytes() == expected.tobytes(), (dtype.name, op, rank)


@reduces
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("ranks", RANKS)
def test_reduce_every_operation(algorithm, ranks, count):
    cases = CASES if count < 100 else [c for c in CASES if c[1].name in ("sum", "bxor")]
    check_reduce(algorithm, ranks, count, count % ranks, cases)


@reduces
@pytest.mark.parametrize("root", range(4))
@pytest.mark.parametrize("segment_bytes", [1, 12, 100])
def test_reduce_to_every_root_delayed(algorithm, root, segment_bytes):
    cases = [c for c in CASES if c[1].name == "sum" and c[0].family == "float"]
    check_reduce(algorithm, 4, 33, root, cases, delays=root, segment_bytes=segment_bytes)


# ---- gather and scatter


@gathers
@pytest.mark.parametrize("ranks", RANKS)
def test_gather_equal_counts_to_every_root(algorithm, ranks):
    inputs = [random_inputs(ranks, c, DTYPES[d]) for c in COUNTS for d in DTYPE_NAMES]

    def body(transport, rank):
        return [
            harness.gather(algorithm.run, transport, x[rank], (x[rank].size,) * ranks, i % ranks)
            for i, x in enumerate(inputs)
        ]

    results = run_threads(ranks, body)
    for i, x in enumerate(inputs):
        for rank, result in enumerate(results):
            expected = np.concatenate(x) if rank == i % ranks else np.full_like(result[i], 1)
            assert result[i].tobytes() == expected.tobytes()


@gathers
@pytest.mark.parametrize("shape", UNEVEN)
@pytest.mark.parametrize("root", range(6))
def test_gather_uneven_delayed(algorithm, root, shape):
    counts = UNEVEN[shape]
    inputs = [np.arange(count, dtype=np.int32) + 100 * rank for rank, count in enumerate(counts)]
    options = small_segments(algorithm)
    results = run_threads(
        6,
        lambda t, rank: harness.gather(algorithm.run, t, inputs[rank], counts, root, **options),
        delays=root,
    )
    assert results[root].tolist() == np.concatenate(inputs).tolist()


@scatters
@pytest.mark.parametrize("ranks", RANKS)
def test_scatter_equal_counts_from_every_root(algorithm, ranks):
    inputs = [random_inputs(ranks, c * ranks, DTYPES[d]) for c in COUNTS for d in DTYPE_NAMES]

    def body(transport, rank):
        return [
            harness.scatter(
                algorithm.run, transport, x[rank], (x[rank].size // ranks,) * ranks, i % ranks
            )
            for i, x in enumerate(inputs)
        ]

    results = run_threads(ranks, body)
    for i, x in enumerate(inputs):
        got = np.concatenate([result[i] for result in results])
        assert got.tobytes() == x[i % ranks].tobytes()


@scatters
@pytest.mark.parametrize("shape", UNEVEN)
@pytest.mark.parametrize("root", range(6))
def test_scatter_uneven_delayed(algorithm, root, shape):
    counts = UNEVEN[shape]
    x = np.arange(sum(counts), dtype=np.int32)
    options = small_segments(algorithm)
    results = run_threads(
        6,
        lambda t, rank: harness.scatter(algorithm.run, t, x, counts, root, **options),
        delays=root,
    )
    assert [r.size for r in results] == list(counts)
    assert np.concatenate(results).tolist() == x.tolist()


# ---- all_to_all


def check_all_to_all(algorithm, sent, dtype="int32", delays=None):
    """Exchange sent[s][r] elements from s to r on as many threads as there are rows."""
    edges = [np.cumsum([0, *counts]) for counts in sent]
    inputs = [random_inputs(1, int(e[-1]), DTYPES[dtype], seed=s)[0] for s, e in enumerate(edges)]
    options = small_segments(algorithm)
    results = run_threads(
        len(sent),
        lambda t, rank: harness.all_to_all(algorithm.run, t, inputs[rank], sent, **options),
        delays=delays,
    )
    for rank, got in enumerate(results):
        parts = [x[e[rank] : e[rank + 1]] for x, e in zip(inputs, edges, strict=True)]
        assert got.tobytes() == np.concatenate(parts).tobytes()


@all_to_alls
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("ranks", RANKS)
def test_all_to_all_equal_counts(algorithm, ranks, count):
    for dtype in DTYPE_NAMES if count < 100 else ("bfloat16",):
        check_all_to_all(algorithm, [[count] * ranks] * ranks, dtype)


@all_to_alls
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ranks", RANKS)
def test_all_to_all_uneven_delayed(algorithm, ranks, seed):
    random = np.random.default_rng([ranks, seed])
    sent = random.integers(0, 9, (ranks, ranks)) * (random.random((ranks, ranks)) > 0.4)
    check_all_to_all(algorithm, sent.tolist(), "int16", delays=seed)


@all_to_alls
def test_all_to_all_where_one_pair_has_everything(algorithm):
    sent = [[0] * 4 for _ in range(4)]
    sent[3][1] = 65537
    check_all_to_all(algorithm, sent)


# ---- what a Job says


@pytest.mark.parametrize("ranks", RANKS)
def test_where_the_chunks_of_all_to_all_lie(ranks):
    """A rank finds its chunk in what every other offers: all chunks but rank 0's own first one."""
    random = np.random.default_rng(ranks)
    for sent in (np.full((ranks, ranks), 3), random.integers(0, 9, (ranks, ranks))):
        table = tuple(map(tuple, sent.tolist()))
        even = len(set(sent.flat)) == 1
        for rank in range(ranks):
            job = Job("all_to_all", DTYPES["int16"], counts=table[rank], sent=() if even else table)
            to, source, starts, longest = traffic_bytes(job, rank, ranks)
            assert np.diff(to).tolist() == (2 * sent[rank]).tolist()
            assert np.diff(source).tolist() == (2 * sent[:, rank]).tolist()
            for s in set(range(ranks)) - {rank}:
                assert starts[s] == 2 * sent[s, int(s == 0) : rank].sum()
            others = [sent[s, r] for s in range(ranks) for r in range(ranks) if s != r]
            assert longest == 2 * max(others, default=0)


def test_the_size_of_uneven_jobs_is_that_of_the_busiest_rank():
    sent = ((1, 2), (30, 4))
    sizes = [Job("all_to_all", DTYPES["int64"], counts=row, sent=sent).nbytes for row in sent]
    assert sizes == [34 * 8] * 2
    assert Job("gather", DTYPES["int16"], counts=(3, 3, 3)).nbytes == 18
