"""What packing refuses before anything is launched."""

from __future__ import annotations

import numpy as np
import pytest

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.kernels.cuda_strided import StridedView
from pycomm.kernels.device import HOST, DeviceView
from pycomm.types import DTYPES
from tests.cuda.test_check_arguments import part, room

U8, F32, BF16, F64 = (DTYPES[n] for n in ("uint8", "float32", "bfloat16", "float64"))


def test_packing(refusing):
    a, b = room(12), room(8)
    packing = refusing.packing([a, b], F32)
    with pytest.raises(ArgumentError, match="the bucket has 19 bytes, but 2 arrays of float32 end"):
        packing.pack(room(19))
    with pytest.raises(
        ArgumentError, match=r"the bucket .* overlaps arrays\[1\] \(8 bytes at 0x\w+\)"
    ):
        packing.pack(part(b, -13, 20))
    with pytest.raises(ArgumentError, match="the bucket .* is on cuda:1, but the kernels run on"):
        packing.unpack(DeviceView(1 << 20, 20, device=1))
    with pytest.raises(ArgumentError, match="array 1 is float64, array 0 is float32"):
        refusing.packing([a, b], [F32, F64])
    with pytest.raises(ArgumentError, match=r"arrays\[1\] .* is on cuda:2, but the kernels"):
        refusing.packing([a, part(b, 0, 8, device=2)], F32)
    with pytest.raises(ArgumentError, match="array 0 has 12 bytes, which is no whole number of"):
        refusing.packing([a], F64)
    with pytest.raises(ArgumentError, match="arrays 0 and 1 overlap: unpacking would write both"):
        refusing.packing([a, a], F32).unpack(room(24))


def test_places(refusing):
    a, b = room(12), room(8)
    with pytest.raises(ArgumentError, match="arrays 0 and 1 overlap in the bucket: 12 bytes at 0"):
        refusing.packing([a, b], F32, offsets=[0, 8])
    with pytest.raises(ArgumentError, match=r"offsets\[1\]=-8 lies before"):
        refusing.packing([a, b], F32, offsets=[0, -8])
    with pytest.raises(ArgumentError, match="1 offsets for 2 arrays"):
        refusing.packing([a, b], F32, offsets=[0])


def test_chunks(refusing):
    a, b = room(12), room(8)
    with pytest.raises(ArgumentError, match="peer 1 has 8 bytes, but 3 rows of 4 bytes are 12"):
        refusing.chunks_of_rows([a, b], [3, 3], 4, F32)
    with pytest.raises(ArgumentError, match="2 chunks, but counts of 1 peers"):
        refusing.chunks_of_rows([a, b], [3], 4, F32)


def test_conversion(refusing):
    a = part(room(18), 2, 16)
    with pytest.raises(UnsupportedError, match="float64 is not converted to float32 as it is pack"):
        refusing.packing([a], F64, F32)
    with pytest.raises(UnsupportedError, match="factor=0.5 on uint8: only floats and complex"):
        refusing.packing([a], U8).pack(room(16), 0.5)
    with pytest.raises(ArgumentError, match="array 0: float32 at 0x.* is not aligned to 4 bytes"):
        refusing.packing([a], F32, BF16).pack(room(8))


def test_strided(refusing):
    x = np.zeros((4, 6), np.uint32)
    with pytest.raises(
        ArgumentError, match=r"out .95 bytes .* is too small: shape \(6, 4\) of 4-byte items has 96"
    ):
        refusing.pack_strided(x.T, room(95))
    with pytest.raises(ArgumentError, match="out .* overlaps the strided array .96 bytes"):
        refusing.pack_strided(x.T, x)
    with pytest.raises(ArgumentError, match="x .* is on cuda:1, but the kernels run on the"):
        refusing.unpack_strided(DeviceView(4096, 96, device=1), x.T)
    with pytest.raises(ArgumentError, match="the strided array .* is on cuda:1, but the kernels"):
        refusing.pack_strided(StridedView(4096, (5,), (8,), 4, 1), room(20))
    with pytest.raises(ArgumentError, match=r"strides \(0, 4\) share memory"):
        refusing.unpack_strided(room(96), np.broadcast_to(x[0], (4, 6)))
    window = np.lib.stride_tricks.sliding_window_view(x[0], 3)
    with pytest.raises(ArgumentError, match="a stride of 4 within 12 bytes"):
        refusing.unpack_strided(room(96), window)


def test_shapes(refusing):
    with pytest.raises(UnsupportedError, match="items of 3 bytes: only 1, 2, 4, 8, 16 are packed"):
        refusing.pack_strided(StridedView(4096, (5,), (4,), 3, HOST), room(96))
    with pytest.raises(UnsupportedError, match="9 dimensions in shape"):
        refusing.pack_strided(np.zeros((2,) * 9, np.uint8).T, room(512))
    with pytest.raises(ArgumentError, match=r"shape \(5, 1\) has not as many sizes as strides"):
        refusing.pack_strided(StridedView(4096, (5, 1), (4,), 4, HOST), room(96))
    with pytest.raises(UnsupportedError, match="a list is no memory for CUDA kernels"):
        refusing.pack_strided([1.0], room(8))
