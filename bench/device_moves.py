"""More rows of the table: packing of gradients, and the chunks of an all-to-all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.device import numpy_bytes
from bench.device_kernels import Kernel, windows
from bench.device_sampling import Use
from bench.rotation import Sets
from pycomm.arrays import numpy_dtype
from pycomm.kernels.device import device_view
from pycomm.types import DTYPES, DType

_GRADIENTS = 300
_PEERS = 8
_ROW_BYTES = 512
_COLUMNS = _ROW_BYTES // 2
_GAP = 8
"""Elements between two chunks."""
_F32, _BF16 = DTYPES["float32"], DTYPES["bfloat16"]


def gradient_sizes(total: int) -> list[int]:
    """Return the counts of up to 300 gradients of float32, of very different and odd sizes."""
    count = total // 4
    parts = max(1, min(_GRADIENTS, count // 8))
    weights = np.random.default_rng(parts).lognormal(0, 2, parts)
    edges = (np.cumsum(weights) / weights.sum() * count).astype(int)
    return [int(n) for n in np.diff(edges, prepend=0) if n > 0]


def cut(arrays: list[Any], counts: list[int], gap: int) -> list[list[Any]]:
    """Return the pieces of each array, of `counts` elements, with `gap` elements between them."""
    starts = np.cumsum([0, *(n + gap for n in counts)])
    return [[a[s : s + n] for s, n in zip(starts, counts)] for a in arrays]


def packing(name: str, bucket_name: str = "float32", factor: float = 1.0) -> Kernel:
    """Return pack, gradients of float32 into a bucket, or unpack, the other way."""
    kind, pack = DTYPES[bucket_name], name == "pack"
    converts = kind != _F32

    def layout(size: int) -> dict[str, int]:
        sizes = gradient_sizes(size)
        count = sum(sizes)
        return {"gradients": 4 * (count + len(sizes)), "bucket": kind.itemsize * count}

    def prepare(sets: Sets) -> None:
        sets.fill("gradients", "float32", 0)
        sets.fill("bucket", bucket_name, 1)

    def counts(sets: Sets) -> list[int]:
        return gradient_sizes(4 * sets.arrays("bucket")[0].size // kind.itemsize)

    def uses(sets: Sets) -> dict[str, Use]:
        buckets = [device_view(b) for b in sets.arrays("bucket")]
        pieces = cut(sets.views("gradients", "float32"), counts(sets), 1)
        plans = [sets.device.kernels.packing(g, _F32, kind) for g in pieces]
        moves = [plan.pack if pack else plan.unpack for plan in plans]
        found: dict[str, Use] = {"pycomm": lambda i: moves[i](buckets[i], factor)}
        if sets.device.torch is not None:
            found |= _in_torch(sets, counts(sets), bucket_name, pack, factor)
        if pack and not converts and factor == 1.0:
            whole, concatenate = sets.views("bucket", "float32"), sets.device.xp.concatenate
            found["cupy"] = lambda i: concatenate(pieces[i], out=whole[i])
        return found

    def expected(sets: Sets) -> list[tuple[np.ndarray, np.ndarray]]:
        pairs = []
        for ends in _packed_parts(sets, counts(sets), kind):
            source, target = ends if pack else reversed(ends)
            scaled = source.astype(np.float32) * np.float32(factor)
            pairs.append((target.view(np.uint8), numpy_bytes(scaled, target.dtype.name)))
        return pairs

    dtypes = ("float32", bucket_name) if pack else (bucket_name, "float32")
    redop = dtypes[1] if converts else "scale" if factor != 1.0 else "none"
    return Kernel(name, dtypes[0], redop, layout, prepare, uses, expected, most_sets=24)


def _packed_parts(
    sets: Sets, counts: list[int], kind: DType
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield window after window of the first gradients, and of their bucket."""
    gradients = cut(sets.views("gradients", "float32")[:1], counts, 1)[0]
    joined, bucket = sets.device.xp.concatenate(gradients), sets.arrays("bucket")[0]
    for part in windows(joined.size):
        held = bucket[part.start * kind.itemsize : part.stop * kind.itemsize]
        yield sets.device.host(joined[part]), sets.device.host(held).view(numpy_dtype(kind))


