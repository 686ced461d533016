"""The table of pieces that csrc/cuda/pack.cu reads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from pycomm.kernels.device import DeviceView
from pycomm.kernels.launcher import Launcher

CHUNK_BYTES = 16384
"""What a block moves at a time; `kChunkBytes` in pack.cu."""
LINE_BYTES = 128
"""Chunks end where a line of the target ends; `kLineBytes` in pack.cu."""


class Pieces:
    """Arrays, their places in a bucket, and the chunks that they are cut into; empty ones left out.

    Attributes:
        count: pieces.
        chunks: of all pieces.
        bytes: the table: the columns array, place, elements and end, each `count` 8-byte numbers.
    """

    def __init__(
        self,
        addresses: Sequence[int],
        places: Sequence[int],
        counts: Sequence[int],
        widest: int,
    ):
        """Lay out arrays of `counts` elements, of at most `widest` bytes in array and bucket."""
        columns = np.array([addresses, places, counts], np.uint64)
        columns = columns[:, columns[2] > 0]
        elements = np.uint64(CHUNK_BYTES // widest)
        chunks = (columns[2] + np.uint64(LINE_BYTES - 1) + elements - np.uint64(1)) // elements
        self.count = columns.shape[1]
        self.chunks = int(chunks.sum())
        self.bytes = np.vstack([columns, chunks.cumsum(dtype=np.uint64)]).tobytes()
        self._device: DeviceView | None = None

    def on_device(self, launcher: Launcher) -> DeviceView:
        """Return the table in device memory, copied there when it is first wanted."""
        if self._device is None:
            self._device = launcher.upload(self.bytes)
        return self._device


def consecutive(lengths: Sequence[int]) -> list[int]:
    """Return the offsets of blocks that follow each other."""
    return list(accumulate(lengths, initial=0))[:-1]


def overlapping_pair(spans: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the numbers of two spans (start, length) that overlap, if any do."""
    order = sorted((k for k, (_, length) in enumerate(spans) if length), key=lambda k: spans[k])
    for a, b in zip(order, order[1:]):
        if sum(spans[a]) > spans[b][0]:
            return min(a, b), max(a, b)
    return None
