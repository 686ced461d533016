"""A double of a GPU on the host: what the schedules do with a device runs here, with delays."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pycomm.arrays import numpy_dtype
from pycomm.devices.base import Allocation, DeviceError, Memory, Stream
from pycomm.kernels.cpu import CpuKernels
from pycomm.kernels.cuda import CudaKernels
from pycomm.types import DType, ReduceOp
from tests.cuda.host import HostLauncher
from tests.devices.host_array import HostArray
from tests.devices.host_streams import HostEvent, HostEvents, HostStream
from tests.devices.shared_pages import create_pages, open_pages


class _StreamLauncher(HostLauncher):
    """Launches on the double's stream; returns at once."""

    def __init__(self, runtime: HostRuntime):
        super().__init__()
        self.device = runtime.device
        self._runtime = runtime
        self._rooms: list[np.ndarray] = []

    def launch(self, kernel: str, grid: int, args: bytes) -> None:
        self._runtime.kernels_launched += 1
        run = super().launch
        self._runtime.launching.put(lambda: run(kernel, grid, args))

    def empty(self, nbytes: int) -> np.ndarray:
        self._rooms.append(super().empty(nbytes))  # kernels use it later
        return self._rooms[-1]


class _Kernels(CudaKernels):
    """The kernels, with the CPU's in place of what Numba compiles for a GPU."""

    def __init__(self, runtime: HostRuntime):
        super().__init__(_StreamLauncher(runtime))
        self._runtime = runtime

    def _reduce_by_user(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        count: int,
        dtype: DType,
        op: ReduceOp,
    ) -> None:
        def run() -> None:
            nbytes = count * dtype.itemsize
            result = np.empty(nbytes, np.uint8)
            CpuKernels().reduce([memory_at(a, nbytes) for a in inputs], result, dtype, op)
            for address in outputs:
                memory_at(address, nbytes)[:] = result

        self._runtime.launching.put(run)


