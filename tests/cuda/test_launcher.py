"""CupyLauncher on a stand-in for CuPy: what it hands to the driver, and its errors."""

from __future__ import annotations

import ctypes
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycomm.kernels import cuda_launcher
from pycomm.kernels.cuda_compiler import Binary
from pycomm.kernels.cuda_launcher import CudaError, CupyLauncher


class DriverError(RuntimeError):
    """The driver's."""


class RuntimeApiError(RuntimeError):
    """The runtime's."""


class FakeCuda:
    """One GPU with 132 multiprocessors, whose launches are kept; `broken` makes them fail."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []
        self.broken = False
        self.bound: list[int] = []
        self.current = 0
        self.stream = 0
        self.runtime = types.SimpleNamespace(
            getDeviceCount=lambda: 1,
            getDevice=lambda: self.current,
            setDevice=self.bind,
            deviceGetAttribute=lambda attribute, device: {16: 132}[attribute],
            cudaDevAttrMultiProcessorCount=16,
            free=lambda address: None,
            CUDARuntimeError=RuntimeApiError,
        )
        self.driver = types.SimpleNamespace(launchKernel=self.launch, CUDADriverError=DriverError)
        self.function = types.SimpleNamespace(Module=FakeModule)
        self.nvrtc = None

    def bind(self, device: int) -> None:
        self.bound.append(device)
        self.current = device

    def launch(self, function: int, *arguments: int) -> None:
        """Read the bytes of the one argument, as the driver does, and keep the rest."""
        assert self.current == 0, "the function is another GPU's"
        *shape, stream, parameters, extra = arguments
        if self.broken:
            raise DriverError("CUDA_ERROR_ILLEGAL_ADDRESS")
        struct = ctypes.c_void_p.from_address(parameters).value
        self.launches.append((function, shape, stream, extra, ctypes.string_at(struct, 24)))

    def Device(self, number: int) -> Any:  # noqa: N802
        return FakeDevice()

    def get_current_stream(self, device: int) -> Any:
        return types.SimpleNamespace(ptr=self.stream)


class FakeDevice:
    compute_capability = "90"

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class FakeModule:
    def load(self, code: bytes) -> None:
        assert code == b"code"

    def get_function(self, symbol: str) -> Any:
        return types.SimpleNamespace(ptr=77)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    module = types.ModuleType("cupy")
    fake = FakeCuda()
    module.cuda = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(cuda_launcher, "compiled", compiled)
    return fake


def compiled(nvrtc: object, kernel: str, capability: int, folder: Path) -> Binary:
    assert capability == 90
    return Binary("symbol", b"code")


ARGS = np.array([5, -1, 0x1234], np.int64).tobytes()


def test_the_driver_gets_the_struct_by_address(cuda: FakeCuda):
    launcher = CupyLauncher()
    assert (launcher.device, launcher.multiprocessors) == (0, 132)
    launcher.launch("reduce<11,0>", 7, ARGS)
    cuda.stream = 99
    launcher.launch("reduce<11,0>", 7, ARGS)
    shape = [7, 1, 1, 256, 1, 1, 0]
    assert cuda.launches == [(77, shape, 0, 0, ARGS), (77, shape, 99, 0, ARGS)]
    assert cuda.bound == [0], "a thread is bound to the GPU once"


def test_another_current_gpu_stays_current(cuda: FakeCuda):
    launcher = CupyLauncher(device=0)
    for current in (1, 0, 2):
        cuda.current = current
        launcher.launch("reduce<11,0>", 1, ARGS)
        assert cuda.current == current
    assert len(cuda.launches) == 3


def test_a_stream_of_the_caller_s_choice(cuda: FakeCuda):
    CupyLauncher(stream=lambda: 123).launch("reduce<11,0>", 1, ARGS)
    assert cuda.launches[0][2] == 123


def test_torch_s_stream_where_cupy_s_is_the_default(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
):
    torch: Any = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(
        is_initialized=lambda: True,
        current_stream=lambda device: types.SimpleNamespace(cuda_stream=55),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    CupyLauncher().launch("reduce<11,0>", 1, ARGS)
    cuda.stream = 66
    CupyLauncher().launch("reduce<11,0>", 1, ARGS)
    assert [launch[2] for launch in cuda.launches] == [55, 66]


def test_an_error_names_the_kernel_its_arguments_and_those_before(cuda: FakeCuda):
    launcher = CupyLauncher()
    launcher.launch("convert<9,11>", 3, ARGS)
    cuda.broken = True
    with pytest.raises(CudaError) as raised:
        launcher.launch("reduce<11,0>", 7, ARGS)
    assert str(raised.value) == (
        "CUDA_ERROR_ILLEGAL_ADDRESS, on cuda:0, in reduce<11,0>, 7 blocks of 256 threads, "
        "arguments 5 ffffffffffffffff 1234; if it ran well, in one before it:\n"
        "  convert<9,11>, 3 blocks of 256 threads, arguments 5 ffffffffffffffff 1234"
    )
