"""Many arrays ↔ one bucket: the kernels of pack.cu against NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from pycomm.arrays import numpy_dtype
from pycomm.kernels.conversions import packed_pairs
from pycomm.kernels.cuda_pack import INLINE_PIECES
from pycomm.types import DTYPES
from tests.cuda.place import UNTOUCHED

U8, F32, BF16 = (DTYPES[n] for n in ("uint8", "float32", "bfloat16"))
BY_CODE = {d.code: d for d in DTYPES.values()}
CONVERTED = [(BY_CODE[s], BY_CODE[t]) for s, t in packed_pairs()][1:]


def random_bytes(rng, count):
    return rng.integers(0, 256, count, dtype=np.uint8)


def round_trip(place, sizes, seed=0):
    """Pack arrays of `sizes` bytes at random alignments, unpack them elsewhere, compare."""
    rng = np.random.default_rng(seed)
    data = [random_bytes(rng, n) for n in sizes]
    sources = [place.put(x, int(rng.integers(16))) for x in data]
    targets = [place.empty(n, int(rng.integers(16))) for n in sizes]
    bucket = place.empty(sum(sizes), int(rng.integers(16)))
    place.kernels.packing(sources, U8).pack(bucket)
    assert np.array_equal(place.get(bucket), np.concatenate([*data, np.empty(0, np.uint8)]))
    place.kernels.packing(targets, U8).unpack(bucket)
    for x, target in zip(data, place.get_all(targets)):
        assert np.array_equal(target, x)


@pytest.mark.parametrize("multiprocessors", [1, 3, 132])
def test_hundreds_of_arrays_of_odd_sizes(place, multiprocessors):
    rng = np.random.default_rng(multiprocessors)
    sizes = [0, 1, 4, 0, *(int(4 ** rng.uniform(0, 8.5)) for _ in range(400)), 1, 0]
    place.launcher.multiprocessors = multiprocessors
    round_trip(place, sizes, multiprocessors)
    assert [name for name, _ in place.launcher.launches] == ["pack<5,5>", "pack<5,5>"]


@pytest.mark.parametrize("count", [1, 2, 15, INLINE_PIECES, INLINE_PIECES + 1])
def test_a_small_table_travels_with_the_launch(place, count):
    round_trip(place, [11 * k + 1 for k in range(count)])
    inline = count <= INLINE_PIECES
    assert place.launcher.launches[0][0] == ("pack_inline<5,5>" if inline else "pack<5,5>")


@pytest.mark.parametrize("size", [1, 15, 31, 32, 33, 47, 64, 16384, 16385 + 127, 40000])
def test_all_misalignments(place, size):
    x = random_bytes(np.random.default_rng(size), size)
    place.launcher.multiprocessors = 1
    for source in range(16):
        array = place.put(x, source)
        for target in range(16):
            bucket = place.empty(size, target)
            place.kernels.packing([array], U8).pack(bucket)
            assert np.array_equal(place.get(bucket), x), (source, target)
        place.forget()


@pytest.mark.parametrize("sizes", [[], [0], [0, 0, 0]])
def test_nothing_to_pack_launches_nothing(place, sizes):
    round_trip(place, sizes)
    assert place.launcher.launches == []


def test_bytes_between_places_stay(place):
    arrays = [place.put(np.full(5, k, np.uint8), 3) for k in (1, 2)]
    bucket = place.empty(40)
    packing = place.kernels.packing(arrays, U8, offsets=[30, 2])
    packing.pack(bucket)
    expected = np.full(40, UNTOUCHED, np.uint8)
    expected[30:35], expected[2:7] = 1, 2
    assert packing.bucket_bytes == 35
    assert np.array_equal(place.get(bucket), expected)


def values(dtype, count, rng):
    """Return random bits: NaNs, infinities and denormals too; of float32 half are usual numbers."""
    bits = random_bytes(rng, count * dtype.itemsize).view(numpy_dtype(dtype))
    if dtype != F32:
        return bits
    usual = rng.standard_normal(count).astype(np.float32) * 100
    return np.where(rng.random(count) < 0.5, usual, bits)


def expected_bytes(x, target, factor):
    """Return what elements.h gives: the product in the accumulator, rounded, NaN canonical."""
    with np.errstate(all="ignore"):
        parts = x.view(x.real.dtype) if x.dtype.kind == "c" else x
        wide = parts.dtype if parts.dtype == np.float64 else np.dtype(np.float32)
        y = parts.astype(wide) * wide.type(factor)
        kind = parts.dtype if x.dtype.kind == "c" else numpy_dtype(target)
        if target.name.startswith("float8"):
            largest = float(ml_dtypes.finfo(kind).max)
            y = np.clip(y, -largest, largest)
        return np.where(np.isnan(y), wide.type(np.nan), y).astype(kind).view(np.uint8)


@pytest.mark.parametrize(("source", "target"), CONVERTED, ids=lambda d: d.name)
@pytest.mark.parametrize("factor", [1.0, 0.125, 1 / 3])
def test_conversion_and_scale(place, source, target, factor):
    if source == target and factor == 1.0:
        pytest.skip("bytes are copied")
    rng = np.random.default_rng(source.code * 17 + target.code)
    counts = [0, 1, 2, 3, 17, 1000, *rng.integers(1, 200, 20).tolist(), 9001]
    data = [values(source, n, rng) for n in counts]
    steps = rng.integers(16 // source.itemsize, size=len(counts)) * source.itemsize
    arrays = [place.put(x, m) for x, m in zip(data, steps.tolist())]
    bucket = place.empty(sum(counts) * target.itemsize, (16 - target.itemsize) % 16)
    place.kernels.packing(arrays, source, target).pack(bucket, factor)
    expected = expected_bytes(np.concatenate(data), target, factor)
    assert np.array_equal(place.get(bucket), expected)


def test_float32_gradients_in_a_bfloat16_bucket_and_back(place):
    rng = np.random.default_rng(1)
    data = [rng.integers(-128, 128, n).astype(np.float32) for n in (3, 100, 4099, 1)]
    arrays = [place.put(x, 4) for x in data]
    packing = place.kernels.packing(arrays, F32, BF16)
    bucket = place.empty(packing.bucket_bytes, 2)
    packing.pack(bucket, 2.0)
    doubled = (np.concatenate(data) * 2).astype(ml_dtypes.bfloat16)
    assert np.array_equal(place.get(bucket).view(ml_dtypes.bfloat16), doubled)
    packing.unpack(bucket, 0.25)
    for x, array in zip(data, place.get_all(arrays)):
        assert np.array_equal(array.view(np.float32), x / 2)


@pytest.mark.parametrize("columns", [1, 5, 128])
def test_rows_to_peers_and_back(place, columns):
    counts, int16 = [3, 0, 1000, 1, 0, 77], DTYPES["int16"]
    x = np.arange(sum(counts) * columns, dtype=np.int16).reshape(-1, columns)
    chunks = [place.empty(n * columns * 2, 6) for n in counts]
    peers = place.kernels.chunks_of_rows(chunks, counts, columns * 2, int16)
    peers.unpack(place.put(x))
    for rows, chunk in zip(np.split(x, np.cumsum(counts)[:-1]), place.get_all(chunks)):
        assert np.array_equal(chunk, rows.reshape(-1).view(np.uint8))
    back = place.empty(x.nbytes)
    peers.pack(back)
    assert np.array_equal(place.get(back), x.reshape(-1).view(np.uint8))
