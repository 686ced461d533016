"""The place of kernels here: a GPU, where tests/cuda/ has the host."""

from __future__ import annotations

import pytest

from tests.gpu.device import cupy_or_skip


@pytest.fixture(scope="session")
def launcher():
    """The launcher of the current GPU; kernels are compiled once for all tests."""
    cupy_or_skip()
    from pycomm.kernels.cuda_launcher import CupyLauncher

    return CupyLauncher()


@pytest.fixture
def place(launcher):
    """Kernels that run on the GPU, and CuPy's arrays."""
    from tests.cuda.place import Place

    return Place(cupy_or_skip(), launcher)
