"""The kernels compile the way they are compiled on a machine with a GPU: by NVRTC."""

from __future__ import annotations

from pathlib import Path

import pytest

from pycomm.errors import CommError
from pycomm.kernels import cuda_compiler
from pycomm.kernels.cuda_compiler import compiled
from pycomm.kernels.launcher import TEMPLATES, kernels_of
from tests.cuda import nvrtc

pytestmark = pytest.mark.skipif(not nvrtc.available(), reason="nvidia-cuda-nvrtc is not installed")


@pytest.fixture(scope="module")
def compiler() -> nvrtc.Nvrtc:
    return nvrtc.Nvrtc()


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_compiles(compiler: nvrtc.Nvrtc, template: str, tmp_path: Path):
    kernels = [k for k in kernels_of(TEMPLATES[template].file) if k.startswith(f"{template}<")]
    for kernel in {kernels[0], kernels[len(kernels) // 2], kernels[-1]}:
        binary = compiled(compiler, kernel, 90, tmp_path)
        assert binary.code[:4] == b"\x7fELF" and template in binary.symbol
        assert binary.symbol.encode() in binary.code


def test_a_kernel_is_compiled_once(
    compiler: nvrtc.Nvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = compiled(compiler, "convert<9,11>", 90, tmp_path)
    monkeypatch.setattr(compiler, "compileProgram", None)
    assert compiled(compiler, "convert<9,11>", 90, tmp_path) == first


def test_a_gpu_that_is_newer_than_the_compiler_gets_ptx(compiler: nvrtc.Nvrtc, tmp_path: Path):
    binary = compiled(compiler, "convert<9,11>", 999, tmp_path)
    assert b".target sm_" in binary.code


def test_nothing_is_contracted_or_flushed(compiler: nvrtc.Nvrtc, tmp_path: Path):
    for kernel in ("reduce<16,2>", "reduce<11,1>", "reduce<10,8>"):
        ptx = compiled(compiler, kernel, 999, tmp_path).code
        assert b"mul.rn.f" in ptx or b"div.rn.f" in ptx
        assert b"fma." not in ptx and b".ftz" not in ptx and b".approx" not in ptx, kernel


def test_what_does_not_compile_is_an_error_with_the_log(
    compiler: nvrtc.Nvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cuda_compiler, "expression_of", lambda kernel: "pycomm::cuda::nothing<1>")
    with pytest.raises(CommError, match="nothing"):
        compiled(compiler, "convert<9,11>", 90, tmp_path)


def test_a_cache_that_cannot_be_written_does_no_harm(compiler: nvrtc.Nvrtc):
    assert compiled(compiler, "convert<9,11>", 90, Path("/proc/none")).code
