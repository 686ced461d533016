"""Kernels built by clang against the CPU's loops, which c++ built: identical bytes.

One test for each kernel with arithmetic; what else there is to test, the other files test.
"""

from __future__ import annotations

import numpy as np
import pytest

from pycomm.arrays import numpy_dtype
from pycomm.kernels.cpu import CpuKernels
from pycomm.types import DType, premul_sum
from tests.algorithms.reference import operations, random_inputs
from tests.cuda import test_convert, test_pack, test_quantize, test_reduce, test_squares
from tests.cuda.compilers import clang
from tests.cuda.host import HostLauncher
from tests.cuda.place import Place

COUNT = 1021
THIRD = premul_sum(1 / 3)
cpu = CpuKernels()
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def place() -> Place:
    """Kernels that run on the host, built by clang."""
    compiler = clang()
    if compiler is None:
        pytest.skip("no clang++ on PATH and no package ziglang; or sanitizers, those of c++")
    return Place(np, HostLauncher(compiler=compiler))


@test_reduce.every_dtype
def test_every_operation(place: Place, dtype: DType):
    parts, residue = random_inputs(3, COUNT, dtype), 16 - test_reduce.alignment(dtype)
    arrays = [place.put(part, residue) for part in parts]
    for op in operations(dtype):
        out = place.empty(parts[0].nbytes, residue)
        place.kernels.reduce(arrays, out, dtype, op)
        assert np.array_equal(place.get(out), test_reduce.on_cpu(parts, dtype, op)), op


@pytest.mark.parametrize("source", test_convert.FLOATS, ids=lambda d: d.name)
def test_every_pair_of_types(place: Place, source: DType):
    x = test_convert.values(source)
    moved = place.put(x, 16 - source.itemsize)
    for target in test_convert.FLOATS:
        out = place.empty(x.size * target.itemsize, 16 - target.itemsize)
        place.kernels.convert(moved, out, source, target)
        assert np.array_equal(place.get(out), test_convert.on_cpu(x, source, target)), target


@pytest.mark.parametrize(("dtype", "stored"), test_quantize.FORMATS, ids=lambda d: d.name)
def test_quantise_and_back(place: Place, dtype: DType, stored: DType):
    for residues in ((0, 0), (dtype.itemsize, 1)):
        x = test_quantize.samples(dtype, COUNT)
        x[300], x[600] = np.nan, -np.inf
        inputs = [test_quantize.quantised(place, x, dtype, stored, residues)] * 3
        for average in (False, True):  # the functions compare with the CPU's bytes
            test_quantize.dequantised(place, inputs, dtype, stored, average, residues[1])


@pytest.mark.parametrize("dtype", test_squares.FLOATS, ids=lambda d: d.name)
def test_sums_of_squares(place: Place, dtype: DType):
    arrays = [test_squares.random(dtype, n, n) for n in (COUNT, 20_011)]
    found = test_squares.total(place, arrays, dtype, [test_reduce.alignment(dtype)] * 2)
    assert found == test_squares.reference(arrays)


@pytest.mark.parametrize(("source", "target"), test_pack.CONVERTED, ids=lambda d: d.name)
def test_packing_with_conversion_and_factor(place: Place, source: DType, target: DType):
    x = random_inputs(1, COUNT, source)[0]
    bucket = place.empty(COUNT * target.itemsize, (16 - target.itemsize) % 16)
    packing = place.kernels.packing([place.put(x, source.itemsize % 16)], source, target)
    packing.pack(bucket, THIRD.factor)
    partial = np.empty(COUNT, numpy_dtype(source.partial)).view(np.uint8)
    expected = np.empty(COUNT * target.itemsize, np.uint8)
    cpu.widen(np.ascontiguousarray(x).view(np.uint8), partial, source, THIRD)
    cpu.finish(partial, expected, target, THIRD, 1)
    assert np.array_equal(place.get(bucket), expected)
