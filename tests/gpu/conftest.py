"""The place of kernels here: a GPU, where tests/cuda/ has the host."""

from __future__ import annotations

import pytest

from tests.gpu.device import cupy_or_skip


@pytest.fixture(scope="session")
def gpu():
    """The launcher of the current GPU; kernels are compiled once for all tests."""
    cupy_or_skip()
    from tests.gpu.recording import RecordingLauncher

    return RecordingLauncher()


@pytest.fixture
def launcher(gpu):
    """The same, with no launches yet; a test may change the number of multiprocessors."""
    multiprocessors = gpu.multiprocessors
    gpu.launches.clear()
    yield gpu
    gpu.multiprocessors = multiprocessors


@pytest.fixture
def place(launcher):
    """Kernels that run on the GPU, and CuPy's arrays."""
    from tests.cuda.place import Place

    return Place(cupy_or_skip(), launcher)
