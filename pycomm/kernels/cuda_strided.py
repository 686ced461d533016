"""Strided arrays ↔ contiguous ones on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pycomm.arrays import is_tensor
from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.kernels.cuda_base import OnDevice, grid_of
from pycomm.kernels.cuda_strides import ITEM_BYTES, MAX_DIMS, plan
from pycomm.kernels.device import (
    HOST,
    DeviceView,
    Named,
    check_apart,
    check_device,
    check_resolved,
    device_view,
)


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


def strided_view(x: Any) -> StridedView:
    """Return the memory of a CuPy or NumPy array, a torch tensor, or of a StridedView.

    Raises:
        ArgumentError: a conjugate or negative that torch has yet to compute.
        UnsupportedError: it is none of these.
    """
    if isinstance(x, StridedView):
        return x
    if is_tensor(x):
        check_resolved(x)
        item = x.element_size()
        strides = tuple(stride * item for stride in x.stride())
        device = x.device.index if x.device.type == "cuda" else HOST
        return StridedView(x.data_ptr(), tuple(x.shape), strides, item, device)
    if isinstance(x, np.ndarray):
        return StridedView(x.ctypes.data, x.shape, x.strides, x.itemsize, HOST)
    if hasattr(type(x), "__cuda_array_interface__") and hasattr(x, "device"):
        return StridedView(x.data.ptr, x.shape, x.strides, x.itemsize, x.device.id)
    raise UnsupportedError(
        f"a {type(x).__name__} is no memory for CUDA kernels: pass a CuPy array or a torch tensor"
    )


class CudaStrided(OnDevice):
    """Copies between strided and contiguous arrays."""

    def pack_strided(self, x: Any, out: Any) -> None:
        """Copy the elements of `x`, last dimension first, to the beginning of `out`.

        Args:
            x: up to 8 dimensions (those of size 1 do not count), items of 1, 2, 4, 8 or 16 bytes,
                strides of any sign, also 0.
            out: contiguous, apart from `x`.

        Raises:
            ArgumentError: `out` is too small, overlaps `x`, or an array is on another device.
            UnsupportedError: more dimensions, or items of another size.
        """
        strided, flat = strided_view(x), Named("out", device_view(out))
        _check(strided, flat, self._launcher.device)
        self._move(strided, flat.view, unpack=False)

    def unpack_strided(self, x: Any, out: Any) -> None:
        """Copy the beginning of `x`, contiguous, to the elements of `out`, last dimension first.

        Raises:
            ArgumentError: as `pack_strided`; or elements of `out` share memory, as with stride 0.
            UnsupportedError: as `pack_strided`.
        """
        strided, flat = strided_view(out), Named("x", device_view(x))
        _check(strided, flat, self._launcher.device)
        _check_distinct(strided)
        self._move(strided, flat.view, unpack=True)

    def _move(self, x: StridedView, flat: DeviceView, unpack: bool) -> None:
        if x.nbytes == 0:
            return
        alignment = (x.address | flat.address | 16) & -(x.address | flat.address | 16)
        chosen = plan(x.shape, x.strides, x.itemsize, alignment, unpack)
        grid = grid_of(self._launcher, chosen.blocks)
        self._launcher.launch(chosen.kernel, grid, chosen.args(x.address, flat.address))


def _check(x: StridedView, flat: Named, device: int) -> None:
    """Check the strided side against the flat one."""
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
    low, high = x.span
    span = Named("the strided array", DeviceView(low, high - low, x.device))
    check_device([flat, span], device)
    if flat.view.nbytes < x.nbytes:
        raise ArgumentError(
            f"{flat} is too small: shape {x.shape} of {x.itemsize}-byte items has {x.nbytes} bytes"
        )
    check_apart([flat], [span], same=False)


def _check_distinct(x: StridedView) -> None:
    """Check that no two elements share memory: each stride passes over all smaller ones."""
    reach = x.itemsize
    for stride, size in sorted((abs(t), n) for n, t in zip(x.shape, x.strides) if n > 1):
        if stride < reach:
            raise ArgumentError(
                f"elements of shape {x.shape} with strides {x.strides} share memory (a stride of "
                f"{stride} within {reach} bytes): unpack into an array of its own"
            )
        reach = stride * (size - 1) + reach
