"""The place where kernels are tested: here the host; tests/gpu/ has its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import pytest

from pycomm.kernels.cuda import CudaKernels
from tests.cuda.host import HostLauncher
from tests.cuda.place import Place

COMPILERS = [name for name in ("c++", "clang++") if shutil.which(name)]


@pytest.fixture(params=COMPILERS)
def place(request: pytest.FixtureRequest) -> Place:
    """Kernels that run on the host, built by every compiler there is."""
    return Place(np, HostLauncher(compiler=request.param))


@pytest.fixture
def refusing() -> Iterator[CudaKernels]:
    """Kernels, of which none may have been launched in the end."""
    launcher = HostLauncher()
    yield CudaKernels(launcher)
    assert launcher.launches == []
