"""A user's operations on the CPU: NumPy's bits on every dtype, and errors that say why not."""

from __future__ import annotations

import math
import operator
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from numba import njit

import pycomm
from pycomm.arrays import numpy_dtype
from pycomm.kernels.cpu import CpuKernels
from pycomm.types import DTYPES, DType, ReduceOp, resolve_op
from tests.user_ops import CASES, in_order, inputs, log_add_exp, max_abs, mixed, saturating

SIZES = (0, 1, 3, 17, 2047, 2049, 5000)
"""A block is 8 KiB of the accumulator: 2048 elements of float32."""

kernels = CpuKernels()


def reduced(parts: list[np.ndarray], op: ReduceOp) -> np.ndarray:
    """Return what the kernel makes of `parts`, which lie at odd addresses."""
    dtype = DTYPES[parts[0].dtype.name]
    rooms = [np.zeros(p.nbytes + 8, np.uint8) for p in parts]
    shifted = [room[k % 5 : k % 5 + p.nbytes] for k, (room, p) in enumerate(zip(rooms, parts))]
    for room, part in zip(shifted, parts):
        room[:] = part.view(np.uint8)
    kernels.reduce(shifted, shifted[0], dtype, resolve_op(op, dtype))
    return shifted[0].copy().view(parts[0].dtype)


@pytest.mark.parametrize(("fn", "same", "dtype"), CASES, ids=lambda v: getattr(v, "name", None))
def test_numpy_gives_the_same_bits(fn, same, dtype):
    op = pycomm.reduce_op(fn)
    for ranks in (1, 2, 3, 5):
        for count in SIZES:
            parts = inputs(fn, ranks, count, dtype)
            expected = in_order(parts, dtype, same)
            assert reduced(parts, op).tobytes() == expected.tobytes(), (ranks, count)


def test_the_order_is_that_of_the_inputs():
    op = pycomm.reduce_op(lambda a, b: a * 10 + b)
    assert reduced([np.full(3, k) for k in (1, 2, 3, 4)], op).tolist() == [1234] * 3


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-14), ("float32", 1e-6)])
def test_functions_of_the_c_library(dtype, bound):
    parts = [np.random.default_rng(k).normal(0, 9, 5000).astype(dtype) for k in range(3)]
    got = reduced(parts, pycomm.reduce_op(log_add_exp, identity=-math.inf))
    exact = np.logaddexp.reduce([p.astype(np.float64) for p in parts])
    assert np.abs(got - exact).max() <= bound * np.abs(exact).max()


@pytest.mark.parametrize("fn", [log_add_exp, mixed], ids=lambda fn: fn.__name__)
def test_an_elements_bits_do_not_depend_on_its_place(fn):
    """Vector code and the scalar code for what is left over compute the same."""
    op = pycomm.reduce_op(fn)
    parts = [np.random.default_rng(k).normal(0, 9, 300).astype(np.float32) for k in range(3)]
    whole = reduced(parts, op)
    for begin, end in ((0, 1), (1, 2), (7, 40), (100, 299), (299, 300)):
        piece = reduced([p[begin:end].copy() for p in parts], op)
        assert piece.tobytes() == whole[begin:end].tobytes()


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32", "bool", "complex64"])
def test_widen_accumulate_finish_is_reduce(name):
    """As the ring does it: in the accumulator, of more than a block at a time."""
    dtype = DTYPES[name]
    fn = (lambda a, b: a != b) if name == "bool" else mixed
    op = resolve_op(pycomm.reduce_op(fn), dtype)
    parts = [p.view(np.uint8) for p in inputs(fn, 4, 5000, dtype)]
    partial = np.empty(5000 * dtype.partial.itemsize, np.uint8)
    kernels.widen(parts[0], partial, dtype, op)
    for part in parts[1:]:
        kernels.accumulate(partial, part, dtype, op)
    out, whole = np.empty_like(parts[0]), np.empty_like(parts[0])
    kernels.finish(partial, out, dtype, op, 4)
    kernels.reduce(parts, whole, dtype, op)
    assert np.array_equal(out, whole)


def test_narrow_floats_are_rounded_once():
    """In bfloat16 256 + 1 is 256 again; in float32 the four ones add up."""
    parts = [np.full(5, v, numpy_dtype(DTYPES["bfloat16"])) for v in (256, 1, 1, 1, 1)]
    got = reduced(parts, pycomm.reduce_op(lambda a, b: a + b))
    assert got.astype(np.float32).tolist() == [260.0] * 5


def test_denormals_survive_whatever_mode_the_thread_is_in():
    tiny = [np.full(100, 1e-45, np.float32)] * 3
    torch.set_flush_denormal(True)
    try:
        got = reduced(tiny, pycomm.reduce_op(lambda a, b: a + b))
    finally:
        torch.set_flush_denormal(False)
    assert (got.view(np.int32) == 3).all()


