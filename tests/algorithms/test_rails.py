"""reduce_scatter, all_gather and broadcast on several hosts: results, and bytes on every link."""

from __future__ import annotations

import numpy as np
import pytest

from pycomm.algorithms.registry import find
from pycomm.transport.threads import run_threads
from pycomm.types import DTYPES, ReduceOp

from . import harness
from .harness import layered, name, options
from .reference import CASES, DTYPE_NAMES, by_host, random_inputs
from .test_hierarchical import grouped, layouts

UNEVEN = {"mixed": (0, 5, 1, 0, 7, 2), "none": (0,) * 6, "one": (0, 0, 9, 0, 0, 0)}
shapes = pytest.mark.parametrize("shape", UNEVEN)

reduce_scatters = pytest.mark.parametrize("algorithm", layered("reduce_scatter"), ids=name)
all_gathers = pytest.mark.parametrize("algorithm", layered("all_gather"), ids=name)
broadcasts = pytest.mark.parametrize("algorithm", layered("broadcast"), ids=name)


@reduce_scatters
@layouts
@shapes
def test_reduce_scatter(algorithm, hosts, shape):
    counts = UNEVEN[shape][: len(hosts)]
    inputs = [random_inputs(len(hosts), sum(counts), dtype) for dtype, _ in CASES]
    originals = [[x.copy() for x in case] for case in inputs]
    small = options(algorithm, 8)

    def body(transport, rank):
        return [
            harness.reduce_scatter(algorithm.run, transport, x[rank], counts, op, **small)
            for x, (_, op) in zip(inputs, CASES, strict=True)
        ]

    results = run_threads(len(hosts), body, delays=1 if shape == "one" else None, hosts=hosts)
    for i, (dtype, op) in enumerate(CASES):
        expected = by_host(grouped(hosts, inputs[i]), dtype, op)
        got = np.concatenate([result[i] for result in results])
        assert got.tobytes() == expected.tobytes(), (dtype.name, op)
    for case, original in zip(inputs, originals, strict=True):
        assert all(x.tobytes() == y.tobytes() for x, y in zip(case, original, strict=True))


@all_gathers
@layouts
@shapes
@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_all_gather(algorithm, hosts, shape, dtype):
    counts = UNEVEN[shape][: len(hosts)]
    inputs = [random_inputs(1, count, DTYPES[dtype], r)[0] for r, count in enumerate(counts)]
    small = options(algorithm, 8)
    results = run_threads(
        len(hosts),
        lambda t, rank: harness.all_gather(algorithm.run, t, inputs[rank], counts, **small),
        delays=1 if shape == "one" else None,
        hosts=hosts,
    )
    assert all(got.tobytes() == np.concatenate(inputs).tobytes() for got in results)


@broadcasts
@layouts
@pytest.mark.parametrize("count", [0, 1, 13, 4096])
def test_broadcast_every_root(algorithm, hosts, count):
    x = [np.arange(count) + 100 * root for root in range(len(hosts))]
    small = options(algorithm, 1 << 10)
    results = run_threads(
        len(hosts),
        lambda t, rank: [
            harness.broadcast(algorithm.run, t, x[root], root, **small) for root in range(t.size)
        ],
        delays=count if count == 13 else None,
        hosts=hosts,
    )
    assert all((got[root] == x[root]).all() for got in results for root in range(len(hosts)))


class Counted:
    """A transport that counts the bytes it is told to send."""

    def __init__(self, transport):
        self._transport = transport
        self.sent_bytes = 0

    def __getattr__(self, attribute):
        return getattr(self._transport, attribute)

    def isend(self, data, peer):
        self.sent_bytes += data.size
        return self._transport.isend(data, peer)


@pytest.mark.parametrize(
    ("kind", "a_host"),
    [
        ("reduce_scatter", lambda h: (h - 1) / h),
        ("all_gather", lambda h: (h - 1) / h),
        ("broadcast", lambda h: (h - 1).bit_length()),
    ],
)
@layouts
def test_bytes_between_hosts_are_those_registered_and_all_rails_carry_them(kind, a_host, hosts):
    algorithm, ranks, number = find(kind, "hierarchical"), len(hosts), len(set(hosts))
    x, counts = np.arange(60, dtype=np.int32), (60 // ranks,) * ranks
    arguments = {
        "reduce_scatter": (x, counts, ReduceOp("sum")),
        "all_gather": (x[: 60 // ranks], counts),
        "broadcast": (x, 0),
    }[kind]

    def body(transport, rank):
        transport.across = Counted(transport.across)
        getattr(harness, kind)(algorithm.run, transport, *arguments)
        assert transport.across.sent_bytes <= algorithm.cost(transport, x.nbytes)[1]
        return transport.across.sent_bytes, algorithm.cost(transport, x.nbytes)[1]

    sent = run_threads(ranks, body, hosts=hosts)
    senders = [sent[r] for r in range(ranks) if kind != "broadcast" or hosts[r] == hosts[0]]
    assert all(sent_bytes == registered for sent_bytes, registered in senders)
    assert sent[0][0] * ranks / number == a_host(number) * x.nbytes
