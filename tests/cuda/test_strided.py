"""Strided arrays ↔ contiguous ones: the kernels of strided.cu and transpose.cu against NumPy."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest

from pycomm.kernels import cuda_strides
from pycomm.kernels.cuda_strided import StridedView, strided_view
from pycomm.kernels.device import device_view
from tests.cuda.place import UNTOUCHED

KINDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


def numbered(shape, itemsize):
    """Return an array whose bytes differ from place to place."""
    nbytes = int(np.prod(shape)) * itemsize
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
    return data.view(KINDS[itemsize]).reshape(shape)


def contiguous_bytes(x):
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def spanned(x):
    """Return the bytes from the lowest to the highest of a strided array, and where they begin."""
    low, high = strided_view(x).span
    return np.frombuffer((ctypes.c_uint8 * (high - low)).from_address(low), np.uint8), low


def view_of(place, room, x, low):
    """Return the view of an array like `x`, whose lowest byte is the first of `room`."""
    address = device_view(room).address + x.ctypes.data - low
    return StridedView(address, x.shape, x.strides, x.itemsize, place.launcher.device)


def check(place, x, multiprocessors=2, misaligned=0):
    """Pack x and unpack it into an array of the same strides; return the kernel that packed."""
    place.launcher.multiprocessors = multiprocessors
    place.launcher.launches.clear()
    data, low = spanned(x)
    flat = place.empty(x.nbytes, misaligned)
    place.kernels.pack_strided(view_of(place, place.put(data, low % 16), x, low), flat)
    assert np.array_equal(place.get(flat), contiguous_bytes(x))
    if x.size and 0 not in [s for s, n in zip(x.strides, x.shape) if n > 1]:
        check_unpack(place, x, flat)
    place.forget()
    return place.launcher.launches[0][0].split("<")[0] if place.launcher.launches else None


def check_unpack(place, x, flat):
    """Check that the elements of an array like x are written, and nothing between them."""
    data, low = spanned(x)
    room, expected = place.empty(data.size, low % 16), np.full(data.size, UNTOUCHED, np.uint8)
    place.kernels.unpack_strided(flat, view_of(place, room, x, low))
    first = x.ctypes.data - low
    start = expected[first : first + x.itemsize].view(x.dtype)
    np.lib.stride_tricks.as_strided(start, x.shape, x.strides)[...] = x
    assert np.array_equal(place.get(room), expected)


@pytest.mark.parametrize("itemsize", KINDS)
@pytest.mark.parametrize("multiprocessors", [1, 40])
def test_transposed_matrices(place, itemsize, multiprocessors):
    for shape in [(16, 16), (32, 64), (33, 65), (100, 17), (131, 70)]:
        assert check(place, numbered(shape, itemsize).T, multiprocessors) == "transpose"
    assert check(place, numbered((3, 40, 50), itemsize).swapaxes(1, 2)) == "transpose"
    assert check(place, numbered((2, 20, 3, 18), itemsize).transpose(2, 3, 0, 1)) == "transpose"
    assert check(place, numbered((4, 20, 30), itemsize).transpose(2, 1, 0)) == "strided_items"
    assert check(place, numbered((50, 10), itemsize).T) == "strided_items"


@pytest.mark.parametrize("itemsize", KINDS)
def test_rows(place, itemsize):
    columns = 320 // itemsize
    for first, last in [(0, columns - 1), (1, columns), (3, columns - 1)]:
        x = numbered((37, columns), itemsize)[:, first:last]
        assert check(place, x) == ("strided_rows" if x[0].nbytes >= 256 else "strided_items")
    assert check(place, numbered((5, 3000), 4)[::-2, 7:2900], misaligned=3) == "strided_rows"
    assert (
        check(place, numbered((4, 3, 5, 700), 2)[1:3, ::2, ::-1, 5:], misaligned=1)
        == "strided_rows"
    )


@pytest.mark.parametrize("itemsize", KINDS)
def test_contiguous_arrays_are_one_row(place, itemsize):
    for shape in [(), (1,), (7,), (3, 5, 7), (1, 40_000), (2, 1, 3000, 1)]:
        assert check(place, numbered(shape, itemsize)) == "strided_rows"


@pytest.mark.parametrize("itemsize", KINDS)
@pytest.mark.parametrize("limit", [1 << 31, 1])
def test_steps_signs_and_zeros(place, itemsize, limit, monkeypatch):
    """Also with items numbered by 64 bits."""
    monkeypatch.setattr(cuda_strides, "INDEX_LIMIT", limit)
    cuda_strides.plan.cache_clear()
    x = numbered((12, 18, 20), itemsize)
    assert check(place, x[::3, 1:-1:2, ::-7]) == "strided_items"
    assert check(place, x[::-1, ::-1, ::-1]) == "strided_items"
    assert check(place, x[:, :, 5], 30) == "strided_items"
    assert check(place, np.broadcast_to(x[0, 0], (9, 20))) is not None
    assert check(place, np.broadcast_to(x[:, 3:4, ::2], (12, 5, 10))) == "strided_items"
    assert check(place, np.broadcast_to(x[0, 0, 0], (3, 4))) == "strided_items"
    cuda_strides.plan.cache_clear()


def test_eight_dimensions_in_every_order_of_some(place):
    x = numbered((2, 3, 2, 3, 2, 3, 2, 3), 2)
    for order in itertools.islice(itertools.permutations(range(8)), 0, None, 1301):
        check(place, x.transpose(order)[:, ::-1])


def test_items_become_wider_where_rows_allow(place):
    for columns, item in [(8, 16), (4, 16), (6, 8), (2, 8), (3, 4)]:
        check(place, numbered((10, 16), 4)[:, :columns])
        assert place.launcher.launches[0][0] == f"strided_items<{item},0,32>"


def test_nothing_to_pack_launches_nothing(place):
    assert check(place, numbered((3, 0, 2), 4).T) is None


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


def test_arrays_and_tensors_as_they_are(place):
    torch = pytest.importorskip("torch")
    x = place.xp.arange(35, dtype="float32").reshape(5, 7)
    out, back = place.xp.zeros(35, "float32"), place.xp.zeros((5, 7), "float32")
    place.kernels.pack_strided(x.T, out)
    assert bool((out.reshape(7, 5) == x.T).all())
    flat, whole = (torch.as_tensor(a) for a in (out, back))
    place.kernels.unpack_strided(flat, whole.T)
    assert bool((back == x).all())