class HostRuntime:
    """A GPU's double: its memory is the host's, its streams are threads with random delays.

    Args:
        identity: of the physical GPU; processes with the same one share it.
        delay_s: the longest delay before anything that a stream does; half have one.
        seed: of the delays.
        peers: the GPUs whose memory can be reached; None for all.
        capacity: how many bytes can be allocated.

    Attributes:
        kernels_launched: how many kernels were.
        pinned: the page-locked memory of the host, address → bytes.
        waits: whether streams wait for events; a test may plant that they do not.
    """

    def __init__(
        self,
        identity: str = "double",
        delay_s: float = 0.0,
        seed: int = 0,
        peers: Sequence[str] | None = None,
        capacity: int = 1 << 30,
    ):
        self.device = 0
        self.identity = identity
        self.kernels_launched = 0
        self.waits = True
        self.pinned: dict[int, int] = {}
        self.kernels: CudaKernels = _Kernels(self)
        self._delay_s = delay_s
        self._seeds = itertools.count(1000 * seed)
        self._peers = peers
        self._free = capacity
        self._events = HostEvents()
        self._streams: list[HostStream] = []
        self._default = self.new_stream()
        self._local = threading.local()
        HostArray.runtime = self
        HostEvent.disorder.clear()

    # ---- what a user of CuPy does

    @property
    def current(self) -> HostStream:
        """The thread's current stream."""
        return self.stream().owner

    @contextlib.contextmanager
    def using(self, stream: Stream) -> Iterator[None]:
        """Make a stream the thread's current one."""
        before, self._local.current = self.stream(), stream
        try:
            yield
        finally:
            self._local.current = before

    @contextlib.contextmanager
    def capture(self) -> Iterator[Callable[[], None]]:
        """Capture what is put on the current stream; give what puts it there, as often as wanted.

        As by a replay of a graph on the stream that is current then.
        """
        stream, captured = self.current, []

        def replay() -> None:
            for work in captured:
                self.current.put(work)

        stream.captured = captured
        try:
            yield replay
        finally:
            stream.captured = None

    def check(self) -> None:
        """Raise what failed on any stream until now, also if a record overtook another."""
        assert not HostEvent.disorder
        for failure in filter(None, [stream.failure for stream in self._streams]):
            raise failure

    def finish(self) -> None:
        """Let the host wait for the current stream; raise what failed there."""
        event = self.event()
        self.record(event, self.stream())
        self.synchronize(event)
        if self.current.failure:
            raise self.current.failure

    def end(self) -> None:
        """End all streams: reports of late ranks show every thread there is."""
        for stream in self._streams:
            stream.end()

    # ---- Runtime

    def stream(self, of_torch: bool = False) -> Stream:
        return getattr(self._local, "current", self._default)

    def new_stream(self) -> Stream:
        stream = HostStream(next(self._seeds), self._delay_s)
        self._streams.append(stream)
        return Stream(id(stream), stream)

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before = getattr(self._local, "launching", None)
        self._local.launching = stream.owner
        try:
            yield
        finally:
            self._local.launching = before

    @property
    def launching(self) -> HostStream:
        """The stream that kernels are launched on."""
        return getattr(self._local, "launching", None) or self.current

    def is_capturing(self, stream: Stream) -> bool:
        return stream.owner.captured is not None

    def copy(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        stream.owner.put(lambda: ctypes.memmove(target, source, nbytes))

    def event(self, shared: bool = False) -> HostEvent:
        return self._events.take(shared)

    def handle_of(self, event: HostEvent) -> bytes:
        return event.handle

    def open_event(self, handle: bytes) -> HostEvent:
        return HostEvent.opened(handle)

    def record(self, event: HostEvent, stream: Stream) -> None:
        event.record(stream.owner)

    def wait(self, stream: Stream, event: HostEvent) -> None:
        if self.waits:
            event.wait(stream.owner)

    def query(self, event: HostEvent) -> bool:
        return event.query()

    def synchronize(self, event: HostEvent) -> None:
        event.synchronize()

    def allocate(self, nbytes: int) -> Allocation:
        if nbytes > self._free:
            raise DeviceError(f"cannot allocate {nbytes} bytes on the double: {self._free} left")
        self._free -= nbytes
        pages = create_pages(nbytes)
        return Allocation(pages.address, nbytes, pages.handle, pages.bytes)

    def free(self, memory: Allocation) -> None:
        self._free += memory.nbytes

    def open_memory(self, handle: bytes) -> Allocation:
        try:
            pages = open_pages(handle)
        except OSError as error:
            raise DeviceError(f"the double cannot open memory: {error}") from None
        return Allocation(pages.address, pages.bytes.nbytes, handle, pages.bytes)

    def close_memory(self, memory: Allocation) -> None:
        pass

    def host_word(self) -> np.ndarray:
        return np.zeros(1, np.uint64)

    def pin(self, address: int, nbytes: int) -> None:
        assert address not in self.pinned
        self.pinned[address] = nbytes

    def unpin(self, address: int) -> None:
        del self.pinned[address]

    def can_access(self, identity: str) -> bool:
        return self._peers is None or identity in (self.identity, *self._peers)

    def array(self, memory: Memory, shape: tuple[int, ...], dtype: DType, as_tensor: bool) -> Any:
        nbytes = int(np.prod(shape, dtype=int)) * dtype.itemsize
        if as_tensor:
            from tests.devices.host_tensor import laid_into

            return laid_into(memory, shape, dtype)
        flat = memory_at(memory.address, nbytes).view(numpy_dtype(dtype))
        return HostArray(shape, dtype, flat.reshape(shape), memory)


def memory_at(address: int, nbytes: int) -> np.ndarray:
    """Return the bytes at an address, of memory that stays."""
    if nbytes == 0:
        return np.empty(0, np.uint8)
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8)
