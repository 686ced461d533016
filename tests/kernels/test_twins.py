"""Numba on CUDA without a GPU: the twins in its simulator, and the PTX of a user's operations."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import pycomm
from pycomm.kernels import numba_cuda
from pycomm.types import DTYPES, resolve_op
from tests.user_ops import differ, mixed

ROOT = Path(__file__).resolve().parent.parent.parent
HOPPER = (9, 0)


def test_the_twins_in_the_simulator():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/twins"]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Numba compile for a Hopper GPU that is not there; skip where it has no NVVM."""
    toolkits = sorted(Path("/usr/local").glob("cuda*/nvvm"))
    if "CUDA_HOME" not in os.environ and toolkits:
        monkeypatch.setenv("CUDA_HOME", str(toolkits[-1].parent))
    dispatcher = pytest.importorskip("numba.cuda.dispatcher")
    device = SimpleNamespace(compute_capability=HOPPER)
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: device)
    try:
        numba_cuda.reduce_program(_op(mixed, "float32"), DTYPES["float32"], 2, 1, HOPPER)
    except pycomm.MissingError as error:
        pytest.skip(str(error))


def _op(fn, name):
    return resolve_op(pycomm.reduce_op(fn), DTYPES[name])


@pytest.mark.parametrize("name", DTYPES)
def test_nothing_is_contracted(compiler, name):
    fn = differ if name == "bool" else mixed
    reduction = numba_cuda.reduce_program(_op(fn, name), DTYPES[name], 3, 2, HOPPER)
    accumulation = numba_cuda.accumulate_program(_op(fn, name), DTYPES[name], HOPPER)
    assert "fma." not in reduction.ptx and "fma." not in accumulation.ptx
    assert parameters(reduction) == [".u64"] * 6 and parameters(accumulation) == [".u64"] * 3
    assert ".local .align" not in reduction.ptx, "the accumulator is in registers"


def parameters(program):
    """Return the types of the entry's parameters."""
    head = program.ptx.partition(f".entry {program.entry}(")[2].partition(")")[0]
    return [line.split()[1] for line in head.strip().splitlines()]


def test_functions_of_the_math_module_compile(compiler):
    op = _op(lambda a, b: math.log1p(math.exp(a) + b), "float32")
    assert numba_cuda.reduce_program(op, DTYPES["float32"], 2, 1, HOPPER).entry


def test_what_compiles_for_the_cpu_alone_says_so(compiler):
    op = _op(lambda a, b: a + len(str(int(b))), "float32")
    with pytest.raises(
        pycomm.UnsupportedError, match=r"does not work on float32 on a GPU: "
    ) as error:
        numba_cuda.reduce_program(op, DTYPES["float32"], 2, 1, HOPPER)
    assert "\n" not in str(error.value)
