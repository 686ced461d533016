"""What is refused before anything is launched, and what an error says."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from pycomm.errors import ArgumentError, MissingError, UnsupportedError
from pycomm.kernels.cuda import CudaKernels
from pycomm.kernels.cuda_launcher import CupyLauncher, describe
from pycomm.kernels.cuda_strided import strided_view
from pycomm.kernels.device import DeviceView, device_view
from pycomm.types import DTYPES, SUM, ReduceOp

F32, BF16, I64 = DTYPES["float32"], DTYPES["bfloat16"], DTYPES["int64"]


def some(count: int) -> np.ndarray:
    return np.zeros(count, np.float32)


def test_an_operation_that_does_not_exist(refusing: CudaKernels):
    x = np.zeros(2, np.int64)
    with pytest.raises(UnsupportedError, match="op='avg' does not exist on int64: use 'sum'"):
        refusing.reduce([x], x, I64, ReduceOp("avg"))
    with pytest.raises(UnsupportedError, match="op='mine#12' has no kernel here"):
        refusing.accumulate(x, x, I64, ReduceOp("mine#12"))


def test_a_dtype_that_does_not_exist(refusing: CudaKernels):
    with pytest.raises(UnsupportedError, match="dtype 'float7' is not one of bool, int8"):
        refusing.reduce([some(2)], some(2), "float7", SUM)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="convert: int64 is not one of float16, bfloat16"):
        refusing.convert(some(2), some(2), F32, I64)


def test_sizes_that_differ(refusing: CudaKernels):
    with pytest.raises(ArgumentError, match=r"outputs\[0\] \(12 bytes .* holds 3 .* but 4 are"):
        refusing.reduce([some(4), some(4)], some(3), F32, SUM)
    with pytest.raises(ArgumentError, match=r"inputs\[1\] \(20 bytes .* holds 5 .* but 4 are"):
        refusing.reduce([some(4), some(5)], some(4), F32, SUM)
    with pytest.raises(ArgumentError, match=r"partial \(8 bytes .* holds 2 .* float32, but 4 are"):
        refusing.widen(np.zeros(4, np.uint16), some(2), BF16, SUM)
    with pytest.raises(ArgumentError, match=r"target \(4 bytes .* holds 1 .* but 2 are"):
        refusing.convert(some(2), some(1), F32, F32)
    with pytest.raises(ArgumentError, match="does not hold float32: of 4 bytes, aligned to 4"):
        refusing.reduce([np.zeros(7, np.uint8)], np.zeros(7, np.uint8), F32, SUM)
    with pytest.raises(ArgumentError, match="reduce of 0 inputs into 1 outputs"):
        refusing.reduce([], some(1), F32, SUM)


def test_misaligned_elements(refusing: CudaKernels):
    x = np.zeros(9, np.uint8)[1:]
    with pytest.raises(ArgumentError, match="aligned to 4"):
        refusing.reduce([x], x, F32, SUM)


def test_another_device(refusing: CudaKernels):
    there = DeviceView(4096, 8, 1)
    with pytest.raises(ArgumentError, match=r"inputs\[1\] .* is on cuda:1, .* run on the host"):
        refusing.reduce([some(2), there], some(2), F32, SUM)


def test_memory_that_overlaps(refusing: CudaKernels):
    x = some(10)
    with pytest.raises(ArgumentError, match=r"outputs\[0\] .* overlaps inputs\[1\] .* the same"):
        refusing.reduce([some(8), x[:8]], x[2:], F32, SUM)
    with pytest.raises(ArgumentError, match=r"outputs\[0\] .* overlaps outputs\[1\]"):
        refusing.reduce_into([some(8)], [x[:8], x[2:]], F32, SUM)
    with pytest.raises(ArgumentError, match=r"partial .* overlaps x .* memory of its own"):
        refusing.widen(x[:4].view(np.uint16), x[:8], BF16, SUM)


def test_what_is_no_contiguous_memory(refusing: CudaKernels):
    with pytest.raises(ArgumentError, match=r"shape \(5,\) is strided: pack it first"):
        refusing.reduce([some(10)[::2]], some(5), F32, SUM)
    with pytest.raises(UnsupportedError, match="a list is no memory for CUDA kernels"):
        refusing.reduce([[1.0]], some(1), F32, SUM)


def test_a_tensor_that_is_yet_to_be_conjugated():
    torch = pytest.importorskip("torch")
    x = torch.zeros(5, dtype=torch.complex64)
    for view in (device_view, strided_view):
        assert view(x).address == x.data_ptr()
        for lazy in (x.conj(), x.conj().imag):
            with pytest.raises(ArgumentError, match=r"is strided|pass x\.resolve_conj"):
                view(lazy)


def test_tensors_are_views_without_a_copy():
    torch = pytest.importorskip("torch")
    x = torch.zeros(5, 3)
    view = device_view(x)
    assert (view.address, view.nbytes, view.device) == (x.data_ptr(), 60, -1)


def test_a_launch_as_text():
    args = np.array([16, 255, 0], np.int64).tobytes()
    assert describe("reduce<11,0>", 2, args) == (
        "reduce<11,0>, 2 blocks of 256 threads, arguments 10 ff 0"
    )


def test_without_cupy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingError, match=r"need CuPy: pip install 'pycomm\[cuda13\]', or"):
        CupyLauncher()


@pytest.mark.parametrize(
    ("status", "advice"), [(35, "need an NVIDIA driver"), (100, "look at CUDA_VISIBLE_DEVICES")]
)
def test_without_a_driver_or_a_gpu(monkeypatch: pytest.MonkeyPatch, status: int, advice: str):
    class CUDARuntimeError(RuntimeError):
        def __init__(self) -> None:
            self.status = status

    def count() -> int:
        raise CUDARuntimeError

    runtime = types.SimpleNamespace(getDeviceCount=count, CUDARuntimeError=CUDARuntimeError)
    cupy = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(runtime=runtime)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(MissingError, match=advice):
        CupyLauncher()
