"""Which kernel of csrc/cuda/strided.cu or transpose.cu walks over a strided array, and how."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, prod

ITEM_BYTES = (1, 2, 4, 8, 16)
MAX_DIMS = 9
"""`kMaxDims` in csrc/cuda/strides.h: one more than an array may have."""
ROW_BYTES = 256
"""From here on a contiguous row is moved by a warp."""
ROW_CHUNK_BYTES = 4096
"""What a warp moves at a time; `kRowChunkBytes` in strided.cu."""
SHORT_SIDE = 16
"""Dimensions shorter than this are not transposed by tiles."""

INDEX_LIMIT = 1 << 31
"""From here on items are numbered by 64 bits."""

_BLOCK_WARPS = 8
_BLOCK_ITEMS = 1024


@dataclass(frozen=True)
class Plan:
    """A kernel, how many blocks have something to do, and its arguments behind the addresses."""

    kernel: str
    blocks: int
    rest: bytes

    def args(self, strided: int, flat: int) -> bytes:
        """Return the arguments for these addresses."""
        return struct.pack("<QQ", strided, flat) + self.rest


@dataclass(frozen=True)
class Dim:
    """A dimension: its size, its stride in the strided array, and in the flat one, in bytes."""

    size: int
    stride: int
    flat: int


def strided_kernels() -> Iterator[tuple[int, int, int]]:
    """Yield the parameters of strided_items: bytes of an item, unpack, bits of an index."""
    for size in ITEM_BYTES:
        for unpack in (0, 1):
            yield from ((size, unpack, 32), (size, unpack, 64))


def transpose_kernels() -> Iterator[tuple[int, int]]:
    """Yield the parameters of transpose: bytes of an item, unpack."""
    for size in ITEM_BYTES:
        yield from ((size, 0), (size, 1))


@lru_cache(maxsize=1024)
def plan(
    shape: Sequence[int], strides: Sequence[int], itemsize: int, alignment: int, unpack: bool
) -> Plan:
    """Return how to copy an array of this shape and these strides to or from a contiguous one.

    Args:
        shape: sizes, none of them 0.
        strides: in bytes.
        itemsize: one of ITEM_BYTES.
        alignment: a power of two up to 16 that divides both addresses.
        unpack: from the contiguous array to the strided one.
    """
    dims, run = _rows(_merged(shape, strides, itemsize), itemsize)
    if run >= ROW_BYTES or not dims:
        return _rows_plan(dims, run, unpack)
    item = gcd(alignment, run, *(dim.stride for dim in dims))
    if item < run:
        dims = [*dims, Dim(run // item, item, item)]
    fast = _fast(dims, item)
    if fast is not None:
        return _transpose_plan(dims, fast, item, unpack)
    return _items_plan(dims, item, unpack)


def _merged(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> list[Dim]:
    """Return the dimensions, neighbours that are walked like one merged into one."""
    dims: list[Dim] = []
    flat = itemsize
    for size, stride in zip(reversed(shape), reversed(strides)):
        if dims and stride == dims[0].size * dims[0].stride and size > 1:
            dims[0] = Dim(size * dims[0].size, dims[0].stride, dims[0].flat)
        elif size > 1:
            dims.insert(0, Dim(size, stride, flat))
        flat *= size
    return dims


def _rows(dims: list[Dim], itemsize: int) -> tuple[list[Dim], int]:
    """Split off the contiguous row: return the other dimensions, and its bytes."""
    if dims and dims[-1].stride == itemsize:
        return dims[:-1], dims[-1].size * itemsize
    return dims, itemsize


def _fast(dims: list[Dim], item: int) -> int | None:
    """Return the dimension that is contiguous in the strided array, if tiles pay."""
    if dims[-1].stride == item or dims[-1].size < SHORT_SIDE:
        return None
    for k, dim in enumerate(dims[:-1]):
        if dim.stride == item and dim.size >= SHORT_SIDE:
            return k if _tiles(dims, k, item) < INDEX_LIMIT else None
    return None


def _rows_plan(dims: list[Dim], row: int, unpack: bool) -> Plan:
    chunks = -(-row // ROW_CHUNK_BYTES)
    count = chunks * prod(dim.size for dim in dims)
    head = struct.pack("<qqqQq", count, row, chunks, *_division(chunks, 64))
    rest = head + _packed(dims, 64)
    return Plan(f"strided_rows<{int(unpack)}>", -(-count // _BLOCK_WARPS), rest)


def _items_plan(dims: list[Dim], item: int, unpack: bool) -> Plan:
    count = prod(dim.size for dim in dims)
    bits = 32 if count < INDEX_LIMIT else 64
    rest = struct.pack("<qqqQq", count, 0, 0, 0, 0) + _packed(dims, bits)
    return Plan(f"strided_items<{item},{int(unpack)},{bits}>", -(-count // _BLOCK_ITEMS), rest)


def _transpose_plan(dims: list[Dim], fast: int, item: int, unpack: bool) -> Plan:
    a, b = dims[fast], dims[-1]
    outer = [dim for k, dim in enumerate(dims[:-1]) if k != fast]
    tiles, side = _tiles(dims, fast, item), _side(item)
    rest = struct.pack("<q", tiles)
    for size, stride in ((a.size, a.flat), (b.size, b.stride)):
        count = -(-size // side)
        rest += struct.pack("<qqqqq", size, count, *_division(count, 32), stride)
    rest += _packed(outer, 32) + _packed([Dim(d.size, d.flat, d.flat) for d in outer], 32)
    return Plan(f"transpose<{item},{int(unpack)}>", tiles, rest)


def _side(item: int) -> int:
    """Return the side of a tile; `kSide` in transpose.cu."""
    return 64 if item < 4 else 32


def _tiles(dims: list[Dim], fast: int, item: int) -> int:
    sides = [-(-dims[k].size // _side(item)) for k in (fast, -1)]
    return prod(sides) * prod(d.size for k, d in enumerate(dims[:-1]) if k != fast)


def _division(divisor: int, bits: int) -> tuple[int, int]:
    """Return the magic number and the shift with which csrc/cuda/strides.h divides."""
    shift = (divisor - 1).bit_length()
    return -(-(1 << (bits - 1 + shift)) // divisor), shift


def _packed(dims: list[Dim], bits: int) -> bytes:
    """Return the struct Dims of strides.h; one dimension of size 1 if there is none."""
    dims = dims or [Dim(1, 0, 0)]
    divisions = [_division(dim.size, bits) for dim in dims]
    columns = [
        [dim.size for dim in dims],
        [dim.stride for dim in dims],
        [magic for magic, _ in divisions],
        [shift for _, shift in divisions],
    ]
    padded = [number for column in columns for number in column + [0] * (MAX_DIMS - len(dims))]
    kinds = f"<q{2 * MAX_DIMS}q{MAX_DIMS}Q{MAX_DIMS}q"
    return struct.pack(kinds, len(dims), *padded)
