"""A CUDA error after a launch names the kernel and its arguments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.device import cupy_or_skip

cupy_or_skip()

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = """
import cupy
from pycomm.kernels.cuda import CudaKernels
from pycomm.kernels.cuda_launcher import CupyLauncher
from pycomm.kernels.device import DeviceView
from pycomm.types import DTYPES, SUM
launcher = CupyLauncher()
x = cupy.ones(1000, "float32")
nowhere = DeviceView(4096, 4000, 0)
CudaKernels(launcher).reduce([x, nowhere], x, DTYPES["float32"], SUM)
launcher.synchronize()
"""


@pytest.mark.parametrize("blocking", ["0", "1"])
def test_memory_that_is_none(blocking):
    """The context does not survive this: it is another process's."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "CUDA_LAUNCH_BLOCKING": blocking},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    last = next(line for line in result.stderr.splitlines() if "CudaError: " in line)
    assert "reduce<11,0>" in last and "arguments 3e8 2 1 " in last, result.stderr
