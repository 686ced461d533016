"""Collectives of ranks on real GPUs, shared if there are fewer: the tests of doubles, and more."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import pycomm
from pycomm.devices import process
from pycomm.devices.base import DeviceError
from pycomm.devices.process import Device
from tests.algorithms.reference import CASES, random_inputs
from tests.gpu.device import torch_or_skip
from tests.mpi.test_device_movement import (  # noqa: F401
    test_all_gather_even_and_uneven_and_into_out,
    test_all_to_all_even_and_by_counts,
    test_broadcast,
    test_gather,
    test_operations_of_the_user,
    test_reduce_leaves_the_other_ranks_arrays,
    test_reduce_scatter_even_and_uneven,
    test_scatter_into_out,
    test_scatter_without_out,
    test_strided_arrays_and_views_into_symmetric_ones,
    test_symmetric_and_ordinary_arrays_in_one_call,
)
from tests.mpi.test_reductions import bits, expected

torch = torch_or_skip()
import cupy  # noqa: E402

COUNT = 300_000


def symmetric(comm: pycomm.Communicator, x: np.ndarray):
    array = comm.empty(x.shape, x.dtype, device="cuda")
    array.set(x)
    return array


def ordinary(comm: pycomm.Communicator, x: np.ndarray):
    return cupy.asarray(x)


PLACES = {"symmetric": symmetric, "ordinary": ordinary}


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def make(request):
    return request.param


@pytest.fixture
def makers():
    return symmetric, ordinary


@contextlib.contextmanager
def gpus(comm: pycomm.Communicator, **settings):
    """Give a communicator whose ranks have the GPUs there are, in turn."""
    from pycomm.devices.cupy_runtime import CupyRuntime

    number = comm.rank % cupy.cuda.runtime.getDeviceCount()
    cupy.cuda.Device(number).use()
    torch.cuda.set_device(number)
    before = process._device
    process.use(Device.of(CupyRuntime(), **settings))
    dev = comm.split(0)
    try:
        yield dev
    finally:
        dev.close()
        process.use(before)


@pytest.fixture(scope="module", params=["one for all", "every rank"])
def dev(request, comm):
    """A communicator of GPUs; segments are so small that arrays take several."""
    every = request.param == "every rank"
    with gpus(comm, segment_bytes=4096, every_rank_launches=every) as other:
        yield other


@pytest.fixture(scope="module")
def usual(comm):
    """A communicator of GPUs as users have it."""
    with gpus(comm) as other:
        yield other


def tensor(comm: pycomm.Communicator, x: np.ndarray, dtype, of_pool: bool):
    """Return a tensor with the contents of `x`, of torch's pool or symmetric."""
    kind = getattr(torch, dtype.name)
    empty = torch.empty(len(x), dtype=kind, device="cuda")
    empty = empty if of_pool else comm.empty(len(x), kind, device="cuda")
    empty.view(torch.uint8).copy_(torch.from_numpy(x.view(np.uint8).copy()))
    return empty


@pytest.mark.parametrize(("dtype", "op"), CASES, ids=lambda x: x.name)
def test_every_dtype_and_operation_of_tensors(usual, dtype, op):
    mine = random_inputs(usual.size, 1009, dtype)[usual.rank]
    for of_pool in (False, True):
        x = tensor(usual, mine, dtype, of_pool)
        assert usual.all_reduce(x, op) is x
        assert bits(x.view(torch.uint8).cpu().numpy()) == bits(expected(usual, 1009, dtype, op)), (
            of_pool
        )


def total(comm: pycomm.Communicator, k: int = 0) -> int:
    """Return the sum over ranks of rank + 1 + k."""
    return comm.size * (comm.size + 1) // 2 + comm.size * k


def test_results_are_ordered_by_cupys_stream(usual, make):
    with cupy.cuda.Stream(non_blocking=True):
        for k in range(30):
            x = make(usual, np.full(COUNT, usual.rank + 1.0 + k, np.float32))
            usual.all_reduce(x)
            x *= 2
            assert (x.get() == 2 * total(usual, k)).all()


def test_results_are_ordered_by_torchs_stream(usual):
    """Slow work comes before what the collective reads."""
    square = torch.rand(2048, 2048, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        for k in range(10):
            for _ in range(5):
                square = square @ square * 1e-4
            x = torch.full((COUNT,), usual.rank + 1.0 + k, device="cuda")
            usual.all_reduce(x)
            assert bool((x == total(usual, k)).all())


def test_work_of_tensors_that_are_let_go(usual):
    """Memory of torch's pool is not handed out again before the operation is done."""
    works = []
    for k in range(20):
        x = torch.full((COUNT,), usual.rank + 1.0 + k, device="cuda")
        works.append(usual.all_reduce(x, async_op=True))
        del x
        torch.full((COUNT,), float("nan"), device="cuda")
    for k, work in enumerate(works):
        assert bool((work.wait() == total(usual, k)).all())
    work = usual.all_reduce(torch.ones(COUNT, device="cuda"), async_op=True)
    assert bool((work.wait(host=True) == usual.size).all()) and work.done()


def test_a_thousand_calls_leave_no_memory_behind(usual):
    x, y = symmetric(usual, np.ones(1000, np.float32)), cupy.ones(1000, np.float32)

    def free_after(calls: int) -> int:
        for _ in range(calls):
            usual.all_reduce(x, "avg")
            usual.all_reduce(y, "avg")
        cupy.cuda.Device().synchronize()
        usual.barrier()
        return cupy.cuda.runtime.memGetInfo()[0]

    before = free_after(10)
    usual.barrier()
    assert free_after(1000) >= before - (1 << 20)


def test_too_much_memory_is_refused_with_rank_size_and_gpu(usual):
    said = rf"rank {usual.rank}: cannot allocate {1 << 45} bytes on cuda:\d"
    with pytest.raises(DeviceError, match=said):
        usual.empty((1 << 45,), np.uint8, device="cuda")


def test_a_graph_where_every_rank_has_a_gpu_and_nowhere_else(usual):
    x, stream = symmetric(usual, np.ones(1000, np.float32)), cupy.cuda.Stream(non_blocking=True)
    with stream:
        usual.all_reduce(x)
        stream.synchronize()
        stream.begin_capture()
        try:
            if 1 < usual.size <= cupy.cuda.runtime.getDeviceCount():
                usual.all_reduce(x)
            else:
                with pytest.raises(pycomm.ArgumentError, match="needs a GPU of its own"):
                    usual.all_reduce(x)
        finally:
            graph = stream.end_capture()
        if 1 < usual.size <= cupy.cuda.runtime.getDeviceCount():
            for _ in range(3):
                graph.launch(stream)
            assert (x.get() == usual.size**4).all()
