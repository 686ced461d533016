"""The quick way of calls and the long one: taken when they should be, and mixed in one call."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pycomm
from pycomm.types import DTYPES, ReduceOp
from tests.algorithms.reference import in_order
from tests.mpi.test_all_to_all import incoming, outgoing
from tests.mpi.test_rooted import data


def quick_calls(comm: pycomm.Communicator) -> int:
    """Return how many collectives went the quick way on this rank."""
    return sum(operations for operations, *_ in comm._quick.quick_counts.values())


@pytest.mark.parametrize("count", [1, 19, 1009, 100_003])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_rooted_ones_on_both_ways_at_once(comm, kind, count):
    """In the same call: strided or asynchronous ones, those without out=, and plain ones."""
    make = torch.from_numpy if kind == "torch" else np.asarray
    wrong = 0
    for i in range(4 * comm.size):
        root, way = i % comm.size, (i // comm.size + comm.rank) % 4
        parts = [data(r + i, count, "float32").reshape(count, 1) for r in range(comm.size)]
        whole = np.stack(parts)
        x = make(parts[comm.rank].copy() if way != 1 else np.repeat(parts[comm.rank], 2, 1)[:, :1])
        options = {"async_op": True} if way == 2 else {}
        out = make(np.zeros_like(whole)) if way != 3 else None
        results = [comm.gather(x, root, out if comm.rank == root else None, **options)]
        out = make(np.zeros_like(parts[0])) if way != 3 else None
        results.append(
            comm.scatter(make(whole) if comm.rank == root else None, root, out, **options)
        )
        results.append(comm.reduce(x, root, "max", **options))
        gathered, scattered, reduced = (r.wait() if options else r for r in results)
        assert (gathered is None) == (reduced is None) == (comm.rank != root)
        assert isinstance(scattered, torch.Tensor) == (kind == "torch")
        wrong += not np.array_equal(scattered, parts[comm.rank])
        if comm.rank == root:
            wrong += not np.array_equal(gathered, whole)
            wrong += not np.array_equal(reduced, whole.max(0))
    assert wrong == 0


def test_plain_rooted_calls_are_quick(comm):
    """Every root, read-only inputs, dtypes that the buffer protocol has."""
    if not comm._quick.quick_barrier():
        pytest.skip("there is no shared memory")
    for dtype in ("bool", "int8", "uint16", "int64", "float16", "float64", "complex64"):
        for root in range(comm.size):
            parts = np.stack([data(r + root, 6, dtype).reshape(2, 3) for r in range(comm.size)])
            parts.flags.writeable = False
            before, top = quick_calls(comm), comm.rank == root
            whole, part = np.zeros_like(parts), np.zeros_like(parts[0])
            assert comm.gather(parts[comm.rank], root, whole) is (whole if top else None)
            assert comm.scatter(parts if top else None, root, part) is part
            x = parts[comm.rank].copy() if top else parts[comm.rank]
            op = "bor" if dtype == "bool" else "sum"
            assert comm.reduce(x, root, op) is (x if top else None)
            assert quick_calls(comm) == before + 3
            assert whole.tobytes() == (parts if top else np.zeros_like(parts)).tobytes()
            assert part.tobytes() == parts[comm.rank].tobytes()
            if top:
                total = in_order([p.copy() for p in parts], DTYPES[dtype], ReduceOp(op))
                assert x.tobytes() == total.tobytes()


@pytest.mark.parametrize("told", [False, True], ids=["learned", "told"])
def test_an_out_of_another_shape_or_dtype_is_a_mismatch_though_others_take_any(comm, told):
    """Also on a root or a rank without out=, which does not see what the others expect."""
    if comm.size == 1:
        pytest.skip("the root's own out= is compared with its own x")
    for wrong in (np.full((3, 1), 7.0, np.float32), np.full(3, 7, np.int32)):
        other = comm.split(0)
        x = np.zeros((comm.size, 3), np.float32) if comm.rank == 0 else None
        out = wrong if comm.rank == 1 else np.full(3, 7, np.float32) if told else None
        with pytest.raises(pycomm.MismatchError, match=r"(?s)rank 0: scatter.*rank 1: scatter"):
            other.scatter(x, 0, out)
        assert out is None or (out == 7).all()
        other.close()


def test_an_out_of_another_size_is_a_mismatch_on_every_rank(comm):
    if comm.size == 1:
        pytest.skip("the root's own out= is compared with its own x")
    other = comm.split(0)
    out = np.full(4 if comm.rank else 3, 7.0, np.float32)
    with pytest.raises(pycomm.MismatchError, match=r"(?s)scatter\(root=0.*rank 1: scatter.*\(4,\)"):
        other.scatter(np.zeros((comm.size, 3), np.float32), 0, out)
    assert (out == 7).all()
    with pytest.raises(pycomm.CommError, match="failed before"):
        other.barrier()
    other.close()


@pytest.mark.parametrize("count", [1, 19, 1009, 100_003])
def test_all_to_all_on_both_ways_at_once(comm, count):
    """In the same call: asynchronous ones, strided ones, those without out=, and plain ones."""
    for i in range(8):
        way, x = (i + comm.rank) % 4, outgoing(comm, count)
        strided = np.zeros((comm.size, count, 2), np.int64)[:, :, 0]
        out = {0: np.zeros_like(x), 1: strided, 2: np.zeros_like(x), 3: None}[way]
        x.flags.writeable = False
        y = comm.all_to_all(x, out, async_op=way == 2)
        y = y.wait() if way == 2 else y
        assert (out is None or y is out) and np.array_equal(y, incoming(comm, count))


def test_plain_all_to_all_is_quick(comm):
    if not comm._quick.quick_barrier():
        pytest.skip("there is no shared memory")
    comm.all_to_all(torch.zeros(comm.size))  # from the first tensor on they are known
    for dtype in ("bool", "int16", "uint64", "float32", "complex128"):
        before = comm._quick.quick_counts["all_to_all"][0]
        x = outgoing(comm, 19, dtype)
        out, tensor = np.zeros_like(x), torch.zeros(comm.size, 3, 5)
        assert comm.all_to_all(x, out) is out
        assert out.tobytes() == incoming(comm, 19, dtype).tobytes()
        assert comm.all_to_all(torch.full_like(tensor, comm.rank), tensor) is tensor
        assert tensor[:, 2, 4].tolist() == list(range(comm.size))
        assert comm._quick.quick_counts["all_to_all"][0] == before + 2
