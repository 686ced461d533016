"""Memory that CUDA kernels are given: address, size and device, and whether they can take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pycomm import _native
from pycomm.arrays import HOST as HOST
from pycomm.arrays import is_tensor, place_name
from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.types import DType


class DeviceView(NamedTuple):
    """Contiguous memory at `address`; `device` is a GPU's number, or `HOST`.

    `owner`, if any, is kept alive by the view.
    """

    address: int
    nbytes: int
    device: int
    owner: Any = None


class Named(NamedTuple):
    """Memory, and what an error calls it."""

    name: str
    view: DeviceView

    def __str__(self) -> str:
        """Return the name, the size and the place."""
        return f"{self.name} ({self.view.nbytes} bytes at {self.view.address:#x})"


def device_view(x: Any) -> DeviceView:
    """Return the memory of a CuPy or NumPy array, a torch tensor, or of a DeviceView.

    Raises:
        ArgumentError: it is strided, or a conjugate or negative that torch has yet to compute.
        UnsupportedError: it is none of these.
    """
    if type(x) is DeviceView:
        return x
    if is_tensor(x):
        _must_be_contiguous(x.is_contiguous(), x)
        check_resolved(x)
        return DeviceView(x.data_ptr(), x.nbytes, x.get_device() if x.is_cuda else HOST, x)
    if isinstance(x, np.ndarray):
        _must_be_contiguous(x.flags.c_contiguous, x)
        return DeviceView(_native.address(x), x.nbytes, HOST, x)
    if hasattr(type(x), "__cuda_array_interface__") and hasattr(x, "device"):
        _must_be_contiguous(x.flags.c_contiguous, x)
        return DeviceView(x.data.ptr, x.nbytes, x.device.id, x)
    raise UnsupportedError(
        f"a {type(x).__name__} is no memory for CUDA kernels: pass a CuPy array or a torch tensor"
    )


def check_resolved(x: Any) -> None:
    """Raise ArgumentError unless a torch tensor's values are what its memory holds."""
    if x.is_conj() or x.is_neg():
        raise ArgumentError(
            "a tensor whose memory is yet to be conjugated or negated, such as of x.conj(): "
            "pass x.resolve_conj().resolve_neg()"
        )


def _must_be_contiguous(contiguous: bool, x: Any) -> None:
    if not contiguous:
        raise ArgumentError(f"an array of shape {tuple(x.shape)} is strided: pack it first")


def named(name: str, views: Sequence[DeviceView]) -> list[Named]:
    """Return each view with its name, such as inputs[2]."""
    return [Named(f"{name}[{i}]", view) for i, view in enumerate(views)]


def alignment(dtype: DType) -> int:
    """Return what the address of an element is a multiple of, in bytes."""
    return dtype.itemsize // 2 if dtype.family == "complex" else dtype.itemsize


def are_alike(
    reads: Sequence[DeviceView], writes: Sequence[DeviceView], dtype: DType, device: int
) -> bool:
    """Say, fast, that the checks below find nothing wrong with arrays of one size and `dtype`."""
    _, nbytes, _, _ = reads[0]
    align = alignment(dtype)
    if nbytes % dtype.itemsize:
        return False
    for target, size, place, _ in writes:
        if size != nbytes or place != device or target % align:
            return False
        for other in writes:
            if 0 < abs(target - other.address) < nbytes:
                return False
        for source, size, place, _ in reads:
            if size != nbytes or place != device or source % align:
                return False
            if 0 < abs(target - source) < nbytes:
                return False
    return True


def are_fit(
    views: Sequence[DeviceView], sizes: Sequence[int], units: Sequence[int], device: int
) -> bool:
    """Say, fast, that the checks below find nothing wrong with arrays that share no memory.

    Args:
        views: the arrays.
        sizes: of each in bytes.
        units: what the address of each is a multiple of.
        device: where all have to be.
    """
    spans: list[tuple[int, int]] = []
    for (start, nbytes, place, _), size, unit in zip(views, sizes, units):
        end = start + nbytes
        if nbytes != size or place != device or start % unit:
            return False
        for low, high in spans:
            if start < high and low < end:
                return False
        spans.append((start, end))
    return True


def check_device(memory: Sequence[Named], device: int) -> None:
    """Raise ArgumentError unless all memory is on `device`."""
    for m in memory:
        if m.view.device != device:
            raise ArgumentError(
                f"{m} is on {place_name(m.view.device)}, but the kernels run on "
                f"{place_name(device)}: all arrays must be there"
            )


def check_count(memory: Sequence[Named], dtype: DType, count: int | None = None) -> int:
    """Return how many elements of `dtype` each holds: `count`, or whatever the first one does.

    Raises:
        ArgumentError: they hold different numbers, or are no whole elements, or not aligned.
    """
    align = alignment(dtype)
    for m in memory:
        found, rest = divmod(m.view.nbytes, dtype.itemsize)
        if rest or m.view.address % align:
            raise ArgumentError(
                f"{m} does not hold {dtype.name}: of {dtype.itemsize} bytes, aligned to {align}"
            )
        count = found if count is None else count
        if found != count:
            raise ArgumentError(
                f"{m} holds {found} elements of {dtype.name}, but {count} are needed: the sizes "
                "must agree"
            )
    return count or 0


def check_apart(written: Sequence[Named], others: Sequence[Named], same: bool = True) -> None:
    """Raise ArgumentError where memory that is written overlaps other memory.

    Args:
        same: whether it may be the very same memory.
    """
    for w in written:
        start, end = w.view.address, w.view.address + w.view.nbytes
        for other in others:
            low, high = other.view.address, other.view.address + other.view.nbytes
            if other is w or max(start, low) >= min(end, high):
                continue
            if not (same and (low, high) == (start, end)):
                raise ArgumentError(
                    f"{w} overlaps {other}: an output must be "
                    f"{'the same array or ' if same else ''}memory of its own"
                )
