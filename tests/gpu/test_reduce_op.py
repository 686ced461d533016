"""A user's operations on a GPU: kernels that Numba generates, with the bits of the CPU."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.gpu.device import cupy_or_skip

cupy = cupy_or_skip()
pytest.importorskip("numba", reason="needs Numba: pip install 'pycomm[cuda13]'")

import pycomm  # noqa: E402
from pycomm.types import DTYPES, resolve_op  # noqa: E402
from tests.user_ops import CASES, differ, in_order, inputs, log_add_exp, mixed  # noqa: E402


def bytes_of(part):
    return np.ascontiguousarray(part).view(np.uint8)


@pytest.mark.parametrize(("fn", "same", "dtype"), CASES, ids=lambda v: getattr(v, "name", None))
def test_the_bits_of_the_cpu(place, fn, same, dtype):
    op = resolve_op(pycomm.reduce_op(fn), dtype)
    for ranks in (1, 2, 3, 5):
        for count in (0, 1, 17, 70_003):
            parts = inputs(fn, ranks, count, dtype)
            arrays = [place.put(bytes_of(p)) for p in parts]
            place.kernels.reduce(arrays, arrays[0], dtype, op)
            expected = bytes_of(in_order(parts, dtype, same))
            assert np.array_equal(place.get(arrays[0]), expected), (ranks, count)
            place.forget()


@pytest.mark.parametrize(
    ("name", "fn"), [("bfloat16", mixed), ("float32", mixed), ("bool", differ)]
)
def test_widen_accumulate_finish_is_reduce(place, name, fn):
    dtype = DTYPES[name]
    op = resolve_op(pycomm.reduce_op(fn), dtype)
    arrays = [place.put(bytes_of(p)) for p in inputs(fn, 4, 5000, dtype)]
    partial = place.empty(5000 * dtype.partial.itemsize)
    out, whole = place.empty(arrays[0].nbytes), place.empty(arrays[0].nbytes)
    place.kernels.widen(arrays[0], partial, dtype, op)
    for array in arrays[1:]:
        place.kernels.accumulate(partial, array, dtype, op)
    place.kernels.finish(partial, out, dtype, op, 4)
    place.kernels.reduce(arrays, whole, dtype, op)
    assert np.array_equal(place.get(out), place.get(whole))


def test_more_inputs_than_one_launch_takes(place):
    dtype = DTYPES["float32"]
    op = resolve_op(pycomm.reduce_op(mixed), dtype)
    parts = inputs(mixed, 300, 100, dtype)
    arrays, out = [place.put(bytes_of(p)) for p in parts], place.empty(400)
    place.kernels.reduce(arrays, out, dtype, op)
    assert np.array_equal(place.get(out), bytes_of(in_order(parts, dtype, mixed)))


def test_functions_of_the_math_module(place):
    dtype = DTYPES["float64"]
    parts = [np.random.default_rng(k).normal(0, 9, 5000) for k in range(3)]
    arrays = [place.put(bytes_of(p)) for p in parts]
    op = resolve_op(pycomm.reduce_op(log_add_exp, identity=-math.inf), dtype)
    place.kernels.reduce(arrays, arrays[0], dtype, op)
    exact = np.logaddexp.reduce(parts)
    assert (
        np.abs(place.get(arrays[0]).view(np.float64) - exact).max() <= 1e-14 * np.abs(exact).max()
    )
