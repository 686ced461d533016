"""Packing beyond 2³¹ bytes, and places and strides beyond 2³² bytes."""

from __future__ import annotations

import numpy as np

from pycomm.kernels.cuda import CudaKernels
from pycomm.types import DTYPES
from tests.cuda.host import HostLauncher
from tests.cuda.memory import folded, sparse
from tests.cuda.test_pack import random_bytes
from tests.cuda.test_strided import contiguous_bytes, numbered

U8 = DTYPES["uint8"]


def test_one_array_beyond_two_to_the_31_bytes():
    size = (1 << 31) + 70_001
    x = sparse(size + 16)
    launcher = HostLauncher(1 << 20)
    launcher.only = 80  # a block for each chunk, of which only the first and the last are run
    with folded(size + 16, bytes_of_tail=1 << 20) as target:
        x[-(1 << 20) :] = random_bytes(np.random.default_rng(3), 1 << 20)
        CudaKernels(launcher).packing([x[3 : size + 3]], U8).pack(target[8 : size + 8])
        assert np.array_equal(target[1 << 31 : size + 8], x[(1 << 31) - 5 : size + 3])
        assert (target[size + 8 :] == 0).all()


def test_places_beyond_two_to_the_32_bytes():
    rng = np.random.default_rng(4)
    bucket, offsets = sparse(5 << 30), [1, (1 << 31) - 3, (1 << 32) + 7]
    data = [random_bytes(rng, 1000) for _ in offsets]
    CudaKernels(HostLauncher()).packing(data, U8, offsets=offsets).pack(bucket)
    for x, offset in zip(data, offsets):
        assert np.array_equal(bucket[offset : offset + 1000], x)
        assert bucket[offset - 1] == bucket[offset + 1000] == 0


def test_strides_beyond_two_to_the_31_bytes():
    room = sparse(7 << 30)
    stride = (3 << 30) + 4
    window = np.ndarray((3, 5), np.uint32, room.data, strides=(stride, 8))
    window[...] = numbered((3, 5), 4)
    assert packed_by(window) == "strided_items"
    rows = np.ndarray((3, 1000), np.uint8, room.data, strides=(stride, 1))
    rows[...] = numbered((3, 1000), 1)
    assert packed_by(rows) == "strided_rows"
    batch = np.ndarray((3, 20, 20), np.uint32, room.data, strides=(stride, 4, 80))
    batch[...] = numbered((3, 20, 20), 4)
    assert packed_by(batch) == "transpose"


def packed_by(x):
    launcher, flat = HostLauncher(), np.empty(x.nbytes, np.uint8)
    CudaKernels(launcher).pack_strided(x, flat)
    assert np.array_equal(flat, contiguous_bytes(x))
    return launcher.launches[0][0].split("<")[0]
