"""What is registered is true: steps and bytes are counted; docs/algorithms.md lists them all."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pycomm.algorithms.registry import algorithms, find
from pycomm.transport.threads import run_threads
from pycomm.types import DTYPES, ReduceOp

from . import harness

COUNT = 60
"""Elements of int32: divisible by 1 to 6 ranks."""

PORTABLE = [a for a in algorithms() if a in harness.portable(a.kind)]
SEGMENTED = [a for a in PORTABLE if harness.options(a, 1)]


def call(algorithm, transport, **options):
    """Run `algorithm` once; input or output, whichever is larger, has COUNT elements of int32."""
    n, op = transport.size, ReduceOp("sum")
    x = np.arange(COUNT, dtype=np.int32)
    counts = (COUNT // n,) * n
    arguments = {
        "all_reduce": (x, op),
        "reduce_scatter": (x, counts, op),
        "all_gather": (x[: COUNT // n], counts),
        "broadcast": (x, 0),
        "reduce": (x, n - 1, op),
        "gather": (x[: COUNT // n], counts, n - 1),
        "scatter": (x, counts, n - 1),
        "all_to_all": (x, (counts,) * n),
        "barrier": (),
    }[algorithm.kind]
    getattr(harness, algorithm.kind)(algorithm.run, transport, *arguments, **options)
    return transport.messages, transport.sent_bytes


@pytest.mark.parametrize("algorithm", PORTABLE, ids=lambda a: f"{a.kind}-{a.name}")
@pytest.mark.parametrize("ranks", range(1, 7))
def test_messages_and_bytes(algorithm, ranks):
    sent = run_threads(ranks, lambda transport, rank: call(algorithm, transport))
    nbytes = 0 if algorithm.kind == "barrier" else COUNT * 4
    assert max(messages for messages, _ in sent) == algorithm.steps(ranks, nbytes)
    assert max(sent_bytes for _, sent_bytes in sent) == algorithm.wire_bytes(ranks, nbytes)


@pytest.mark.parametrize("algorithm", SEGMENTED, ids=lambda a: f"{a.kind}-{a.name}")
def test_segments_cost_no_bytes(algorithm):
    sent = run_threads(3, lambda transport, rank: call(algorithm, transport, segment_bytes=12))
    assert max(sent_bytes for _, sent_bytes in sent) == algorithm.wire_bytes(3, COUNT * 4)
    assert max(messages for messages, _ in sent) > algorithm.steps(3, COUNT * 4)


def test_ring_sends_narrow_partials_wide():
    """The first half in float32, the second in float16: 3/2 of the registered formula."""
    ring = find("all_reduce", "ring")

    def body(transport, rank):
        x = np.ones(COUNT, np.float16)
        harness.all_reduce(ring.run, transport, x, ReduceOp("sum"))
        return transport.sent_bytes

    assert (
        run_threads(4, body) == [1.5 * ring.wire_bytes(4, COUNT * DTYPES["float16"].itemsize)] * 4
    )


def test_docs_list_every_algorithm():
    page = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| ([a-z_]+) \| (\w+) \| (rank|ring|hierarchical|—) \|", page, flags=re.MULTILINE
    )
    adds = {"all_reduce", "reduce_scatter", "reduce"}
    registered = [(a.kind, a.name, a.order if a.kind in adds else "—") for a in algorithms()]
    assert sorted(rows) == sorted(registered)


def test_every_algorithm_says_what_it_does():
    for algorithm in algorithms():
        text = algorithm.run.__doc__
        assert "1. " in text, algorithm
        assert re.search(r"[Bb]ytes", text), algorithm
