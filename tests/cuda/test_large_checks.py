"""Quantisation, checks, norms and selection of more than 2³¹ elements."""

from __future__ import annotations

import numpy as np
import pytest

from pycomm.kernels import cuda_base, cuda_quantize
from pycomm.kernels.block_scaled import scale_count
from pycomm.kernels.cpu_quantize import dequantize_reduce, quantize
from pycomm.kernels.cuda import CudaKernels
from pycomm.types import DTYPES
from tests.cuda.host import HostLauncher
from tests.cuda.memory import sparse

COUNT = (1 << 31) + 5003
TAIL = 4096 + 5003  # elements: whole blocks of 256, and a rest
F16, E4M3, I8 = DTYPES["float16"], DTYPES["float8_e4m3fn"], DTYPES["int8"]


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> HostLauncher:
    """As many blocks as there are tiles, of which only the first and the last are run."""
    monkeypatch.setattr(cuda_base, "BLOCKS_PER_MULTIPROCESSOR", 1 << 30)
    launcher = HostLauncher(1)
    launcher.only = 8
    return launcher


def normal(count: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(count).astype(dtype).view(np.uint8)


def test_quantise_and_back(launcher: HostLauncher, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda_quantize, "_BLOCKS_AT_ONCE", 32)  # a warp takes four
    kernels, tail_scales = CudaKernels(launcher), scale_count(TAIL)
    x, values, scales = sparse(2 * COUNT), sparse(COUNT), sparse(4 * scale_count(COUNT))
    out = sparse(2 * COUNT)
    x[-2 * TAIL :] = normal(TAIL, "float16")
    kernels.quantize(x, values, scales, F16, I8)
    expected = np.empty(TAIL, np.uint8), np.empty(4 * tail_scales, np.uint8)
    quantize(x[-2 * TAIL :].copy(), *expected, F16, I8)
    assert np.array_equal(values[-TAIL:], expected[0])
    assert np.array_equal(scales[-4 * tail_scales :], expected[1])
    kernels.dequantize_reduce([values] * 2, [scales] * 2, out, F16, I8)
    back = np.empty(2 * TAIL, np.uint8)
    dequantize_reduce([expected[0]] * 2, [expected[1]] * 2, back, F16, I8)
    assert np.array_equal(out[-2 * TAIL :], back)


def test_the_first_nan(launcher: HostLauncher):
    launcher.filler = 0x7F  # blocks that are not run find nothing
    x, first = sparse(COUNT, 3), np.zeros(1, np.int64)
    for index in (COUNT - 1, COUNT - 4000):
        x[index] = 0x7F
        CudaKernels(launcher).first_non_finite(x, first, E4M3)
        assert first[0] == index


def test_the_sum_of_squares(launcher: HostLauncher):
    launcher.filler = 0  # blocks that are not run add nothing
    x, total = sparse(COUNT), np.zeros(1)
    x[-TAIL:] = 0x40  # 2.0
    CudaKernels(launcher).sum_of_squares([x], E4M3).into(total)
    assert total[0] == 4 * TAIL


def test_the_largest(launcher: HostLauncher):
    launcher.filler = 0  # blocks that are not run count nothing
    x, values, indices = sparse(2 * COUNT), np.zeros(20, np.float16), np.zeros(20, np.int64)
    x[-2 * TAIL :] = normal(TAIL, "float16")
    CudaKernels(launcher).top_k(x, 20, values, indices, F16)
    tail = x[-2 * TAIL :].view(np.float16)
    expected = np.sort(np.argsort(-np.abs(tail), kind="stable")[:20])
    assert np.array_equal(indices, expected + COUNT - TAIL)
    assert np.array_equal(values, tail[expected])
