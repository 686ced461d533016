"""Every kernel that bench/kernels.py measures, once, on small odd sizes.

bench/gpu_all.sh runs this file under compute-sanitizer.
"""

from __future__ import annotations

import pytest

from tests.gpu.device import cupy_or_skip

cupy = cupy_or_skip()

from bench.device import Device  # noqa: E402
from bench.device_table import kernels  # noqa: E402
from bench.rotation import Sets  # noqa: E402
from pycomm.kernels.cuda_launcher import CupyLauncher  # noqa: E402


@pytest.fixture(scope="module")
def device():
    """Without torch, which the sanitizer loads slowly; no pool hides what is out of bounds."""
    pool = cupy.cuda.get_allocator()
    cupy.cuda.set_allocator(None)
    yield Device(cupy, CupyLauncher(), None)
    cupy.cuda.set_allocator(pool)


@pytest.mark.parametrize("kernel", kernels().values(), ids=kernels())
@pytest.mark.parametrize("size_bytes", [1024, 40_008])
def test_the_cpus_bytes(device, kernel, size_bytes):
    sets = Sets(device, kernel.layout(size_bytes), 1 << 40, 2)
    kernel.prepare(sets)
    assert kernel.wrong(sets, kernel.uses(sets)["pycomm"]) == 0
