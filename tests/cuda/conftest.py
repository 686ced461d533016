"""The place where kernels are tested: here the host; tests/gpu/ has its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pycomm.kernels.cuda import CudaKernels
from pycomm.kernels.launcher import TEMPLATES
from tests.cuda.compilers import clang, cxx
from tests.cuda.host import HostLauncher, being_built, builders
from tests.cuda.place import Place

HERE = Path(__file__).resolve().parent
BY_CLANG = ("reduce.cu", "pack.cu", "quantize.cu", "convert.cu", "squares.cu")
"""What test_with_clang.py runs, the slowest to build first."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build on all cores from the beginning on, if all files of tests are to be run."""
    chosen = {item.path.name for item in session.items if item.path.parent == HERE}
    if len(chosen) < len(list(HERE.glob("test_*.py"))) or session.config.option.collectonly:
        return
    first, *rest = ((file, clang()) for file in BY_CLANG)
    every = ((file, cxx()) for file in sorted({t.file for t in TEMPLATES.values()}))
    for file, compiler in (first, *every, *rest):
        if compiler is not None:
            being_built(file, compiler)


def pytest_sessionfinish() -> None:
    """Build nothing more that nobody waits for."""
    builders.shutdown(wait=False, cancel_futures=True)


@pytest.fixture
def place() -> Place:
    """Kernels that run on the host."""
    return Place(np, HostLauncher())


@pytest.fixture
def refusing() -> Iterator[CudaKernels]:
    """Kernels, of which none may have been launched in the end."""
    launcher = HostLauncher()
    yield CudaKernels(launcher)
    assert launcher.launches == []