def _in_torch(
    sets: Sets, counts: list[int], bucket: str, pack: bool, factor: float
) -> dict[str, Use]:
    """Return what one writes in torch: a copy that converts, and a product in place."""
    torch = sets.device.torch
    tensors = cut(sets.tensors("gradients", "float32"), counts, 1)
    wholes = sets.tensors("bucket", bucket)
    places = cut(wholes, counts, 0)

    def foreach(i: int) -> None:
        to, given = (places[i], tensors[i]) if pack else (tensors[i], places[i])
        torch._foreach_copy_(to, given)
        if factor != 1.0:
            torch._foreach_mul_(to, factor)

    def cat(i: int) -> None:
        torch.cat(tensors[i], out=wholes[i])
        if factor != 1.0:
            wholes[i].mul_(factor)

    return {"torch-foreach": foreach} | ({"torch": cat} if pack and bucket == "float32" else {})


def _rows_of_peers(size: int) -> list[int]:
    rows = max(1, size // _ROW_BYTES)
    edges = [rows * k * (k + 1) // (_PEERS * (_PEERS + 1)) for k in range(_PEERS + 1)]
    return [b - a for a, b in zip(edges, edges[1:])]


def exchange(name: str) -> Kernel:
    """Return gather, chunks of 8 peers into rows of bfloat16, or scatter, the other way."""

    def layout(size: int) -> dict[str, int]:
        nbytes = _ROW_BYTES * sum(_rows_of_peers(size))
        return {"x": nbytes, "chunks": nbytes + 2 * _GAP * _PEERS}

    def prepare(sets: Sets) -> None:
        sets.fill("x", "bfloat16", 0)
        sets.fill("chunks", "bfloat16", 1)

    def chunks(sets: Sets, arrays: list[Any]) -> list[list[Any]]:
        rows = _rows_of_peers(sets.arrays("x")[0].size)
        return cut(arrays, [_COLUMNS * n for n in rows], _GAP)

    def uses(sets: Sets) -> dict[str, Use]:
        xs = [device_view(x) for x in sets.arrays("x")]
        rows, pieces = _rows_of_peers(xs[0].nbytes), chunks(sets, sets.views("chunks", "uint16"))
        make = sets.device.kernels.chunks_of_rows
        plans = [make(p, rows, _ROW_BYTES, _BF16) for p in pieces]
        moves = [plan.pack if name == "gather" else plan.unpack for plan in plans]
        found: dict[str, Use] = {"pycomm": lambda i: moves[i](xs[i])}
        if sets.device.torch is not None:
            copy, whole = sets.device.torch._foreach_copy_, sets.tensors("x", "bfloat16")
            there = chunks(sets, sets.tensors("chunks", "bfloat16"))
            here = [list(x.split([_COLUMNS * n for n in rows])) for x in whole]
            froms, tos = (there, here) if name == "gather" else (here, there)
            found["torch-foreach"] = lambda i: copy(tos[i], froms[i])
        if name == "gather":
            outs, concatenate = sets.views("x", "uint16"), sets.device.xp.concatenate
            found["cupy"] = lambda i: concatenate(pieces[i], out=outs[i])
        return found

    def expected(sets: Sets) -> list[tuple[np.ndarray, np.ndarray]]:
        x = sets.views("x", "uint16")[0]
        pieces = chunks(sets, sets.views("chunks", "uint16")[:1])[0]
        joined = sets.device.xp.concatenate(pieces)
        ends = [[sets.device.host(a[part]) for part in windows(x.size)] for a in (x, joined)]
        return [(got.view(np.uint8), wanted.view(np.uint8)) for got, wanted in zip(*ends)]

    return Kernel(name, "bfloat16", "none", layout, prepare, uses, expected, most_sets=512)


def moves() -> list[Kernel]:
    """Return the rows."""
    return [
        packing("pack"),
        packing("unpack"),
        packing("pack", "bfloat16"),
        packing("unpack", "bfloat16"),
        packing("pack", factor=1 / 8),
        exchange("gather"),
        exchange("scatter"),
    ]
