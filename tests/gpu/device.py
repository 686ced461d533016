"""The GPU, or why there is none."""

from __future__ import annotations

from typing import Any

import pytest

from pycomm.errors import MissingError
from pycomm.kernels.cuda_launcher import import_cupy


def cupy_or_skip() -> Any:
    """Return CuPy on a machine with a GPU; elsewhere skip the file that calls this."""
    try:
        return import_cupy()
    except MissingError as error:
        pytest.skip(str(error), allow_module_level=True)


def torch_or_skip() -> Any:
    """Return torch if it has the GPU, too; elsewhere skip the file that calls this."""
    cupy_or_skip()
    torch = pytest.importorskip("torch", reason="needs torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a torch that is built for CUDA", allow_module_level=True)
    return torch
