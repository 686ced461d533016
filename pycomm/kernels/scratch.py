"""Memory of a launcher that a kernel uses between launches, and what is checked of memory."""

from __future__ import annotations

from collections.abc import Sequence

from pycomm.errors import ArgumentError
from pycomm.kernels.device import DeviceView
from pycomm.kernels.launcher import Launcher

BLOCKS_PER_MULTIPROCESSOR = 8


def grid_for(launcher: Launcher, blocks: int) -> int:
    """Return how many blocks to launch where `blocks` would have something to do."""
    return max(1, min(blocks, launcher.multiprocessors * BLOCKS_PER_MULTIPROCESSOR))


def scratch(launcher: Launcher, nbytes: int) -> DeviceView:
    """Return memory with arbitrary contents, at a 16-byte boundary at least; the view owns it."""
    array = launcher.empty(nbytes)
    words = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
    return DeviceView(words["data"][0], nbytes, 0, array)


def check_aligned(view: DeviceView, size: int, what: str) -> None:
    """Raise ArgumentError if elements of `size` bytes cannot be read at the view's address."""
    if view.address % size:
        raise ArgumentError(
            f"{what} at {view.address:#x} is not aligned to elements of {size} bytes"
        )


def check_apart(outputs: Sequence[DeviceView], inputs: Sequence[DeviceView]) -> None:
    """Raise ArgumentError if memory is on several devices, or an output overlaps another array."""
    devices = sorted({view.device for view in (*outputs, *inputs)})
    if len(devices) > 1:
        raise ArgumentError(f"arrays are on devices {devices}: move them to one")
    for k, output in enumerate(outputs):
        for other in (*outputs[k + 1 :], *inputs):
            if _overlap(output, other):
                raise ArgumentError(f"{output} overlaps {other}: give an output memory of its own")


def _overlap(a: DeviceView, b: DeviceView) -> bool:
    ends = min(a.address + a.nbytes, b.address + b.nbytes)
    return a.nbytes > 0 and b.nbytes > 0 and max(a.address, b.address) < ends
