"""More rows of the table: packing of gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.device_kernels import Kernel, windows
from bench.device_sampling import Use
from bench.rotation import Sets
from pycomm.kernels.device import device_view
from pycomm.types import DTYPES

_GRADIENTS = 300
_F32 = DTYPES["float32"]


def gradient_sizes(total: int) -> list[int]:
    """Return the counts of up to 300 gradients of float32, of very different and odd sizes."""
    count = total // 4
    parts = max(1, min(_GRADIENTS, count // 8))
    weights = np.random.default_rng(parts).lognormal(0, 2, parts)
    edges = (np.cumsum(weights) / weights.sum() * count).astype(int)
    return [int(n) for n in np.diff(edges, prepend=0) if n > 0]


def packing(name: str) -> Kernel:
    """Return pack, gradients into a bucket, or unpack, the other way."""

    def layout(size: int) -> dict[str, int]:
        sizes = gradient_sizes(size)
        return {"gradients": 4 * (sum(sizes) + len(sizes)), "bucket": 4 * sum(sizes)}

    def prepare(sets: Sets) -> None:
        sets.fill("gradients", "float32", 0)
        sets.fill("bucket", "float32", 1)

    def cut(arrays: list[Any], size: int, gap: int) -> list[list[Any]]:
        """Return each array's gradients, with `gap` elements between them."""
        counts = gradient_sizes(size)
        starts = np.cumsum([0, *(n + gap for n in counts)])
        return [[a[s : s + n] for s, n in zip(starts, counts)] for a in arrays]

    def uses(sets: Sets) -> dict[str, Use]:
        buckets = [device_view(b) for b in sets.arrays("bucket")]
        size = buckets[0].nbytes
        pieces = cut([a.view("float32") for a in sets.arrays("gradients")], size, 1)
        plans = [sets.device.kernels.packing(g, _F32) for g in pieces]
        found: dict[str, Use] = {"pycomm": lambda i: getattr(plans[i], name)(buckets[i])}
        torch = sets.device.torch
        if torch is not None:
            tensors = cut(sets.tensors("gradients", "float32"), size, 1)
            wholes = sets.tensors("bucket", "float32")
            places = cut(wholes, size, 0)
            if name == "pack":
                found["torch"] = lambda i: torch.cat(tensors[i], out=wholes[i])
                found["torch-foreach"] = lambda i: torch._foreach_copy_(places[i], tensors[i])
            else:
                found["torch-foreach"] = lambda i: torch._foreach_copy_(tensors[i], places[i])
        if name == "pack":
            whole, concatenate = sets.views("bucket", "float32"), sets.device.xp.concatenate
            found["cupy"] = lambda i: concatenate(pieces[i], out=whole[i])
        return found

    def expected(sets: Sets) -> list[tuple[np.ndarray, np.ndarray]]:
        bucket, host = sets.arrays("bucket")[0], sets.device.host
        pieces = cut([sets.arrays("gradients")[0].view("float32")], bucket.size, 1)[0]
        joined = sets.device.xp.concatenate(pieces).view(np.uint8)
        return [(host(joined[part]), host(bucket[part])) for part in windows(bucket.size)]

    return Kernel(name, "float32", "none", layout, prepare, uses, expected, most_sets=24)


def moves() -> list[Kernel]:
    """Return the rows."""
    return [packing("pack"), packing("unpack")]
