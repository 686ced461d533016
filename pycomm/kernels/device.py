"""Memory that CUDA kernels are given: address, size and device."""

from __future__ import annotations

from typing import Any, NamedTuple

HOST = -1
"""The device of memory that is on none."""


class DeviceView(NamedTuple):
    """Contiguous memory at `address`; `device` is a GPU's number, or `HOST`.

    `owner`, if any, is kept alive by the view.
    """

    address: int
    nbytes: int
    device: int
    owner: Any = None


def place(device: int) -> str:
    """Return what a device is called."""
    return "the host" if device == HOST else f"cuda:{device}"
