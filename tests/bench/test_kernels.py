"""bench/kernels.py without a GPU: what it says, and all of it on the host in a GPU's place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import kernels as command
from bench.device import Device
from bench.device_sampling import collect
from bench.device_table import kernels
from bench.rotation import Sets
from bench.sampling import Plan
from pycomm.errors import MissingError
from pycomm.kernels.cuda_launcher import import_cupy
from pycomm.kernels.launcher import TEMPLATES
from pycomm.types import DTYPES
from tests.cuda.host import HostLauncher

ROOT = Path(__file__).resolve().parent.parent.parent
PLAN = Plan(sample_us=1.0, seconds=1.0, iterations=2)
OUTPUTS = {
    "pack": "bucket",
    "unpack": "gradients",
    "gather": "x",
    "scatter": "chunks",
    "quantize": "values",
}
"""The buffer that a row writes, if it is not "out"."""


@pytest.fixture
def device() -> Device:
    return Device(np, HostLauncher(), torch)


def gpu_is_missing() -> bool:
    try:
        import_cupy()
    except MissingError:
        return True
    return False


@pytest.mark.skipif(not gpu_is_missing(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_what_is_missing():
    result = subprocess.run(
        [sys.executable, "bench/kernels.py"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: CUDA kernels need ")
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("name", kernels())
def test_every_row_of_the_table_verifies_and_finds_a_planted_byte(device, name):
    kernel = kernels()[name]
    for size in (1024, 40_008):
        sets = Sets(device, kernel.layout(size), kernel.moved_bytes(size), 2)
        kernel.prepare(sets)
        use = kernel.uses(sets)["pycomm"]
        assert kernel.wrong(sets, use) == 0
        assert kernel.wrong(sets, use, plant=True) == 1


def test_every_kernel_template_has_a_row(device):
    for kernel in kernels().values():
        for size in (1024, 40_008):
            sets = Sets(device, kernel.layout(size), 1 << 40, 2)
            kernel.prepare(sets)
            kernel.uses(sets)["pycomm"](0)
    launched = {name.partition("<")[0] for name, _ in device.launcher.launches}
    between_ranks = {"reduce_between", "copy_between", "meet_only"}  # see bench/collectives.py
    assert launched == set(TEMPLATES) - between_ranks


@pytest.mark.parametrize("name", kernels())
def test_competitors_compute_the_same(device, name):
    """Within what their own rounding, one after each addition, may differ."""
    kernel, size = kernels()[name], 65_536
    if kernel.name in ("finite", "squares", "top_k", "dropout"):
        pytest.skip("competitors return new arrays")
    sets = Sets(device, kernel.layout(size), 1 << 40, 2)
    kernel.prepare(sets)
    uses = kernel.uses(sets)
    output = OUTPUTS.get(kernel.name, "out")
    converts = kernel.redop in DTYPES and not kernel.name.startswith("dequantize")
    kind = kernel.redop if converts else kernel.dtype
    results = {}
    for impl, use in uses.items():
        use(0)
        results[impl] = sets.tensors(output, kind)[0].double().clone()
        if output not in ("gradients", "chunks"):  # nobody writes what is between them
            sets.arrays(output)[0][:] = 0xA5
    own = results.pop("pycomm")
    for impl, got in results.items():
        error = (got - own).abs().max() / own.abs().max()
        assert error <= {"sum": 3e-2, "float8_e5m2": 0.15}.get(kernel.redop, 7e-2), (
            impl,
            float(error),
        )


def test_buffers_rotate_through_more_than_the_caches_hold(device):
    sets = Sets(device, {"x": 1 << 20, "out": 1 << 20}, 2 << 20, 8192)
    assert sets.count == 96
    assert len({a.ctypes.data for a in sets.arrays("x")}) == 96
    used = []
    collect(device, {"a": used.append}, 5, Plan(1.0, 1.0, iterations=3))
    assert used == [k % 5 for k in range(len(used))]


def test_a_run_prints_records_and_shares(device, capsys):
    names = ["reduce2-float32-sum", "convert-float32-bfloat16"]
    meta, found = command.run(device, names, [4096], PLAN, plant=False)
    assert [r.impl for r in found] == ["pycomm", "torch", "cupy", "copy", "pycomm", "torch", "copy"]
    assert found[0].busbw_gbps == pytest.approx(3 * 4096 / found[0].t_med_us / 1e3)
    assert found[4].busbw_gbps == pytest.approx(1.5 * 4096 / found[4].t_med_us / 1e3)
    assert [r.wrong for r in found] == [0, None, None, None, 0, None, None]
    assert set(meta["overhead_us"]) >= {"DeviceView", "torch tensor", "torch's add"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split()[:4] == ["convert", "float32", "bfloat16", "4096"]
    assert lines[-1].split()[5].isdigit() and "%" in lines[-1]
