"""Strided arrays ↔ contiguous ones: the kernels of strided.cu and transpose.cu against NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.kernels import cuda_strides
from pycomm.kernels.cuda_strided import StridedView, pack_strided, unpack_strided
from pycomm.kernels.device import HOST, DeviceView
from tests.cuda.arrays import FILL, Guarded, sparse, view
from tests.cuda.host import HostLauncher

KINDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


def strided(x):
    return StridedView(x.ctypes.data, x.shape, x.strides, x.itemsize, HOST)


def numbered(shape, itemsize):
    """Return an array whose bytes differ from place to place."""
    nbytes = int(np.prod(shape)) * itemsize
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
    return data.view(KINDS[itemsize]).reshape(shape)


def contiguous_bytes(x):
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def check(x, multiprocessors=2, misaligned=0):
    """Pack x and unpack it into an array of the same strides; return the kernel that packed."""
    launcher = HostLauncher(multiprocessors)
    flat = Guarded(x.nbytes, misaligned)
    pack_strided(launcher, strided(x), flat.view)
    assert np.array_equal(flat.bytes, contiguous_bytes(x))
    flat.assert_guards()
    if x.size and 0 not in [s for s, n in zip(x.strides, x.shape) if n > 1]:
        check_unpack(launcher, x, flat)
    return launcher.launches[0][0].split("<")[0] if launcher.launches else None


def check_unpack(launcher, x, flat):
    """Check that the elements of an array like x are written, and nothing between them."""
    low, high = strided(x).span
    room, expected = Guarded(high - low, low % 16), np.full(high - low, FILL, np.uint8)
    first = x.ctypes.data - low
    out = StridedView(room.view.address + first, x.shape, x.strides, x.itemsize, HOST)
    unpack_strided(launcher, flat.view, out)
    place = expected[first : first + x.itemsize].view(x.dtype)
    np.lib.stride_tricks.as_strided(place, x.shape, x.strides)[...] = x
    assert np.array_equal(room.bytes, expected)
    room.assert_guards()


@pytest.mark.parametrize("itemsize", KINDS)
@pytest.mark.parametrize("multiprocessors", [1, 40])
def test_transposed_matrices(itemsize, multiprocessors):
    for shape in [(16, 16), (32, 64), (33, 65), (100, 17), (131, 70)]:
        assert check(numbered(shape, itemsize).T, multiprocessors) == "transpose"
    assert check(numbered((3, 40, 50), itemsize).swapaxes(1, 2)) == "transpose"
    assert check(numbered((2, 20, 3, 18), itemsize).transpose(2, 3, 0, 1)) == "transpose"
    assert check(numbered((4, 20, 30), itemsize).transpose(2, 1, 0)) == "strided_items"
    assert check(numbered((50, 10), itemsize).T) == "strided_items"


@pytest.mark.parametrize("itemsize", KINDS)
def test_rows(itemsize):
    columns = 320 // itemsize
    for first, last in [(0, columns - 1), (1, columns), (3, columns - 1)]:
        x = numbered((37, columns), itemsize)[:, first:last]
        assert check(x) == ("strided_rows" if x[0].nbytes >= 256 else "strided_items")
    assert check(numbered((5, 3000), 4)[::-2, 7:2900], misaligned=3) == "strided_rows"
    assert check(numbered((4, 3, 5, 700), 2)[1:3, ::2, ::-1, 5:], misaligned=1) == "strided_rows"


@pytest.mark.parametrize("itemsize", KINDS)
def test_contiguous_arrays_are_one_row(itemsize):
    for shape in [(), (1,), (7,), (3, 5, 7), (1, 40_000), (2, 1, 3000, 1)]:
        assert check(numbered(shape, itemsize)) == "strided_rows"


@pytest.mark.parametrize("itemsize", KINDS)
@pytest.mark.parametrize("limit", [1 << 31, 1])
def test_steps_signs_and_zeros(itemsize, limit, monkeypatch):
    """Also with items numbered by 64 bits."""
    monkeypatch.setattr(cuda_strides, "INDEX_LIMIT", limit)
    cuda_strides.plan.cache_clear()
    x = numbered((12, 18, 20), itemsize)
    assert check(x[::3, 1:-1:2, ::-7]) == "strided_items"
    assert check(x[::-1, ::-1, ::-1]) == "strided_items"
    assert check(x[:, :, 5], 30) == "strided_items"
    assert check(np.broadcast_to(x[0, 0], (9, 20))) is not None
    assert check(np.broadcast_to(x[:, 3:4, ::2], (12, 5, 10))) == "strided_items"
    assert check(np.broadcast_to(x[0, 0, 0], (3, 4))) == "strided_items"
    cuda_strides.plan.cache_clear()


def test_eight_dimensions_in_every_order_of_some():
    x = numbered((2, 3, 2, 3, 2, 3, 2, 3), 2)
    for order in itertools.islice(itertools.permutations(range(8)), 0, None, 1301):
        check(x.transpose(order)[:, ::-1])


def test_items_become_wider_where_rows_allow():
    launcher = HostLauncher()
    for columns, item in [(8, 16), (4, 16), (6, 8), (2, 8), (3, 4)]:
        x = numbered((10, 16), 4)[:, :columns]
        pack_strided(launcher, strided(x), Guarded(x.nbytes).view)
        assert launcher.launches[-1][0] == f"strided_items<{item},0,32>"


def test_nothing_to_pack_launches_nothing():
    assert check(numbered((3, 0, 2), 4).T) is None


def test_strides_beyond_two_to_the_31_bytes():
    room = sparse(7 << 30)
    stride = (3 << 30) + 4
    window = np.ndarray((3, 5), np.uint32, room.data, strides=(stride, 8))
    window[...] = numbered((3, 5), 4)
    assert check_packed(window) == "strided_items"
    rows = np.ndarray((3, 1000), np.uint8, room.data, strides=(stride, 1))
    rows[...] = numbered((3, 1000), 1)
    assert check_packed(rows) == "strided_rows"
    batch = np.ndarray((3, 20, 20), np.uint32, room.data, strides=(stride, 4, 80))
    batch[...] = numbered((3, 20, 20), 4)
    assert check_packed(batch) == "transpose"


def check_packed(x):
    launcher, flat = HostLauncher(), Guarded(x.nbytes)
    pack_strided(launcher, strided(x), flat.view)
    assert np.array_equal(flat.bytes, contiguous_bytes(x))
    return launcher.launches[0][0].split("<")[0]


@pytest.mark.parametrize("bits", [32, 64])
def test_division_without_dividing(bits):
    rng = np.random.default_rng(bits)
    limit = 1 << (bits - 1)
    random = [int(limit ** rng.random()) for _ in range(200)]
    for divisor in [1, 2, 3, 5, 7, 641, 65535, 65537, limit - 1, *random]:
        magic, shift = cuda_strides._division(divisor, bits)
        assert magic < 1 << bits
        for n in [0, 1, divisor - 1, divisor, limit // divisor * divisor - 1, limit - 1, *random]:
            assert (2 * n * magic >> bits) >> shift == n // divisor


def test_errors_come_before_any_launch():
    launcher, x = HostLauncher(), numbered((4, 6), 4)
    with pytest.raises(
        ArgumentError, match=r"out has 95 bytes, but shape \(6, 4\) of 4-byte items"
    ):
        pack_strided(launcher, strided(x.T), Guarded(95).view)
    with pytest.raises(ArgumentError, match="out .* overlaps the strided array, which spans 96"):
        pack_strided(launcher, strided(x.T), view(x))
    with pytest.raises(ArgumentError, match="x .* is on cuda:1, but the kernels run on the"):
        unpack_strided(launcher, DeviceView(4096, 96, device=1), strided(x.T))
    with pytest.raises(ArgumentError, match=r"strides \(0, 4\) share memory"):
        unpack_strided(launcher, Guarded(96).view, strided(np.broadcast_to(x[0], (4, 6))))
    window = np.lib.stride_tricks.sliding_window_view(x[0], 3)
    with pytest.raises(ArgumentError, match="a stride of 4 within 12 bytes"):
        unpack_strided(launcher, Guarded(96).view, strided(window))
    with pytest.raises(UnsupportedError, match="items of 3 bytes: only 1, 2, 4, 8, 16 are packed"):
        pack_strided(launcher, StridedView(4096, (5,), (4,), 3, HOST), Guarded(96).view)
    with pytest.raises(UnsupportedError, match="9 dimensions in shape"):
        pack_strided(launcher, strided(numbered((2,) * 9, 1).T), Guarded(512).view)
    with pytest.raises(ArgumentError, match=r"shape \(5, 1\) has not as many sizes as strides"):
        pack_strided(launcher, StridedView(4096, (5, 1), (4,), 4, HOST), Guarded(96).view)
    assert launcher.launches == []
