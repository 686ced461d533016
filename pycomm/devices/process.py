"""The process's GPU: found when it is first needed, then the same for all communicators."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from typing import Any

from pycomm.arrays import is_torch_dtype, resolve_dtype
from pycomm.devices.base import Runtime, Stream
from pycomm.devices.slabs import Mapped, Slabs
from pycomm.errors import ArgumentError

SEGMENT_BYTES = 16 << 20
"""Ordinary arrays go through symmetric memory in segments of this size."""

ONE_SHOT_BYTES = 256 << 10
"""Up to here every rank adds everything; not measured yet."""


class Chain:
    """Collectives of which each waits for the one before, on whatever stream that is.

    Attributes:
        last: the stream of the last one.
    """

    def __init__(self) -> None:
        self.last: Stream | None = None


@dataclass
class Device:
    """A GPU as all communicators of the process use it.

    Attributes:
        runtime: its memory, streams, events and kernels.
        slabs: the symmetric memory of this process.
        mapped: that of others.
        segment_bytes: the size of the segments that ordinary arrays go in; the same on all ranks.
        every_rank_launches: whether ranks that share a GPU all launch kernels, each for its chunk,
            or one of them for all; the same on all ranks.
        one_shot_bytes: the largest all_reduce that ranks with a GPU each do in one shot; the same
            on all ranks.
        chain: of all collectives in which kernels wait for other ranks': so they never compete.
    """

    runtime: Runtime
    slabs: Slabs
    mapped: Mapped
    segment_bytes: int = SEGMENT_BYTES
    every_rank_launches: bool = False
    one_shot_bytes: int = ONE_SHOT_BYTES
    chain: Chain = field(default_factory=Chain)

    @classmethod
    def of(cls, runtime: Runtime, **settings: Any) -> Device:
        """Return the Device of a runtime."""
        return cls(runtime, Slabs(runtime), Mapped(runtime), **settings)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return a symmetric array of undefined contents, for the caller's current stream.

        Args:
            dtype: a name or a NumPy dtype; or a torch dtype, which makes it a torch tensor.

        Raises:
            DeviceError: the GPU has not that much memory left.
        """
        resolved, as_tensor = resolve_dtype(dtype), is_torch_dtype(dtype)
        nbytes = math.prod(shape) * resolved.itemsize
        block = self.slabs.take(nbytes, self.runtime.stream(as_tensor))
        return self.runtime.array(block, shape, resolved, as_tensor)


_device: Device | None = None
_lock = threading.Lock()


def use(device: Device | None) -> None:
    """Make `device` the process's one; None forgets it."""
    global _device
    _device = device


def known_device() -> Device | None:
    """Return the process's GPU, if it was found already."""
    return _device


def process_device() -> Device:
    """Return the process's GPU: that which is current at the first call.

    Raises:
        MissingError: there is none, or CuPy is missing; says how to get it.
    """
    with _lock:
        if _device is None:
            from pycomm.devices.cupy_runtime import CupyRuntime

            use(Device.of(CupyRuntime()))
    assert _device is not None
    return _device


def is_host(device: Any) -> bool:
    """Say whether `device`, as the user names it, is the host.

    Raises:
        ArgumentError: it is neither that nor "cuda", nor "cuda:" and a number.
    """
    name = str(device)
    if device is None or name == "cpu":
        return True
    if name == "cuda" or (name.startswith("cuda:") and name[5:].isdigit()):
        return False
    raise ArgumentError(f"device={device!r} is not 'cpu', 'cuda' or 'cuda:' and a number")


def check_device(device: Any, mine: int) -> None:
    """Raise ArgumentError if `device`, as the user names it, is another GPU than the rank's."""
    name = str(device)
    if name not in ("cuda", f"cuda:{mine}"):
        raise ArgumentError(
            f"device={name!r}, but this rank uses cuda:{mine}: make that the current device before "
            "the first use of pycomm with GPUs"
        )
