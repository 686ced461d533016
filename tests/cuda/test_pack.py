"""Many arrays ↔ one bucket: the kernels of pack.cu on the host against NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.kernels.conversions import packed_pairs
from pycomm.kernels.cuda_pack import INLINE_PIECES, Packing, chunks_of_rows
from pycomm.kernels.device import HOST, DeviceView
from pycomm.types import DTYPES
from tests.cuda.arrays import FILL, Guarded, folded, sparse, view
from tests.cuda.host import HostLauncher

U8, F32, BF16, F64 = (DTYPES[n] for n in ("uint8", "float32", "bfloat16", "float64"))
NUMPY = {
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
BY_CODE = {d.code: d for d in DTYPES.values()}
CONVERTED = [(BY_CODE[s], BY_CODE[t]) for s, t in packed_pairs()][1:]


def numpy_of(dtype):
    return np.dtype(NUMPY.get(dtype.name, dtype.name))


def random_bytes(rng, count):
    return rng.integers(0, 256, count, dtype=np.uint8)


def assert_all_guards(*arrays):
    for array in arrays:
        array.assert_guards()


def round_trip(launcher, sizes, seed=0):
    """Pack arrays of `sizes` bytes at random alignments, unpack them elsewhere, compare."""
    rng = np.random.default_rng(seed)
    data = [random_bytes(rng, n) for n in sizes]
    sources = [Guarded(n, rng.integers(16), x) for n, x in zip(sizes, data)]
    targets = [Guarded(n, rng.integers(16)) for n in sizes]
    bucket = Guarded(sum(sizes), rng.integers(16))
    Packing(launcher, [s.view for s in sources], U8).pack(bucket.view)
    assert np.array_equal(bucket.bytes, np.concatenate([*data, np.empty(0, np.uint8)]))
    Packing(launcher, [t.view for t in targets], U8).unpack(bucket.view)
    for x, target in zip(data, targets):
        assert np.array_equal(target.bytes, x)
    assert_all_guards(bucket, *sources, *targets)


@pytest.mark.parametrize("multiprocessors", [1, 3, 132])
def test_hundreds_of_arrays_of_odd_sizes(multiprocessors):
    rng = np.random.default_rng(multiprocessors)
    sizes = [0, 1, 4, 0, *(int(4 ** rng.uniform(0, 8.5)) for _ in range(400)), 1, 0]
    launcher = HostLauncher(multiprocessors)
    round_trip(launcher, sizes, multiprocessors)
    assert [name for name, _ in launcher.launches] == ["pack<5,5>", "pack<5,5>"]


@pytest.mark.parametrize("count", [1, 2, 15, INLINE_PIECES, INLINE_PIECES + 1])
def test_a_small_table_travels_with_the_launch(count):
    launcher = HostLauncher()
    round_trip(launcher, [11 * k + 1 for k in range(count)])
    inline = count <= INLINE_PIECES
    assert launcher.launches[0][0] == ("pack_inline<5,5>" if inline else "pack<5,5>")


@pytest.mark.parametrize("size", [1, 15, 31, 32, 33, 47, 64, 16384, 16385 + 127, 40000])
def test_all_misalignments(size):
    rng = np.random.default_rng(size)
    x = random_bytes(rng, size)
    launcher = HostLauncher(1)
    for source in range(16):
        array = Guarded(size, source, x)
        for target in range(16):
            bucket = Guarded(size, target)
            Packing(launcher, [array.view], U8).pack(bucket.view)
            assert np.array_equal(bucket.bytes, x), (source, target)
            assert_all_guards(array, bucket)


@pytest.mark.parametrize("sizes", [[], [0], [0, 0, 0]])
def test_nothing_to_pack_launches_nothing(sizes):
    launcher = HostLauncher()
    round_trip(launcher, sizes)
    assert launcher.launches == []


def test_bytes_between_places_stay():
    arrays = [Guarded(5, 3, np.full(5, k, np.uint8)) for k in (1, 2)]
    bucket = Guarded(40)
    packing = Packing(HostLauncher(), [a.view for a in arrays], U8, offsets=[30, 2])
    packing.pack(bucket.view)
    expected = np.full(40, FILL, np.uint8)
    expected[30:35], expected[2:7] = 1, 2
    assert packing.bucket_bytes == 35
    assert np.array_equal(bucket.bytes, expected)


def values(dtype, count, rng):
    """Return random bits: NaNs, infinities and denormals too; of float32 half are usual numbers."""
    bits = random_bytes(rng, count * dtype.itemsize).view(numpy_of(dtype))
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
        kind = parts.dtype if x.dtype.kind == "c" else numpy_of(target)
        if target.name.startswith("float8"):
            largest = float(ml_dtypes.finfo(kind).max)
            y = np.clip(y, -largest, largest)
        return np.where(np.isnan(y), wide.type(np.nan), y).astype(kind).view(np.uint8)


@pytest.mark.parametrize(("source", "target"), CONVERTED, ids=lambda d: d.name)
@pytest.mark.parametrize("factor", [1.0, 0.125, 1 / 3])
def test_conversion_and_scale(source, target, factor):
    if source == target and factor == 1.0:
        pytest.skip("bytes are copied")
    rng = np.random.default_rng(source.code * 17 + target.code)
    counts = [0, 1, 2, 3, 17, 1000, *rng.integers(1, 200, 20).tolist(), 9001]
    data = [values(source, n, rng) for n in counts]
    size = source.itemsize
    steps = rng.integers(16 // size, size=len(counts)) * size
    arrays = [Guarded(x.nbytes, m, x) for x, m in zip(data, steps.tolist())]
    bucket = Guarded(sum(counts) * target.itemsize, (16 - target.itemsize) % 16)
    packing = Packing(HostLauncher(3), [a.view for a in arrays], source, target)
    packing.pack(bucket.view, factor)
    expected = expected_bytes(np.concatenate(data), target, factor)
    assert np.array_equal(bucket.bytes, expected)
    assert_all_guards(bucket, *arrays)


def test_float32_gradients_in_a_bfloat16_bucket_and_back():
    rng = np.random.default_rng(1)
    data = [rng.integers(-128, 128, n).astype(np.float32) for n in (3, 100, 4099, 1)]
    arrays = [Guarded(x.nbytes, 4, x) for x in data]
    packing = Packing(HostLauncher(), [a.view for a in arrays], F32, BF16)
    bucket = Guarded(packing.bucket_bytes, 2)
    packing.pack(bucket.view, 2.0)
    assert np.array_equal(
        bucket.bytes.view(ml_dtypes.bfloat16), (np.concatenate(data) * 2).astype(ml_dtypes.bfloat16)
    )
    packing.unpack(bucket.view, 0.25)
    for x, array in zip(data, arrays):
        assert np.array_equal(array.bytes.view(np.float32), x / 2)
    assert_all_guards(bucket, *arrays)


@pytest.mark.parametrize("columns", [1, 5, 128])
def test_rows_to_peers_and_back(columns):
    counts = [3, 0, 1000, 1, 0, 77]
    x = np.arange(sum(counts) * columns, dtype=np.int16).reshape(-1, columns)
    chunks = [Guarded(n * columns * 2, 6) for n in counts]
    peers = chunks_of_rows(
        HostLauncher(), [c.view for c in chunks], counts, columns * 2, DTYPES["int16"]
    )
    peers.unpack(view(x))
    for rows, chunk in zip(np.split(x, np.cumsum(counts)[:-1]), chunks):
        assert np.array_equal(chunk.bytes, rows.reshape(-1).view(np.uint8))
    back = np.zeros_like(x)
    peers.pack(view(back))
    assert np.array_equal(back, x)
    assert_all_guards(*chunks)


def test_one_array_beyond_two_to_the_31_bytes():
    size = (1 << 31) + 70_001
    x = sparse(size + 16)
    launcher = HostLauncher(1 << 20)
    launcher.only = 80  # a block for each chunk, of which only the first and the last are run
    rng = np.random.default_rng(3)
    with folded(size + 16, bytes_of_tail=1 << 20) as target:
        x[-(1 << 20) :] = random_bytes(rng, 1 << 20)
        Packing(launcher, [view(x[3 : size + 3])], U8).pack(view(target[8 : size + 8]))
        assert np.array_equal(target[1 << 31 : size + 8], x[(1 << 31) - 5 : size + 3])
        assert (target[size + 8 :] == 0).all()


def test_places_beyond_two_to_the_32_bytes():
    rng = np.random.default_rng(4)
    bucket, offsets = sparse(5 << 30), [1, (1 << 31) - 3, (1 << 32) + 7]
    data = [random_bytes(rng, 1000) for _ in offsets]
    Packing(HostLauncher(), [view(x) for x in data], U8, offsets=offsets).pack(view(bucket))
    for x, offset in zip(data, offsets):
        assert np.array_equal(bucket[offset : offset + 1000], x)
        assert bucket[offset - 1] == bucket[offset + 1000] == 0


def test_errors_come_before_any_launch():
    launcher = HostLauncher()
    a, b = Guarded(12), Guarded(8)
    packing = Packing(launcher, [a.view, b.view], F32)
    with pytest.raises(ArgumentError, match="the bucket has 19 bytes, but 2 arrays of float32 end"):
        packing.pack(Guarded(19).view)
    with pytest.raises(ArgumentError, match=r"array 1 \(8 bytes at 0x\w+\) overlaps the bucket"):
        packing.pack(DeviceView(b.view.address - 13, 20, HOST))
    with pytest.raises(ArgumentError, match="bucket .* is on cuda:1, but the kernels"):
        packing.unpack(DeviceView(1 << 20, 20, device=1))
    with pytest.raises(ArgumentError, match="array 1 is float64, array 0 is float32"):
        Packing(launcher, [a.view, b.view], [F32, F64])
    with pytest.raises(ArgumentError, match="array 0 has 12 bytes, which is no whole number of"):
        Packing(launcher, [a.view], F64)
    with pytest.raises(ArgumentError, match="arrays 0 and 1 overlap in the bucket: 12 bytes at 0"):
        Packing(launcher, [a.view, b.view], F32, offsets=[0, 8])
    with pytest.raises(ArgumentError, match=r"offsets\[1\]=-8 lies before"):
        Packing(launcher, [a.view, b.view], F32, offsets=[0, -8])
    with pytest.raises(ArgumentError, match="1 offsets for 2 arrays"):
        Packing(launcher, [a.view, b.view], F32, offsets=[0])
    with pytest.raises(ArgumentError, match="arrays 0 and 1 overlap: unpacking would write both"):
        Packing(launcher, [a.view, a.view], F32).unpack(Guarded(24).view)
    with pytest.raises(ArgumentError, match="peer 1 has 8 bytes, but 3 rows of 4 bytes are 12"):
        chunks_of_rows(launcher, [a.view, b.view], [3, 3], 4, F32)
    with pytest.raises(ArgumentError, match="2 chunks, but counts of 1 peers"):
        chunks_of_rows(launcher, [a.view, b.view], [3], 4, F32)
    assert launcher.launches == []


def test_errors_of_conversion():
    launcher = HostLauncher()
    a = Guarded(16, 2)
    with pytest.raises(UnsupportedError, match="float64 is not converted to float32 as it is pack"):
        Packing(launcher, [a.view], F64, F32)
    with pytest.raises(UnsupportedError, match="factor=0.5 on uint8: only floats and complex"):
        Packing(launcher, [a.view], U8).pack(Guarded(16).view, 0.5)
    with pytest.raises(ArgumentError, match="array 0: float32 at 0x.* is not aligned to 4 bytes"):
        Packing(launcher, [a.view], F32, BF16).pack(Guarded(8).view)
    assert launcher.launches == []
