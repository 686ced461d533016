"""Launches the CUDA kernels on a GPU, through CuPy; the only module of pycomm.kernels with CuPy."""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pycomm.errors import CommError, MissingError
from pycomm.kernels.cuda_compiler import compiled, default_cache
from pycomm.kernels.device import DeviceView, device_view
from pycomm.kernels.launcher import BLOCK_THREADS, Program

_REMEMBERED = 4
_SHOWN_WORDS = 12
_NO_DEVICE = 100  # cudaErrorNoDevice


class CudaError(CommError):
    """CUDA reports an error; the message names the kernel, its arguments and those before it."""


class CupyLauncher:
    """Launches on one GPU, on the caller's current stream.

    That is CuPy's current stream; where CuPy's is the default one and torch uses CUDA, it is
    torch's. A kernel is compiled at its first launch on this machine, which takes about a second.

    Args:
        device: the GPU's number; without it, the current one.
        stream: returns the address of the stream to launch on, instead of the above.
        cache: the folder for compiled kernels, instead of the user's cache.

    Raises:
        MissingError: CuPy, the driver or a GPU is missing; says how to get it.
    """

    def __init__(
        self,
        device: int | None = None,
        stream: Callable[[], int] | None = None,
        cache: Path | None = None,
    ):
        self._cupy = import_cupy()
        runtime = self._cupy.cuda.runtime
        self.device = runtime.getDevice() if device is None else device
        self._cache = cache or default_cache()
        self._stream = stream or self._current_stream
        self._functions: dict[str, tuple[int, Any]] = {}
        self._programs: dict[Program, tuple[int, Any]] = {}
        self._bound = threading.local()
        self._recent: deque[tuple[str, int, bytes]] = deque(maxlen=_REMEMBERED)
        self.multiprocessors: int = runtime.deviceGetAttribute(
            runtime.cudaDevAttrMultiProcessorCount, self.device
        )
        capability = self._cupy.cuda.Device(self.device).compute_capability  # such as "90"
        self.capability = int(capability[:-1]), int(capability[-1])
        self._launch = self._cupy.cuda.driver.launchKernel

    def launch(self, kernel: str, grid: int, args: bytes) -> None:
        """Launch `grid` blocks of a kernel on the current stream, and return at once.

        Raises:
            CudaError: the launch fails, or an earlier one did.
        """
        self._recent.append((kernel, grid, args))
        try:
            parameters = (ctypes.c_char_p * 1)(args)  # addresses of the parameters: the one struct
            self._start(self._function(kernel), grid, ctypes.addressof(parameters))
        except self._errors() as error:
            raise CudaError(self._failure(error)) from None

    def launch_program(self, program: Program, grid: int, args: bytes) -> None:
        """Launch `grid` blocks of a kernel of Numba's; `args` are its parameters, 8 bytes each.

        Raises:
            CudaError: the launch fails, or an earlier one did.
        """
        self._recent.append((program.name, grid, args))
        words = (ctypes.c_uint64 * (len(args) // 8)).from_buffer_copy(args)
        first, size = ctypes.addressof(words), ctypes.sizeof(ctypes.c_uint64)
        parameters = (ctypes.c_void_p * len(words))(*(first + size * k for k in range(len(words))))
        try:
            self._start(self._function_of(program), grid, ctypes.addressof(parameters))
        except self._errors() as error:
            raise CudaError(self._failure(error)) from None

    def synchronize(self) -> None:
        """Wait for everything on the current stream.

        Raises:
            CudaError: a kernel failed.
        """
        try:
            with self._cupy.cuda.Device(self.device):
                self._cupy.cuda.runtime.streamSynchronize(self._stream())
        except self._errors() as error:
            raise CudaError(self._failure(error)) from None

    def empty(self, nbytes: int) -> Any:
        """Return memory of CuPy's pool, which may be let go of once the kernels are launched."""
        with self._cupy.cuda.Device(self.device), self._cupy.cuda.ExternalStream(self._stream()):
            return self._cupy.empty(nbytes, self._cupy.uint8)

    def upload(self, data: bytes) -> DeviceView:
        """Return a copy of `data` on the device, there for launches on any stream.

        It lives as long as the view. Waits for what is on the current stream.
        """
        memory = self.empty(len(data))
        stream = self._cupy.cuda.ExternalStream(self._stream())
        with self._cupy.cuda.Device(self.device), stream:
            memory.set(np.frombuffer(data, np.uint8))
            stream.synchronize()
        return device_view(memory)

    def _function(self, kernel: str) -> int:
        """Return the handle of a kernel, compiled and loaded if it is new."""
        if kernel not in self._functions:
            major, minor = self.capability
            with self._cupy.cuda.Device(self.device):
                nvrtc = self._cupy.cuda.nvrtc
                binary = compiled(nvrtc, kernel, 10 * major + minor, self._cache)
                module = self._cupy.cuda.function.Module()
                module.load(binary.code)
                function = module.get_function(binary.symbol)
            self._functions[kernel] = function.ptr, function
        return self._functions[kernel][0]

    def _function_of(self, program: Program) -> int:
        """Return the handle of a kernel of Numba's, loaded if it is new."""
        if program not in self._programs:
            with self._cupy.cuda.Device(self.device):
                module = self._cupy.cuda.function.Module()
                module.load(program.ptx.encode() + b"\0")
                function = module.get_function(program.entry)
            self._programs[program] = function.ptr, function
        return self._programs[program][0]

    def _start(self, function: int, grid: int, parameters: int) -> None:
        """Launch on the GPU, which a launch needs to be this thread's current one meanwhile."""
        runtime = self._cupy.cuda.runtime
        before = runtime.getDevice()
        if not getattr(self._bound, "done", False):
            runtime.setDevice(self.device)
            runtime.free(0)  # makes the context
            self._bound.done = True
        elif before != self.device:
            runtime.setDevice(self.device)
        try:
            stream = self._stream()
            self._launch(function, grid, 1, 1, BLOCK_THREADS, 1, 1, 0, stream, parameters, 0)
        finally:
            if before != self.device:
                runtime.setDevice(before)

    def _current_stream(self) -> int:
        stream = self._cupy.cuda.get_current_stream(self.device).ptr
        torch = sys.modules.get("torch")
        if stream == 0 and torch is not None and torch.cuda.is_initialized():
            return int(torch.cuda.current_stream(self.device).cuda_stream)
        return int(stream)

    def _errors(self) -> tuple[type[Exception], ...]:
        cuda = self._cupy.cuda
        return cuda.driver.CUDADriverError, cuda.runtime.CUDARuntimeError

    def _failure(self, error: Exception) -> str:
        kernel, *before = [describe(*launch) for launch in reversed(self._recent)]
        lines = [f"{error}, on cuda:{self.device}, in {kernel}; if it ran well, in one before it:"]
        return "\n  ".join([*lines, *before]) if before else lines[0].partition(";")[0]


def describe(kernel: str, grid: int, args: bytes) -> str:
    """Return a launch as text: its kernel, blocks, and the first fields of its argument in hex."""
    words = struct.unpack(f"<{len(args) // 8}Q", args)
    shown = " ".join(f"{word:x}" for word in words[:_SHOWN_WORDS])
    more = " …" if any(words[_SHOWN_WORDS:]) else ""
    return f"{kernel}, {grid} blocks of {BLOCK_THREADS} threads, arguments {shown}{more}"


def import_cupy() -> Any:
    """Return CuPy, if there is a GPU that it can use.

    Raises:
        MissingError: what is missing, in one sentence, and how to get it.
    """
    install = "pip install 'pycomm[cuda13]', or 'pycomm[cuda12]' for a driver of CUDA 12"
    try:
        import cupy
    except ImportError as error:
        raise MissingError(f"CUDA kernels need CuPy: {install} ({error})") from None
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if error.status == _NO_DEVICE:
            raise MissingError(_no_device(error)) from None
        raise MissingError(
            f"CUDA kernels need an NVIDIA driver as new as CuPy: install it, or {install}: {error}"
        ) from None
    if devices == 0:
        raise MissingError(_no_device("the driver counts 0"))
    return cupy


def _no_device(reason: object) -> str:
    return (
        "CUDA kernels need an NVIDIA GPU, and this process sees none: run where there is one, and "
        f"look at CUDA_VISIBLE_DEVICES ({reason})"
    )
