"""What pycomm needs of a GPU besides kernels: memory, streams, events; an interface for doubles.

Streams and events are those of CUDA. An event is recorded on a stream and stands for all that was
enqueued there before. To wait for an event that nobody has recorded yet means not to wait at all:
so a rank waits for a peer's event only once the host knows that it is recorded.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pycomm.errors import CommError
from pycomm.kernels.cuda import CudaKernels
from pycomm.types import DType

HANDLE_BYTES = 80
"""The size of what opens an event or an allocation in another process, at most."""


class DeviceError(CommError):
    """A GPU or its driver refuses something; the message names the device, and sizes."""


@dataclass(frozen=True)
class Stream:
    """A stream of one process: equal if it is the same one.

    Attributes:
        handle: its address, or another number of its own.
        owner: what keeps it alive.
    """

    handle: int
    owner: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Allocation:
    """Memory on the device, as one process sees it.

    Attributes:
        address: where it begins.
        nbytes: its size.
        handle: opens it in other processes; at most `HANDLE_BYTES`.
        owner: what keeps it alive.
    """

    address: int
    nbytes: int
    handle: bytes
    owner: Any = field(default=None, compare=False, repr=False)


class Memory(Protocol):
    """A part of an allocation, alive as long as anything refers to it."""

    address: int
    nbytes: int


class Runtime(Protocol):
    """One process's part in one GPU; from any thread of it. All errors are DeviceErrors.

    Attributes:
        device: the GPU's number in this process.
        identity: equal for processes that use the same physical GPU.
        kernels: those of this GPU; launched within `on`, on the stream given there.
    """

    device: int
    identity: str
    kernels: CudaKernels

    def stream(self, of_torch: bool = False) -> Stream:
        """Return the caller's current stream: torch's, or CuPy's."""

    def new_stream(self) -> Stream:
        """Return a stream that waits for no other one by itself."""

    def on(self, stream: Stream) -> AbstractContextManager[Any]:
        """Return a context in which this thread launches kernels on `stream`."""

    def is_capturing(self, stream: Stream) -> bool:
        """Say whether what is enqueued on `stream` becomes part of a graph, and is not done."""

    def copy(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """Enqueue a copy from one address to another; peers' memory is mapped."""

    def event(self, shared: bool = False) -> Any:
        """Return an event; other processes can open a shared one."""

    def handle_of(self, event: Any) -> bytes:
        """Return what opens a shared event in other processes; at most `HANDLE_BYTES`."""

    def open_event(self, handle: bytes) -> Any:
        """Return another process's event."""

    def record(self, event: Any, stream: Stream) -> None:
        """Let the event stand for what is on the stream now, and no longer for anything before."""

    def wait(self, stream: Stream, event: Any) -> None:
        """Let what is enqueued from now on wait for what the event stands for now, if anything."""

    def query(self, event: Any) -> bool:
        """Say whether all that the event stands for is done."""

    def synchronize(self, event: Any) -> None:
        """Let the host wait for the event."""

    def allocate(self, nbytes: int) -> Allocation:
        """Return new memory that other processes can open."""

    def free(self, memory: Allocation) -> None:
        """Free what `allocate` returned; nobody may use it or have it open any more."""

    def open_memory(self, handle: bytes) -> Allocation:
        """Map another process's memory."""

    def close_memory(self, memory: Allocation) -> None:
        """Unmap what `open_memory` returned."""

    def host_word(self) -> np.ndarray:
        """Return (1,) of uint64: 0, on the host, where kernels write to it at the same address."""

    def pin(self, address: int, nbytes: int) -> None:
        """Lock memory of the host in its place, so that copies to and from it need no detour."""

    def unpin(self, address: int) -> None:
        """Undo `pin` of the memory at an address."""

    def can_access(self, identity: str) -> bool:
        """Say whether kernels here can read and write the memory of a GPU."""

    def array(self, memory: Memory, shape: tuple[int, ...], dtype: DType, as_tensor: bool) -> Any:
        """Return a contiguous array on memory, which it keeps alive: CuPy's, or a torch tensor."""
