"""The sum of the squares of many arrays on a GPU, as the global norm of gradients needs it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from pycomm.errors import ArgumentError
from pycomm.kernels.cuda_base import OnDevice, grid_of
from pycomm.kernels.cuda_check import parts_of
from pycomm.kernels.device import (
    DeviceView,
    Named,
    check_apart,
    check_count,
    check_device,
    device_view,
    named,
)
from pycomm.kernels.launcher import Launcher
from pycomm.types import DTYPES, DType

CHUNK_BYTES = 16 * 256 * 16
"""What one block adds at a time; `kChunkVectors` in csrc/cuda/squares.cu."""


class SumOfSquares:
    """Σ|x|² over all elements of many arrays, in float64, in the same order on every GPU.

    The table of arrays is copied to the device once; the object serves any number of calls while
    the arrays stay where they are. One launch for each run of arrays of one dtype, and one more.

    The order of the sum: every array is cut into chunks of 65536 bytes from its first element, a
    chunk into vectors of 16 bytes. Column c of 256 adds the squares of the elements of vectors c,
    c + 256, … one after the other; 32 columns each are added as a binary tree (c with c + 16, then
    c + 8, …), and the 8 results in their order. The sums of chunks s, s + 256, … of all arrays in
    their order are added to columns in the same way, and these again by tree. Neither the grid nor
    alignment matter.
    """

    def __init__(self, launcher: Launcher, arrays: Sequence[Any], dtype: DType | Sequence[DType]):
        """Check the arrays and copy the table of them; see CudaSquares."""
        dtypes = [dtype] * len(arrays) if isinstance(dtype, DType) else list(dtype)
        if len(dtypes) != len(arrays):
            raise ArgumentError(f"{len(arrays)} arrays, but {len(dtypes)} dtypes")
        self._launcher = launcher
        self._arrays = named("arrays", [device_view(x) for x in arrays])
        check_device(self._arrays, launcher.device)
        parts = [parts_of(d) for d in dtypes]
        counts = [check_count([x], d) for x, d in zip(self._arrays, dtypes)]
        self._chunks = 0
        self._launches = list(
            self._tables([p for p, _ in parts], [n * k for n, (_, k) in zip(counts, parts)])
        )
        self._sums = device_view(launcher.empty(8 * max(1, self._chunks)))

    def into(self, total: Any) -> None:
        """Write the sum into `total`, one float64 on the arrays' device; it overlaps none of them.

        NaN or infinity, if an element is; an overflow of float64 is infinity. NaN is canonical.
        Not for two streams at a time.

        Raises:
            ArgumentError: `total` has another size, is not aligned, overlaps an array or is on
                another device.
        """
        target = Named("total", device_view(total))
        check_device([target], self._launcher.device)
        check_count([target], DTYPES["float64"], 1)
        check_apart([target], self._arrays, same=False)
        for code, arrays, table, first, chunks in self._launches:
            args = struct.pack("<q2Q", arrays, table.address, self._sums.address + 8 * first)
            grid = grid_of(self._launcher, chunks)
            self._launcher.launch(f"square_sums<{code}>", grid, args)
        args = struct.pack("<q2Q", self._chunks, self._sums.address, target.view.address)
        self._launcher.launch("total_of<>", 1, args)

    def _tables(
        self, parts: Sequence[DType], counts: Sequence[int]
    ) -> Iterator[tuple[int, int, DeviceView, int, int]]:
        """Yield each launch: dtype, arrays, table, number of the first chunk, chunks."""
        rows = zip(parts, counts, (m.view for m in self._arrays))
        for part, group in groupby(rows, key=lambda row: row[0]):
            table, arrays, chunks = b"", 0, 0
            for _, count, x in group:
                table += struct.pack("<2qQ", chunks, count, x.address)
                chunks += -(-count * part.itemsize // CHUNK_BYTES)
                arrays += 1
            if chunks:
                table += struct.pack("<2qQ", chunks, 0, 0)
                view = self._launcher.upload(table)
                yield part.code, arrays, view, self._chunks, chunks
            self._chunks += chunks


class CudaSquares(OnDevice):
    """Sums of squares."""

    def sum_of_squares(self, arrays: Sequence[Any], dtype: DType | Sequence[DType]) -> SumOfSquares:
        """Return what sums the squares of all elements of these arrays, as often as it is asked.

        Args:
            arrays: each contiguous, of any size, also 0; they stay the caller's.
            dtype: of all arrays, or of each; float or complex.

        Raises:
            ArgumentError: an array is on another device; one is no whole number of elements or not
                aligned to them; there are not as many dtypes as arrays.
            UnsupportedError: a dtype is neither float nor complex.
        """
        return SumOfSquares(self._launcher, arrays, dtype)
