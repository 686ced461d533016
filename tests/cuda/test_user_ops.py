"""A user's operations: what is checked, and what is launched; tests/gpu runs them."""

from __future__ import annotations

import ctypes
import struct

import numpy as np
import pytest

import pycomm
from pycomm.kernels import cuda_user_ops
from pycomm.kernels.cuda import MOST_ARRAYS, CudaKernels
from pycomm.kernels.launcher import Program
from pycomm.types import DTYPES, resolve_op
from tests.cuda.host import HostLauncher
from tests.user_ops import differ, in_order, inputs, mixed


class Adding(HostLauncher):
    """Computes mixed(a, b) where Numba's kernel would."""

    def launch_program(self, program: Program, grid: int, args: bytes) -> None:
        self.launches.append((program.name, grid))
        *arrays, count = struct.unpack(f"<{len(args) // 8}q", args)
        given = [_array(address, count, program.entry) for address in arrays]
        with np.errstate(all="ignore"):
            if program.name == "accumulate":
                given[0][:] = mixed(given[0], given[1])
                return
            sources, targets = given[: int(program.ptx)], given[int(program.ptx) :]
            total = in_order(sources, DTYPES[program.entry], mixed)
        for target in targets:
            target[:] = total


def _array(address, count, name):
    size = np.dtype(name).itemsize * count
    return np.frombuffer((ctypes.c_char * size).from_address(address), name)


@pytest.fixture
def kernels(monkeypatch):
    """Kernels whose programs are known by their number of inputs."""

    def reduce(op, dtype, inputs, outputs, capability):
        assert capability == (9, 0) and inputs <= MOST_ARRAYS
        return Program("reduce", str(inputs), dtype.name)

    def accumulate(op, dtype, capability):
        return Program("accumulate", "", dtype.name)

    monkeypatch.setattr(cuda_user_ops, "reduce_program", reduce)
    monkeypatch.setattr(cuda_user_ops, "accumulate_program", accumulate)
    launcher = Adding(multiprocessors=2)
    return CudaKernels(launcher), launcher.launches


@pytest.mark.parametrize("ranks", [1, 2, 5, MOST_ARRAYS, MOST_ARRAYS + 3])
def test_every_array_is_passed_in_its_place(kernels, ranks):
    dtype = DTYPES["float32"]
    op = resolve_op(pycomm.reduce_op(mixed), dtype)
    parts = inputs(mixed, ranks, 1000, dtype)
    out, other = np.empty(1000, "float32"), np.empty(1000, "float32")
    kernels[0].reduce_into(parts, [out, other], dtype, op)
    assert out.tobytes() == other.tobytes() == in_order(parts, dtype, mixed).tobytes()
    if ranks <= MOST_ARRAYS:
        assert kernels[1] == [("reduce", 4)]


def test_the_grid_is_bounded_and_nothing_is_launched_for_nothing(kernels):
    dtype = DTYPES["float32"]
    op = resolve_op(pycomm.reduce_op(mixed), dtype)
    x = np.zeros(300_000, "float32")
    kernels[0].reduce([x, x], x, dtype, op)
    kernels[0].reduce([x[:0], x[:0]], x[:0], dtype, op)
    assert kernels[1] == [("reduce", 32)]


def test_truths_widen_and_finish(kernels):
    dtype = DTYPES["bool"]
    op = resolve_op(pycomm.reduce_op(differ), dtype)
    x, partial, out = np.array([True, False] * 50), np.zeros(100, bool), np.zeros(100, bool)
    kernels[0].widen(x, partial, dtype, op)
    kernels[0].finish(partial, out, dtype, op, 1)
    assert np.array_equal(x, out)


def test_arguments_are_checked_first(kernels):
    dtype = DTYPES["float32"]
    op = resolve_op(pycomm.reduce_op(mixed), dtype)
    x = np.zeros(10, "float32")
    with pytest.raises(pycomm.ArgumentError, match="the sizes must agree"):
        kernels[0].reduce([x, x[:5].copy()], x, dtype, op)
    assert kernels[1] == []
