"""torch tensors on a GPU are used where they are, in every dtype, with the CPU's bits."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gpu.device import torch_or_skip

torch = torch_or_skip()

from pycomm.errors import ArgumentError  # noqa: E402
from pycomm.kernels.cpu import CpuKernels  # noqa: E402
from pycomm.types import DTYPES, SUM  # noqa: E402
from tests.algorithms.reference import operations, random_inputs  # noqa: E402

F32 = DTYPES["float32"]


def tensor_of(array, dtype):
    raw = torch.from_numpy(np.ascontiguousarray(array).view(np.uint8).copy())
    return raw.cuda().view(getattr(torch, dtype.name))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda d: d.name)
def test_tensors_have_the_bits_of_the_cpu(place, dtype):
    for op in operations(dtype):
        parts = random_inputs(3, 10_007, dtype)
        tensors = [tensor_of(p, dtype) for p in parts]
        place.kernels.reduce(tensors, tensors[1], dtype, op)
        flat = [np.ascontiguousarray(p).view(np.uint8) for p in parts]
        expected = np.empty_like(flat[0])
        CpuKernels().reduce(flat, expected, dtype, op)
        assert np.array_equal(tensors[1].view(torch.uint8).cpu().numpy(), expected), op


def test_nothing_is_copied(place):
    a, b, out = (torch.ones(1 << 20, device="cuda") for _ in range(3))
    place.kernels.reduce([a, b], out, F32, SUM)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    place.kernels.reduce([a, b], out, F32, SUM)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    assert bool((out == 2).all())


def test_a_tensor_on_the_host_is_refused_before_a_launch(place):
    device, host = torch.ones(5, device="cuda"), torch.ones(5)
    with pytest.raises(
        ArgumentError, match=r"inputs\[1\].* is on the host, but the kernels run on cuda:0"
    ):
        place.kernels.reduce([device, host], device, F32, SUM)
    assert bool((device == 1).all())


def test_a_strided_tensor_is_refused(place):
    x = torch.ones(4, 4, device="cuda")
    with pytest.raises(ArgumentError, match="is strided"):
        place.kernels.reduce([x.t(), x], x, F32, SUM)


def test_the_other_kernels_take_tensors(place):
    x, out = torch.arange(1000, device="cuda").float(), torch.zeros(1000, device="cuda")
    place.kernels.packing([x[:3], x[3:]], F32).pack(out)
    assert torch.equal(out, x)
    place.kernels.pack_strided(x.view(40, 25).t(), out)
    assert torch.equal(out.view(25, 40), x.view(40, 25).t())
    first, total = (torch.zeros(1, dtype=d, device="cuda") for d in (torch.int64, torch.float64))
    place.kernels.first_non_finite(x, first, F32)
    place.kernels.sum_of_squares([x], F32).into(total)
    assert (first.item(), total.item()) == (-1, sum(k * k for k in range(1000)))
    values, indices = (
        torch.zeros(2, device="cuda"),
        torch.zeros(2, dtype=torch.int64, device="cuda"),
    )
    place.kernels.top_k(x, 2, values, indices, F32)
    assert (values.tolist(), indices.tolist()) == ([998.0, 999.0], [998, 999])
