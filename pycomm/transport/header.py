"""What goes ahead of a message on the wire: which message it is, and of what array."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from pycomm.transport.message import NOTICE
from pycomm.types import DTYPES, DType

_FIXED = struct.Struct("<IIqQHBBB")
_BY_CODE = {dtype.code: dtype for dtype in (*DTYPES.values(), NOTICE)}


@dataclass(frozen=True)
class Header:
    """What a message says about itself; `source` is a rank of communicator `context`."""

    context: int
    source: int
    tag: int
    nbytes: int
    data_tag: int
    dtype: DType
    is_tensor: bool
    shape: tuple[int, ...]

    def pack(self) -> bytes:
        """Return the header's bytes."""
        fixed = (self.context, self.source, self.tag, self.nbytes, self.data_tag)
        kind = (self.dtype.code, self.is_tensor, len(self.shape))
        return _FIXED.pack(*fixed, *kind) + struct.pack(f"<{len(self.shape)}q", *self.shape)

    @classmethod
    def unpack(cls, message: np.ndarray) -> tuple[Header, np.ndarray]:
        """Return the header at the start of `message`, and the bytes behind it."""
        context, source, tag, nbytes, data_tag, code, is_tensor, ndim = _FIXED.unpack_from(message)
        shape = struct.unpack_from(f"<{ndim}q", message, _FIXED.size)
        kind = _BY_CODE[code], bool(is_tensor), shape
        return cls(context, source, tag, nbytes, data_tag, *kind), message[_FIXED.size + 8 * ndim :]
