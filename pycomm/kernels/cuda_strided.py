"""Strided arrays ↔ contiguous ones on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.kernels.cuda_strides import ITEM_BYTES, MAX_DIMS, plan
from pycomm.kernels.device import DeviceView, Named, check_device
from pycomm.kernels.launcher import Launcher

BLOCKS_PER_MULTIPROCESSOR = 8


@dataclass(frozen=True)
class StridedView:
    """An array with any strides: the address of its first element; sizes; strides in bytes.

    `device` is as in DeviceView.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    device: int

    @property
    def nbytes(self) -> int:
        """The bytes of all elements."""
        nbytes = self.itemsize
        for size in self.shape:
            nbytes *= size
        return nbytes

    @property
    def span(self) -> tuple[int, int]:
        """The address of the lowest byte, and that after the highest."""
        steps = [stride * (size - 1) for size, stride in zip(self.shape, self.strides)]
        low = self.address + sum(min(step, 0) for step in steps)
        high = self.address + sum(max(step, 0) for step in steps)
        return (low, high + self.itemsize) if self.nbytes else (low, low)


def pack_strided(launcher: Launcher, x: StridedView, out: DeviceView) -> None:
    """Copy the elements of `x`, last dimension first, to the beginning of `out`.

    Args:
        launcher: where kernels run.
        x: up to 8 dimensions (those of size 1 do not count), items of 1, 2, 4, 8 or 16 bytes,
            strides of any sign, also 0.
        out: contiguous, apart from `x`.

    Raises:
        ArgumentError: `out` is too small, overlaps `x` or is on another device.
        UnsupportedError: more dimensions, or items of another size.
    """
    _check(x, out, "out", launcher.device)
    _launch(launcher, x, out, unpack=False)


def unpack_strided(launcher: Launcher, x: DeviceView, out: StridedView) -> None:
    """Copy the beginning of `x`, contiguous, to the elements of `out`, last dimension first.

    Raises:
        ArgumentError: as `pack_strided`; or elements of `out` share memory, as with stride 0.
        UnsupportedError: as `pack_strided`.
    """
    _check(out, x, "x", launcher.device)
    _check_apart(out)
    _launch(launcher, out, x, unpack=True)


def _launch(launcher: Launcher, x: StridedView, flat: DeviceView, unpack: bool) -> None:
    if x.nbytes == 0:
        return
    alignment = (x.address | flat.address | 16) & -(x.address | flat.address | 16)
    chosen = plan(x.shape, x.strides, x.itemsize, alignment, unpack)
    grid = min(chosen.blocks, launcher.multiprocessors * BLOCKS_PER_MULTIPROCESSOR)
    launcher.launch(chosen.kernel, grid, chosen.args(x.address, flat.address))


def _check(x: StridedView, flat: DeviceView, name: str, device: int) -> None:
    """Check the strided side against the flat one, whose name is given."""
    if x.itemsize not in ITEM_BYTES:
        raise UnsupportedError(
            f"items of {x.itemsize} bytes: only {', '.join(map(str, ITEM_BYTES))} are packed; "
            "view the array as another dtype"
        )
    if len(x.shape) != len(x.strides):
        raise ArgumentError(f"shape {x.shape} has not as many sizes as strides {x.strides}")
    dims = sum(size != 1 for size in x.shape)
    if dims >= MAX_DIMS:
        raise UnsupportedError(f"{dims} dimensions in shape {x.shape}: at most {MAX_DIMS - 1}")
    if flat.nbytes < x.nbytes:
        raise ArgumentError(
            f"{name} has {flat.nbytes} bytes, but shape {x.shape} of {x.itemsize}-byte items "
            f"has {x.nbytes}"
        )
    span = DeviceView(x.span[0], x.span[1] - x.span[0], x.device)
    check_device([Named(name, flat), Named("the strided array", span)], device)
    low, high = x.span
    if x.nbytes and low < flat.address + flat.nbytes and flat.address < high:
        raise ArgumentError(
            f"{name} ({flat.nbytes} bytes at {flat.address:#x}) overlaps the strided array, which "
            f"spans {high - low} bytes at {low:#x}"
        )


def _check_apart(x: StridedView) -> None:
    """Check that no two elements share memory: each stride passes over all smaller ones."""
    reach = x.itemsize
    for stride, size in sorted((abs(t), n) for n, t in zip(x.shape, x.strides) if n > 1):
        if stride < reach:
            raise ArgumentError(
                f"elements of shape {x.shape} with strides {x.strides} share memory (a stride of "
                f"{stride} within {reach} bytes): unpack into an array of its own"
            )
        reach = stride * (size - 1) + reach
