"""The place where kernels are tested: here the host; tests/gpu/ has its own."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda.host import HostLauncher
from tests.cuda.place import Place


@pytest.fixture
def place() -> Place:
    """Kernels that run on the host."""
    return Place(np, HostLauncher())