def test_integers_wrap_and_division_by_zero_raises_nothing():
    assert (
        reduced([np.full(3, 100, np.int8)] * 2, pycomm.reduce_op(lambda a, b: a + b)).tolist()
        == [-56] * 3
    )
    zero = [np.ones(3, np.float32), np.zeros(3, np.float32)]
    assert reduced(zero, pycomm.reduce_op(lambda a, b: a / b)).tolist() == [math.inf] * 3
    zero = [np.ones(3, np.int32), np.zeros(3, np.int32)]
    assert reduced(zero, pycomm.reduce_op(lambda a, b: a // b)).tolist() == [0] * 3


# ---- what a digest tells apart


def test_equal_functions_are_equal_operations_and_others_are_not():
    def scaled(factor):
        return lambda a, b: a + b * factor

    assert pycomm.reduce_op(scaled(2.0)) == pycomm.reduce_op(scaled(2.0))
    distinct = [
        scaled(2.0),
        scaled(3.0),
        scaled(np.arange(3.0)),
        scaled(np.arange(3.0) + 1),
        lambda a, b: a + b,
        lambda a, b: b + a,
        lambda a, b: a + b + 1,
        lambda a, b: a + b + 1.0,
        lambda a, b: math.sin(a) + b,
        lambda a, b: math.cos(a) + b,
        lambda a, b: helper(a) + b,
        lambda a, b: compiled_helper(a) + b,
    ]
    names = [pycomm.reduce_op(fn).name for fn in distinct]
    assert len(set(names)) == len(names), names
    assert pycomm.reduce_op(max_abs, 0) != pycomm.reduce_op(max_abs)


def helper(a):
    """Do something."""
    return a * 2


@njit
def compiled_helper(a):
    """Do something else."""
    return a * 3


def test_functions_that_are_called_count(monkeypatch):
    def fn(a, b):
        return compiled_helper(a) + b

    before = pycomm.reduce_op(fn)
    resolve_op(before, DTYPES["float32"])
    monkeypatch.setitem(globals(), "compiled_helper", njit(lambda a: a * 5))
    assert pycomm.reduce_op(fn) != before
    assert reduced([np.ones(2)] * 2, pycomm.reduce_op(fn)).tolist() == [6.0] * 2
    with pytest.raises(pycomm.ArgumentError, match="what fn#.* uses has changed since"):
        resolve_op(before, DTYPES["float64"])


def test_the_name_is_the_same_in_every_process():
    code = "import pycomm; from tests.user_ops import *; print(pycomm.reduce_op(%s))"
    run = [sys.executable, "-c", code % "log_add_exp, -math.inf"]
    said = subprocess.run(run, capture_output=True, text=True, check=True, timeout=120).stdout
    assert said.strip() == repr(pycomm.reduce_op(log_add_exp, -math.inf))


# ---- what is refused


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (max, r"a Python function of two arguments is needed; wrap another"),
        (operator.add, r"a Python function of two arguments is needed"),
        ("sum", r"a Python function of two arguments is needed"),
        (lambda a: a, r"must have two arguments, not \(a\)"),
        (lambda a, b, c=1: a, r"must have two arguments, not \(a, b, c=1\)"),
        (lambda *a: a[0], r"must have two arguments, not \(\*a\)"),
    ],
)
def test_what_is_no_function_of_two_arguments(fn, message):
    with pytest.raises(pycomm.ArgumentError, match=message):
        pycomm.reduce_op(fn)


def test_a_function_that_may_raise():
    def positive(a, b):
        assert a > 0
        return a + b

    with pytest.raises(pycomm.ArgumentError, match="positive has a raise or an assert"):
        pycomm.reduce_op(positive)
    with pytest.raises(pycomm.ArgumentError, match="fn has a raise or an assert"):
        pycomm.reduce_op(_calls(positive))


def _calls(other):
    def fn(a, b):
        return other(a, b)

    return fn


def test_a_function_that_cannot_be_compared():
    with pytest.raises(pycomm.ArgumentError, match="fn uses other, a object, which cannot be"):
        pycomm.reduce_op(_calls(object()))


@pytest.mark.parametrize(
    ("fn", "dtype", "message"),
    [
        (
            lambda a, b: a.foo,
            "float32",
            r"work on float32: Unknown attribute 'foo' of type float32",
        ),
        (lambda a, b: a + "x", "bfloat16", r"work on bfloat16 \(computed in float32\): .*Literal"),
        (lambda a, b: a / b, "int32", r"work on int32: it returns float64: convert the result"),
        (lambda a, b: a * 1j, "float64", r"it returns complex128"),
        (lambda a, b: (a, b), "float32", r"it returns UniTuple"),
        (lambda a, b: None, "float32", r"it returns none"),
        (saturating, "complex64", r"saturating#.* does not work on complex64: "),
    ],
)
def test_a_function_that_does_not_compile_or_fit(fn, dtype, message):
    with pytest.raises(pycomm.UnsupportedError, match=message) as error:
        resolve_op(pycomm.reduce_op(fn), DTYPES[dtype])
    assert "\n" not in str(error.value) and isinstance(error.value, TypeError)


@pytest.mark.parametrize(
    ("identity", "dtype", "message"),
    [
        (1, "float32", r"identity=1 is none: with 0.0 it gives 1.0"),
        (math.nan, "float64", r"identity=nan is none"),
        (0.5, "int8", r"identity=0.5 is no value of int8"),
        (-1, "uint8", r"identity=-1 is no value of uint8"),
        (math.inf, "int32", r"identity=inf is no value of int32"),
        ("zero", "float32", r"identity='zero' is no value of float32"),
    ],
)
def test_what_is_no_identity(identity, dtype, message):
    with pytest.raises(pycomm.UnsupportedError, match=message):
        resolve_op(pycomm.reduce_op(lambda a, b: a + b, identity), DTYPES[dtype])


@pytest.mark.parametrize("dtype", [d for d in DTYPES.values() if d.family != "bool"])
def test_an_identity_is_taken(dtype: DType):
    assert resolve_op(pycomm.reduce_op(lambda a, b: a + b, 0), dtype).code > 4096


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sys.modules['numba'] = None", "MissingError: pycomm.reduce_op needs Numba: pip install"),
        ("os.environ['NUMBA_DISABLE_JIT'] = '1'", "UnsupportedError: .*without NUMBA_DISABLE_JIT"),
    ],
)
def test_numba_is_missing_or_disabled(setting, message):
    code = f"import os, sys, pycomm; {setting}; pycomm.reduce_op(lambda a, b: a + b)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert re.search(message, result.stderr), result.stderr
