"""A GPU through CuPy: memory, streams and events that processes share by CUDA IPC."""

from __future__ import annotations

import contextlib
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from pycomm.arrays import numpy_dtype, torch_dtype
from pycomm.devices.base import Allocation, DeviceError, Memory, Stream
from pycomm.errors import UnsupportedError
from pycomm.kernels.cuda import CudaKernels
from pycomm.kernels.cuda_launcher import CupyLauncher, import_cupy
from pycomm.types import DType

_HANDLE = struct.Struct("<64sq")
_EVENT_HANDLE_BYTES = 64
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_NOT_READY = 600  # cudaErrorNotReady
_PORTABLE = 1  # cudaHostRegisterPortable: for every context of the process
_CONTAINERS = (
    "processes on one host share GPU memory if they see each other: ranks in several containers "
    "need one PID and one IPC namespace (--pid=host --ipc=host)"
)
T = TypeVar("T")


class OpenedEvent:
    """An event of another process; destroyed with this object.

    Attributes:
        ptr: its address, as that of cupy.cuda.Event.
    """

    def __init__(self, runtime: Any, handle: bytes):
        self.ptr: int = runtime.ipcOpenEventHandle(handle)
        self._destroy = runtime.eventDestroy

    def __del__(self) -> None:
        if hasattr(self, "ptr") and not sys.is_finalizing():
            with contextlib.suppress(Exception):  # the driver may be gone
                self._destroy(self.ptr)


