"""What a scatter's root says ahead of the chunk that every rank gets."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pycomm import arrays
from pycomm.arrays import View
from pycomm.shapes import Shape
from pycomm.types import DTYPES, DType

_HEADER_ENTRIES = 80
"""Of a header: dtype, kind of array, dimensions, and up to 77 of these."""


class Chunk(NamedTuple):
    """One rank's part of a scatter's source.

    Attributes:
        dtype: of its elements.
        as_tensor: whether it is a torch tensor.
        on_gpu: whether it is on the rank's GPU, and not on the host.
        shape: its shape.
    """

    dtype: DType
    as_tensor: bool
    on_gpu: bool
    shape: Shape

    @classmethod
    def told(cls, header: Sequence[int]) -> Chunk:
        """Return what a header says."""
        code, kind, dimensions, *shape = map(int, header)
        dtype = list(DTYPES.values())[code]
        return cls(dtype, bool(kind & 1), bool(kind & 2), tuple(shape[:dimensions]))

    @property
    def header(self) -> tuple[int, ...]:
        """What says it: integers, as many as needed; csrc/bindings_quick.cpp writes them, too."""
        kind = int(self.as_tensor) + 2 * self.on_gpu
        return (self.dtype.code, kind, len(self.shape), *self.shape)

    @property
    def padded(self) -> np.ndarray:
        """The header: (80,) of int64."""
        header = self.header
        return np.array([*header, *[0] * (_HEADER_ENTRIES - len(header))], np.int64)

    @property
    def dtype_of_kind(self) -> Any:
        """What `Communicator.empty` takes as the dtype of such an array."""
        if not self.as_tensor:
            return self.dtype.name
        importlib.import_module("torch")
        return arrays.torch_dtype(self.dtype)

    def empty(self) -> View:
        """Return a new array for it on the host."""
        return arrays.empty(self.shape, self.dtype, self.as_tensor)
