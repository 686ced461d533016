"""Many arrays ↔ one bucket on a GPU, in one launch; also the chunks of an all-to-all."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.kernels.conversions import BYTES, convertible
from pycomm.kernels.cuda_base import OnDevice, grid_of
from pycomm.kernels.cuda_pieces import Pieces, consecutive, overlapping_pair
from pycomm.kernels.device import (
    DeviceView,
    Named,
    check_apart,
    check_device,
    device_view,
    named,
)
from pycomm.kernels.launcher import Launcher
from pycomm.types import DType

INLINE_PIECES = 120
"""A table of up to so many pieces travels with the launch; `kInlinePieces` in pack.cu."""

_HEAD, _FACTOR = struct.Struct("<QqqqqQQ"), struct.Struct("<d")


class _Launch(NamedTuple):
    """A launch with all its arguments but the factor, which comes between `head` and `table`.

    A grid of 0: there is nothing to do.
    """

    kernel: str
    grid: int
    head: bytes
    table: bytes


class Packing:
    """Arrays and their places in a bucket: pack copies them in, unpack out, in one launch each.

    The table of places is made once; a Packing serves any number of calls and buckets while the
    arrays stay where they are. Any sizes, any alignment.

    Attributes:
        bucket_bytes: what a bucket must hold at least.
    """

    def __init__(
        self,
        launcher: Launcher,
        arrays: Sequence[Any],
        dtype: DType | Sequence[DType],
        bucket_dtype: DType | None = None,
        offsets: Sequence[int] | None = None,
    ):
        """Check the arrays and lay them out; see CudaPack."""
        self._launcher = launcher
        self.arrays = tuple(device_view(x) for x in arrays)
        self.dtype = _one_dtype(dtype)
        self.bucket_dtype = bucket_dtype or self.dtype
        if self.dtype != self.bucket_dtype:
            _kernel_codes(self.dtype, self.bucket_dtype, 1.0)
        check_device(named("arrays", self.arrays), launcher.device)
        counts = [_elements(k, a, self.dtype) for k, a in enumerate(self.arrays)]
        self._lengths = [n * self.bucket_dtype.itemsize for n in counts]
        self._places = _checked_places(self._lengths, offsets)
        self.bucket_bytes = max(map(sum, zip(self._places, self._lengths)), default=0)
        self._overlap = overlapping_pair([(a.address, a.nbytes) for a in self.arrays])
        self._pieces: dict[bool, Pieces] = {}
        self._launches: dict[tuple[int, int, int, bool, bool], _Launch] = {}

    def pack(self, bucket: Any, factor: float = 1.0) -> None:
        """Copy every array to its place in `bucket`, converted and multiplied by `factor`.

        The product is formed in the dtype's accumulator. Bytes of the bucket that belong to no
        array stay as they are.

        Raises:
            ArgumentError: the bucket is too small, overlaps an array, is on another device, or is
                not aligned to the elements that are to be converted.
            UnsupportedError: there is a factor, and the dtype is neither float nor complex.
        """
        self._launch(device_view(bucket), factor, pack=True)

    def unpack(self, bucket: Any, factor: float = 1.0) -> None:
        """Copy every array from its place in `bucket`, converted and multiplied by `factor`.

        Raises:
            ArgumentError: as `pack`; or arrays overlap each other.
            UnsupportedError: as `pack`.
        """
        if self._overlap:
            raise ArgumentError(
                "arrays {} and {} overlap: unpacking would write both".format(*self._overlap)
            )
        self._launch(device_view(bucket), factor, pack=False)

    def _launch(self, bucket: DeviceView, factor: float, pack: bool) -> None:
        seen = (bucket.address, bucket.nbytes, bucket.device, pack, factor == 1.0)
        launch = self._launches.get(seen)
        if launch is None:
            launch = self._launches[seen] = self._prepared(bucket, factor, pack)
        kernel, grid, head, table = launch
        if grid:
            self._launcher.launch(kernel, grid, head + _FACTOR.pack(factor) + table)

    def _prepared(self, bucket: DeviceView, factor: float, pack: bool) -> _Launch:
        """Check a bucket that is seen for the first time, and lay out the arguments."""
        ends = (self.dtype, self.bucket_dtype) if pack else (self.bucket_dtype, self.dtype)
        codes = _kernel_codes(*ends, factor)
        plain = codes == (BYTES.code, BYTES.code)
        self._check_bucket(bucket, plain)
        pieces = self._pieces_of(plain)
        if pieces.chunks == 0:
            return _Launch("", 0, b"", b"")
        small = plain and pieces.count <= INLINE_PIECES
        table = 0 if small else pieces.on_device(self._launcher).address
        columns = (0, 1, 0, bucket.address) if pack else (1, 0, bucket.address, 0)
        return _Launch(
            f"{'pack_inline' if small else 'pack'}<{codes[0]},{codes[1]}>",
            grid_of(self._launcher, pieces.chunks),
            _HEAD.pack(table, pieces.count, pieces.chunks, *columns),
            pieces.bytes.ljust(INLINE_PIECES * 32, b"\0") if small else b"",
        )

    def _pieces_of(self, plain: bool) -> Pieces:
        """Return the table, in bytes where they are only copied, else in elements."""
        if plain not in self._pieces:
            size = 1 if plain else self.bucket_dtype.itemsize
            widest = 1 if plain else max(self.dtype.itemsize, self.bucket_dtype.itemsize)
            counts = [n // size for n in self._lengths]
            addresses = [a.address for a in self.arrays]
            self._pieces[plain] = Pieces(addresses, self._places, counts, widest)
        return self._pieces[plain]

    def _check_bucket(self, bucket: DeviceView, plain: bool) -> None:
        """Raise the error that says why a bucket cannot be packed."""
        if bucket.nbytes < self.bucket_bytes:
            raise ArgumentError(
                f"the bucket has {bucket.nbytes} bytes, but {len(self.arrays)} arrays of "
                f"{self.bucket_dtype.name} end at byte {self.bucket_bytes}: make it larger"
            )
        whole = Named("the bucket", bucket)
        check_device([whole], self._launcher.device)
        check_apart([whole], named("arrays", self.arrays), same=False)
        if not plain:
            self._check_alignment(bucket)

    def _check_alignment(self, bucket: DeviceView) -> None:
        """Check what the kernel that converts wants: addresses are multiples of the element."""
        for k, (array, offset) in enumerate(zip(self.arrays, self._places)):
            if array.nbytes:
                _check_aligned(f"array {k}", array.address, self.dtype)
                _check_aligned(
                    f"the place of array {k}", bucket.address + offset, self.bucket_dtype
                )


class CudaPack(OnDevice):
    """Buckets of arrays, and the chunks of an all-to-all."""

    def packing(
        self,
        arrays: Sequence[Any],
        dtype: DType | Sequence[DType],
        bucket_dtype: DType | None = None,
        offsets: Sequence[int] | None = None,
    ) -> Packing:
        """Return what packs these arrays into buckets, and unpacks them.

        Args:
            arrays: each contiguous, of any size, also 0, at any alignment; they stay the caller's.
            dtype: of all arrays, or of each.
            bucket_dtype: if it is another one, elements are converted on the way.
            offsets: each array's place in the bucket in bytes; by default one follows the other.

        Raises:
            ArgumentError: an array on another device; several dtypes; an array that is no whole
                number of elements; places that overlap each other.
            UnsupportedError: there is no conversion between the dtypes.
        """
        return Packing(self._launcher, arrays, dtype, bucket_dtype, offsets)

    def chunks_of_rows(
        self, chunks: Sequence[Any], counts: Sequence[int], row: int, dtype: DType
    ) -> Packing:
        """Return the Packing of an all-to-all's chunks in one array of rows, peer after peer.

        `unpack(x)` scatters the rows of x to the chunks; `pack(x)` gathers them.

        Args:
            chunks: one for each peer.
            counts: rows of each chunk: send_counts or recv_counts, also 0.
            row: bytes of a row.
            dtype: of the elements.

        Raises:
            ArgumentError: a chunk has not as many bytes as its rows.
        """
        if len(chunks) != len(counts):
            raise ArgumentError(
                f"{len(chunks)} chunks, but counts of {len(counts)} peers: {counts}"
            )
        views = [device_view(x) for x in chunks]
        for peer, (chunk, count) in enumerate(zip(views, counts)):
            if count < 0 or chunk.nbytes != count * row:
                raise ArgumentError(
                    f"the chunk of peer {peer} has {chunk.nbytes} bytes, but {count} rows of {row} "
                    f"bytes are {count * row}"
                )
        return Packing(self._launcher, views, dtype)


def _one_dtype(dtypes: DType | Sequence[DType]) -> DType:
    if isinstance(dtypes, DType):
        return dtypes
    for k, dtype in enumerate(dtypes):
        if dtype != dtypes[0]:
            raise ArgumentError(
                f"array {k} is {dtype.name}, array 0 is {dtypes[0].name}: a bucket has one dtype; "
                "make a bucket for each"
            )
    return dtypes[0] if dtypes else BYTES


def _kernel_codes(source: DType, target: DType, factor: float) -> tuple[int, int]:
    """Return the kernel's parameters."""
    if source == target and factor == 1.0:
        return BYTES.code, BYTES.code
    if convertible(source, target):
        return source.code, target.code
    if source == target:
        raise UnsupportedError(
            f"factor={factor} on {source.name}: only floats and complex numbers are scaled as they "
            "are packed; leave it at 1.0"
        )
    raise UnsupportedError(
        f"{source.name} is not converted to {target.name} as it is packed: pack as {source.name} "
        "and convert the bucket"
    )


