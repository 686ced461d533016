"""Arrays of more than 2³¹ elements: of memory that is there only where blocks touch it."""

from __future__ import annotations

import numpy as np
import pytest

from pycomm.kernels import cuda_base
from pycomm.kernels.cuda import CudaKernels
from pycomm.types import DTYPES, SUM
from tests.cuda.host import HostLauncher
from tests.cuda.memory import sparse

COUNT = (1 << 31) + 5003
BLOCKS = 3
VECTOR_TILE, SINGLE_TILE = 16384, 1024  # bytes of uint8 that a block takes at a time


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> CudaKernels:
    """As many blocks as there are tiles, of which only the first and the last are run."""
    monkeypatch.setattr(cuda_base, "BLOCKS_PER_MULTIPROCESSOR", 1 << 30)
    monkeypatch.setattr(cuda_base, "_TILE_BYTES", VECTOR_TILE)
    launcher = HostLauncher(1)
    launcher.only = BLOCKS
    return CudaKernels(launcher)


def test_vectors_beyond_two_to_the_31(kernels: CudaKernels):
    x, y, out = (sparse(COUNT, 1) for _ in range(3))
    x[-5003:], y[-5003:], x[:50] = 3, 4, 9
    kernels.reduce([x, y], out, DTYPES["uint8"], SUM)
    assert out[-5003:].tolist() == [7] * 5003
    assert out[:50].tolist() == [9] * 50


def test_single_elements_beyond_two_to_the_31(
    kernels: CudaKernels, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cuda_base, "_TILE_BYTES", SINGLE_TILE)
    x, out = sparse(COUNT, 1), sparse(COUNT, 2)
    x[-1000:], x[:50] = 3, 9
    kernels.reduce([x], out, DTYPES["uint8"], SUM)
    assert out[-1000:].tolist() == [3] * 1000
    assert out[:50].tolist() == [9] * 50


def test_partial_results_beyond_two_to_the_31(kernels: CudaKernels):
    x, partial = sparse(2 * COUNT), sparse(4 * COUNT)
    x[-2:] = np.frombuffer(np.float32(1.5).tobytes()[2:], np.uint8)
    kernels.widen(x, partial, DTYPES["bfloat16"], SUM)
    assert partial[-8:].view(np.float32).tolist() == [0.0, 1.5]
