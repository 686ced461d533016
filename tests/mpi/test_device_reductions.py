"""Reductions of device arrays, on doubles of GPUs: the bits of one process that adds in order."""

from __future__ import annotations

import pytest

from pycomm.types import DTYPES, ReduceOp
from tests.algorithms.reference import CASES, random_inputs
from tests.mpi.devices import doubles, ordinary, symmetric
from tests.mpi.test_reductions import bits, expected

COUNTS = (0, 3, 1009, 3001)
KINDS = (("float32", "sum"), ("bfloat16", "sum"), ("int32", "max"))
PLACES = {"symmetric": symmetric, "ordinary": ordinary}


@pytest.fixture(params=["one for all", "every rank", "two GPUs", "own GPUs"])
def sharing(request, comm):
    """A communicator of doubles; segments are small."""
    gpus = {"two GPUs": 2, "own GPUs": comm.size}.get(request.param, 1)
    every = request.param == "every rank"
    with doubles(comm, gpus, segment_bytes=4096, every_rank_launches=every) as other:
        yield other


@pytest.mark.parametrize("make", PLACES.values(), ids=PLACES)
def test_all_reduce_adds_in_rank_order(sharing, make):
    for count in COUNTS:
        for name, op in KINDS:
            mine = random_inputs(sharing.size, count, DTYPES[name])[sharing.rank]
            x = make(sharing, mine)
            assert sharing.all_reduce(x, op) is x
            want = expected(sharing, count, DTYPES[name], ReduceOp(op))
            assert bits(x.get()) == bits(want), (count, name, op)


@pytest.fixture(scope="module")
def fast(comm):
    """A communicator of doubles that share a GPU without delays."""
    with doubles(comm, delay_s=0.0, segment_bytes=4096) as other:
        yield other


@pytest.mark.parametrize(("dtype", "op"), CASES, ids=lambda x: x.name)
def test_every_dtype_and_operation(fast, dtype, op):
    for make in PLACES.values():
        x = make(fast, random_inputs(fast.size, 1009, dtype)[fast.rank])
        fast.all_reduce(x, op)
        assert bits(x.get()) == bits(expected(fast, 1009, dtype, op))