def _elements(index: int, array: DeviceView, dtype: DType) -> int:
    count, rest = divmod(array.nbytes, dtype.itemsize)
    if rest:
        raise ArgumentError(
            f"array {index} has {array.nbytes} bytes, which is no whole number of {dtype.name} "
            f"of {dtype.itemsize} bytes"
        )
    return count


def _check_aligned(name: str, address: int, dtype: DType) -> None:
    if address % dtype.itemsize:
        raise ArgumentError(
            f"{name}: {dtype.name} at {address:#x} is not aligned to {dtype.itemsize} bytes, so it "
            "cannot be converted or scaled as it is packed"
        )


def _checked_places(lengths: Sequence[int], offsets: Sequence[int] | None) -> list[int]:
    """Return the places of arrays in the bucket, which do not overlap."""
    if offsets is None:
        return consecutive(lengths)
    if len(offsets) != len(lengths):
        raise ArgumentError(f"{len(offsets)} offsets for {len(lengths)} arrays")
    for k, offset in enumerate(offsets):
        if offset < 0:
            raise ArgumentError(f"offsets[{k}]={offset} lies before the bucket")
    pair = overlapping_pair(list(zip(offsets, lengths)))
    if pair:
        a, b = pair
        raise ArgumentError(
            f"arrays {a} and {b} overlap in the bucket: {lengths[a]} bytes at {offsets[a]}, "
            f"{lengths[b]} bytes at {offsets[b]}"
        )
    return list(offsets)
