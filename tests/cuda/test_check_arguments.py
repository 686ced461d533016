"""What quantisation, checks, norms and selection refuse before anything is launched."""

from __future__ import annotations

import numpy as np
import pytest

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.kernels.device import HOST, DeviceView, device_view
from pycomm.types import DTYPES

F32, F64, I8 = DTYPES["float32"], DTYPES["float64"], DTYPES["int8"]


def room(nbytes):
    """Return memory at a multiple of 16 bytes."""
    memory = np.zeros(nbytes + 16, np.uint8)
    start = -memory.ctypes.data % 16
    return device_view(memory[start : start + nbytes])


def part(view, start, nbytes, device=HOST):
    """Return some bytes of a view."""
    return DeviceView(view.address + start, nbytes, device, view.owner)


def test_quantize(refusing):
    x, values, scales = room(1200), room(300), room(8)
    with pytest.raises(ArgumentError, match="300 bytes of values and 8 of scales"):
        refusing.quantize(x, values, part(scales, 0, 4), F32, I8)
    with pytest.raises(ArgumentError, match="does not hold whole float32"):
        refusing.quantize(part(x, 0, 1199), values, scales, F32, I8)
    with pytest.raises(ArgumentError, match=r"x .* does not hold float32: .* aligned to 4"):
        refusing.quantize(part(x, 2, 1200), values, scales, F32, I8)
    with pytest.raises(ArgumentError, match=r"scales .* is on cuda:1, but the kernels run on the"):
        refusing.quantize(x, values, part(scales, 0, 8, device=1), F32, I8)
    with pytest.raises(ArgumentError, match=r"values .* overlaps x .* memory of its own"):
        refusing.quantize(x, part(x, 0, 300), scales, F32, I8)
    with pytest.raises(ArgumentError, match="values .* overlaps scales"):
        refusing.quantize(x, values, part(values, 64, 8), F32, I8)
    with pytest.raises(UnsupportedError, match="int8, float8_e4m3fn, float8_e5m2: float16"):
        refusing.quantize(x, values, scales, F32, DTYPES["float16"])


def test_dequantize_reduce(refusing):
    output, values, scales = room(1200), room(300), room(8)
    with pytest.raises(ArgumentError, match="0 arrays of values and 0 of scales"):
        refusing.dequantize_reduce([], [], output, F32, I8)
    with pytest.raises(ArgumentError, match="input 1 has 299 and 8"):
        refusing.dequantize_reduce(
            [values, part(values, 0, 299)], [scales, scales], output, F32, I8
        )
    with pytest.raises(ArgumentError, match=r"output .* overlaps values\[0\]"):
        refusing.dequantize_reduce([part(output, 300, 300)], [scales], output, F32, I8)
    with pytest.raises(ArgumentError, match=r"scales\[0\] .* is on cuda:3"):
        refusing.dequantize_reduce([values], [part(scales, 0, 8, device=3)], output, F32, I8)


def test_first_non_finite(refusing):
    x, first = room(64), room(8)
    with pytest.raises(UnsupportedError, match="int32 is neither float nor complex"):
        refusing.first_non_finite(x, first, DTYPES["int32"])
    with pytest.raises(ArgumentError, match="first .* holds 8 elements of int64, but 1 are needed"):
        refusing.first_non_finite(first, x, F32)
    with pytest.raises(ArgumentError, match="x .12 bytes .* does not hold complex64"):
        refusing.first_non_finite(part(x, 0, 12), first, DTYPES["complex64"])
    with pytest.raises(ArgumentError, match="aligned to 2"):
        refusing.first_non_finite(part(x, 1, 8), first, DTYPES["float16"])
    with pytest.raises(ArgumentError, match="first .* overlaps x"):
        refusing.first_non_finite(x, part(x, 8, 8), F32)


def test_sum_of_squares(refusing):
    x = room(64)
    with pytest.raises(UnsupportedError, match="int8 is neither"):
        refusing.sum_of_squares([x], I8)
    with pytest.raises(ArgumentError, match=r"arrays\[1\] .3 bytes .* does not hold float32"):
        refusing.sum_of_squares([x, part(x, 0, 3)], F32)
    with pytest.raises(ArgumentError, match="1 arrays, but 2 dtypes"):
        refusing.sum_of_squares([x], [F32, F64])
    with pytest.raises(ArgumentError, match=r"arrays\[0\] .* is on cuda:1"):
        refusing.sum_of_squares([part(x, 0, 8, device=1)], F32)
    squares = refusing.sum_of_squares([x], F32)
    with pytest.raises(ArgumentError, match="total .* holds 2 elements of float64, but 1 are"):
        squares.into(room(16))
    with pytest.raises(ArgumentError, match=r"total .* overlaps arrays\[0\]"):
        squares.into(part(x, 8, 8))
    with pytest.raises(ArgumentError, match="total .* is on cuda:1"):
        squares.into(part(room(8), 0, 8, device=1))


def test_top_k(refusing):
    x, values, indices = room(40), room(12), room(24)
    with pytest.raises(ArgumentError, match="k=11 of 10 elements"):
        refusing.top_k(x, 11, values, indices, F32)
    with pytest.raises(ArgumentError, match="values .* holds 3 elements of float32, but 2 are"):
        refusing.top_k(x, 2, values, indices, F32)
    with pytest.raises(ArgumentError, match="values .* overlaps x"):
        refusing.top_k(x, 3, part(x, 8, 12), indices, F32)
    with pytest.raises(ArgumentError, match="x .39 bytes .* does not hold float32"):
        refusing.top_k(part(x, 0, 39), 3, values, indices, F32)
    with pytest.raises(UnsupportedError, match="int32 is none of float16, bfloat16"):
        refusing.top_k(x, 3, values, indices, DTYPES["int32"])
