"""Memory of a device as kernels see it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DeviceView:
    """Contiguous memory: its address, how many bytes, and the number of the device it is on.

    `owner` is what must live as long as the view, if anything; it is no part of the comparison.
    """

    address: int
    nbytes: int
    device: int = 0
    owner: object = field(default=None, compare=False, repr=False)