class CupyRuntime:
    """The Runtime of one GPU.

    Args:
        device: its number; without it, the current one.

    Raises:
        MissingError: CuPy, the driver or a GPU is missing; says how to get it.
    """

    def __init__(self, device: int | None = None):
        self._cupy = import_cupy()
        self._cuda = self._cupy.cuda.runtime
        self.device: int = self._cuda.getDevice() if device is None else device
        self._local = threading.local()
        self.kernels = CudaKernels(CupyLauncher(self.device, self._launching))
        self.identity = self._identity_of(self.device)

    def stream(self, of_torch: bool = False) -> Stream:
        """Return the caller's current stream, of CuPy or of torch."""
        if of_torch:
            stream = sys.modules["torch"].cuda.current_stream(self.device)
            return Stream(int(stream.cuda_stream), stream)
        current = self._cupy.cuda.get_current_stream(self.device)
        return Stream(int(current.ptr), current)

    def new_stream(self) -> Stream:
        """Return a stream that does not wait for the default one."""
        with self._cupy.cuda.Device(self.device):
            stream = self._cupy.cuda.Stream(non_blocking=True)
        return Stream(int(stream.ptr), stream)

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """Let this thread launch kernels on `stream`."""
        before = getattr(self._local, "stream", None)
        self._local.stream = stream
        try:
            yield
        finally:
            self._local.stream = before

    def is_capturing(self, stream: Stream) -> bool:
        """Say whether `stream` is being captured into a CUDA graph."""
        what = "asking whether a stream is captured"
        return bool(self._do(what, self._cuda.streamIsCapturing, stream.handle))

    def copy(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """Enqueue a copy between addresses of any device."""
        kind = self._cuda.memcpyDefault
        self._do("a copy", self._cuda.memcpyAsync, target, source, nbytes, kind, stream.handle)

    def event(self, shared: bool = False) -> Any:
        """Return an event without times."""
        return self._do(
            "a new event",
            lambda: self._cupy.cuda.Event(disable_timing=True, interprocess=shared),
        )

    def handle_of(self, event: Any) -> bytes:
        """Return the IPC handle of a shared event."""
        return bytes(self._do("sharing an event", self._cuda.ipcGetEventHandle, event.ptr))

    def open_event(self, handle: bytes) -> OpenedEvent:
        """Return another process's event.

        Raises:
            DeviceError: it cannot be opened; says what containers need.
        """
        what = f"opening another process's event ({_CONTAINERS})"
        return self._do(what, OpenedEvent, self._cuda, handle[:_EVENT_HANDLE_BYTES])

    def record(self, event: Any, stream: Stream) -> None:
        """Let the event stand for what is on the stream now."""
        self._do("recording an event", self._cuda.eventRecord, event.ptr, stream.handle)

    def wait(self, stream: Stream, event: Any) -> None:
        """Let the stream wait for what the event stands for."""
        self._do("waiting for an event", self._cuda.streamWaitEvent, stream.handle, event.ptr)

    def query(self, event: Any) -> bool:
        """Say whether all that the event stands for is done."""
        status = self._do("earlier work", self._cuda.eventQuery, event.ptr)
        if status not in (0, _NOT_READY):
            raise DeviceError(f"earlier work failed on cuda:{self.device}: CUDA error {status}")
        return bool(status == 0)

    def synchronize(self, event: Any) -> None:
        """Let the host wait for the event."""
        self._do("earlier work", self._cuda.eventSynchronize, event.ptr)

    def allocate(self, nbytes: int) -> Allocation:
        """Return memory of cudaMalloc, whose base an IPC handle opens.

        Raises:
            DeviceError: there is not that much, also after CuPy and torch gave back what they keep.
        """
        try:
            address = self._malloc(nbytes)
        except self._cuda.CUDARuntimeError as error:
            raise DeviceError(self._no_memory(nbytes, error)) from None
        handle = self._do("sharing memory", self._cuda.ipcGetMemHandle, address)
        return Allocation(address, nbytes, _HANDLE.pack(bytes(handle), nbytes))

    def free(self, memory: Allocation) -> None:
        """Free what `allocate` returned."""
        self._do("freeing memory", self._cuda.free, memory.address)

    def open_memory(self, handle: bytes) -> Allocation:
        """Map another process's memory.

        Raises:
            DeviceError: it cannot be opened; says what containers need.
        """
        key, nbytes = _HANDLE.unpack(handle[: _HANDLE.size])
        what = f"opening {nbytes} bytes of another process ({_CONTAINERS})"
        return Allocation(self._do(what, self._cuda.ipcOpenMemHandle, key), nbytes, handle)

    def close_memory(self, memory: Allocation) -> None:
        """Unmap what `open_memory` returned."""
        self._do("unmapping memory", self._cuda.ipcCloseMemHandle, memory.address)

    def host_word(self) -> np.ndarray:
        """Return a word of cudaHostAlloc, which has one address for the host and for GPUs."""
        memory = self._do("page-locked memory", self._cupy.cuda.alloc_pinned_memory, 8)
        word = np.frombuffer(memory, np.uint64, 1)
        word[0] = 0
        return word

    def pin(self, address: int, nbytes: int) -> None:
        """Lock memory of the host for copies by any GPU.

        Raises:
            DeviceError: the system does not lock that much.
        """
        what = f"page-locking {nbytes} bytes of the host"
        self._do(what, self._cuda.hostRegister, address, nbytes, _PORTABLE)

    def unpin(self, address: int) -> None:
        """Undo `pin`."""
        self._do("unlocking memory of the host", self._cuda.hostUnregister, address)

    def can_access(self, identity: str) -> bool:
        """Say whether a GPU is this one, or one of this host that this one has access to.

        What the process does not see, by CUDA_VISIBLE_DEVICES, can be mapped nevertheless.
        """
        if identity == self.identity:
            return True
        if identity.split()[0] != self.identity.split()[0]:
            return False
        for device in range(self._cuda.getDeviceCount()):
            if self._identity_of(device) == identity:
                return bool(self._cuda.deviceCanAccessPeer(self.device, device))
        return True

    def array(self, memory: Memory, shape: tuple[int, ...], dtype: DType, as_tensor: bool) -> Any:
        """Return a CuPy array, or a torch tensor, on memory that it keeps alive.

        Raises:
            UnsupportedError: CuPy has no arrays of this dtype.
        """
        cuda = self._cupy.cuda
        owned = cuda.UnownedMemory(memory.address, memory.nbytes, memory, self.device)
        start = cuda.MemoryPointer(owned, 0)
        if as_tensor:
            return self._tensor(self._cupy.ndarray(memory.nbytes, "uint8", start), shape, dtype)
        try:
            return self._cupy.ndarray(shape, numpy_dtype(dtype), start)
        except (TypeError, ValueError) as error:
            raise UnsupportedError(
                f"CuPy has no arrays of {dtype.name} ({error}): pass torch.{dtype.name}"
            ) from None

    def _tensor(self, flat: Any, shape: tuple[int, ...], dtype: DType) -> Any:
        torch = sys.modules["torch"]
        tensor = torch.as_tensor(flat, device=f"cuda:{self.device}")
        count = 1
        for length in shape:
            count *= length
        return tensor[: count * dtype.itemsize].view(torch_dtype(dtype)).view(shape)

    def _identity_of(self, device: int) -> str:
        """Return boot and UUID: the host's, and the GPU's."""
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return f"{boot} {bytes(self._cuda.getDeviceProperties(device)['uuid']).hex()}"

    def _launching(self) -> int:
        stream = getattr(self._local, "stream", None) or self.stream()
        return stream.handle

    def _malloc(self, nbytes: int) -> int:
        self._bind()
        try:
            return int(self._cuda.malloc(nbytes))
        except self._cuda.CUDARuntimeError as error:
            if error.status != _OUT_OF_MEMORY:
                raise
        self._cupy.get_default_memory_pool().free_all_blocks()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return int(self._cuda.malloc(nbytes))

    def _no_memory(self, nbytes: int, error: Exception) -> str:
        free, total = self._cuda.memGetInfo()
        return (
            f"cannot allocate {nbytes} bytes on cuda:{self.device}, which has {free} of {total} "
            f"left: {error}"
        )

    def _do(self, what: str, call: Callable[..., T], *arguments: Any) -> T:
        """Call CUDA with this GPU as the thread's current one; its errors name it."""
        self._bind()
        try:
            return call(*arguments)
        except self._cuda.CUDARuntimeError as error:
            raise DeviceError(f"{what} failed on cuda:{self.device}: {error}") from None

    def _bind(self) -> None:
        if not getattr(self._local, "bound", False):
            self._cuda.setDevice(self.device)
            self._local.bound = True
