"""Layouts: where the parameters of one dtype lie in a flat buffer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from pycomm.parallel.bucket import ALIGNMENT_BYTES


@dataclass
class Place:
    """One parameter's place: elements from `offset` on, in the order of its memory."""

    name: str
    parameter: nn.Parameter
    offset: int
    strides: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        # Those of memory of its own: dense, in the parameter's order of dimensions.
        self.strides = torch.empty_like(self.parameter, device="meta").stride()

    @property
    def count(self) -> int:
        """How many elements it has."""
        return self.parameter.numel()

    def view(self, flat: torch.Tensor) -> torch.Tensor:
        """Return its elements in a flat buffer, in its shape."""
        return flat.as_strided(
            self.parameter.shape, self.strides, flat.storage_offset() + self.offset
        )

    def like(self, dtype: torch.dtype) -> torch.Tensor:
        """Return a new tensor of its shape, of undefined values."""
        p = self.parameter
        return torch.empty_strided(p.shape, self.strides, dtype=dtype, device=p.device)

    def in_memory_order(self, x: torch.Tensor) -> torch.Tensor:
        """Return a tensor of its shape as a flat one, in the order of the parameter's memory.

        One with the strides of `like` is not copied.
        """
        if x.stride() != self.strides:
            x = torch.empty_strided(x.shape, self.strides, dtype=x.dtype, device=x.device).copy_(x)
        return x.as_strided((self.count,), (1,), x.storage_offset())


@dataclass
class Layout:
    """Places of parameters of one dtype and device, and the length of a buffer for them."""

    dtype: torch.dtype
    device: torch.device
    places: list[Place]
    length: int


def lay_out(parameters: Iterable[tuple[str, nn.Parameter]]) -> list[Layout]:
    """Return a layout for each dtype and device, in the order of parameters, on cache lines."""
    layouts: dict[tuple[torch.dtype, torch.device], Layout] = {}
    for name, p in parameters:
        layout = layouts.setdefault((p.dtype, p.device), Layout(p.dtype, p.device, [], 0))
        layout.places.append(Place(name, p, layout.length))
        step = ALIGNMENT_BYTES // p.dtype.itemsize
        layout.length += -(-p.numel() // step) * step
    return list(layouts.values())
