"""More rows of the table: packing of gradients, and block-scaled quantisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.device_kernels import WINDOW, Kernel, windows
from bench.device_sampling import Use
from bench.rotation import Sets
from pycomm.kernels import cpu_quantize
from pycomm.kernels.block_scaled import BLOCK, scale_count
from pycomm.kernels.cuda_strided import strided_view
from pycomm.kernels.device import device_view
from pycomm.types import DTYPES

_GRADIENTS = 300
_F32 = DTYPES["float32"]
_LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}


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


def quantisation(dtype_name: str, stored_name: str) -> Kernel:
    """Return the block-scaled quantisation of one array."""
    dtype, stored = DTYPES[dtype_name], DTYPES[stored_name]

    def layout(size: int) -> dict[str, int]:
        count = size // dtype.itemsize
        return {"x": size, "values": count, "scales": 4 * scale_count(count)}

    def prepare(sets: Sets) -> None:
        sets.fill("x", dtype_name, 0)

    def uses(sets: Sets) -> dict[str, Use]:
        rows = _views(sets, "x", "values", "scales")
        quantize = sets.device.kernels.quantize
        found: dict[str, Use] = {"pycomm": lambda i: quantize(*rows[i], dtype, stored)}
        if _torch_can(sets, sets.arrays("x")[0].size // dtype.itemsize):
            found["torch"] = _torch_quantize(sets, dtype_name, stored_name)
        return found

    def expected(sets: Sets) -> list[tuple[np.ndarray, np.ndarray]]:
        x = sets.device.host(sets.arrays("x")[0][: WINDOW * dtype.itemsize])
        count = x.size // dtype.itemsize
        values, scales = np.empty(count, np.uint8), np.empty(4 * scale_count(count), np.uint8)
        cpu_quantize.quantize(x, values, scales, dtype, stored)
        got = [sets.device.host(sets.arrays(n)[0]) for n in ("values", "scales")]
        return [(got[0][:count], values), (got[1][: scales.size], scales)]

    return Kernel("quantize", dtype_name, stored_name, layout, prepare, uses, expected)


def _torch_can(sets: Sets, count: int) -> bool:
    """Say whether torch is there, and the elements are rows of whole blocks."""
    return sets.device.torch is not None and count % BLOCK == 0


def _torch_quantize(sets: Sets, dtype: str, stored: str) -> Use:
    """Return what one writes in torch: a scale for each row of 256, then divide and convert."""
    torch = sets.device.torch
    kind, largest = getattr(torch, stored), _LARGEST[stored]
    xs = [t.view(-1, BLOCK) for t in sets.tensors("x", dtype)]
    outs = [t.view(-1, BLOCK) for t in sets.tensors("values", stored)]

    def use(i: int) -> None:
        wide = xs[i].float()
        scaled = wide / (wide.abs().amax(1, keepdim=True) / largest)
        outs[i].copy_(scaled.round_() if kind == torch.int8 else scaled)

    return use


def dequantisation(dtype_name: str, stored_name: str, inputs: int) -> Kernel:
    """Return the sum of so many quantised inputs; the size is that of the output."""
    dtype, stored = DTYPES[dtype_name], DTYPES[stored_name]
    values, scales = ([f"{n}{k}" for k in range(inputs)] for n in ("values", "scales"))

    def layout(size: int) -> dict[str, int]:
        count = size // dtype.itemsize
        sizes = dict.fromkeys(values, count) | dict.fromkeys(scales, 4 * scale_count(count))
        return {**sizes, "out": size}

    def prepare(sets: Sets) -> None:
        for k in range(inputs):
            sets.fill(values[k], stored_name if stored_name != "int8" else "float8_e4m3fn", k)
            sets.fill(scales[k], "float32", 100 + k)

    def uses(sets: Sets) -> dict[str, Use]:
        left, right, outs = _views(sets, *values), _views(sets, *scales), _views(sets, "out")
        reduce = sets.device.kernels.dequantize_reduce
        found: dict[str, Use] = {
            "pycomm": lambda i: reduce(left[i], right[i], outs[i][0], dtype, stored)
        }
        if _torch_can(sets, sets.arrays("out")[0].size // dtype.itemsize):
            found["torch"] = _torch_dequantize(sets, values, scales, dtype_name, stored_name)
        return found

    def expected(sets: Sets) -> list[tuple[np.ndarray, np.ndarray]]:
        out = sets.device.host(sets.arrays("out")[0][: WINDOW * dtype.itemsize])
        count = out.size // dtype.itemsize
        codes = [sets.device.host(sets.arrays(n)[0][:count]) for n in values]
        factors = [sets.device.host(sets.arrays(n)[0][: 4 * scale_count(count)]) for n in scales]
        wanted = np.empty_like(out)
        cpu_quantize.dequantize_reduce(codes, factors, wanted, dtype, stored)
        return [(out, wanted)]

    return Kernel(f"dequantize{inputs}", dtype_name, stored_name, layout, prepare, uses, expected)


def _torch_dequantize(
    sets: Sets, values: list[str], scales: list[str], dtype: str, stored: str
) -> Use:
    codes = [[t.view(-1, BLOCK) for t in sets.tensors(n, stored)] for n in values]
    factors = [[t.view(-1, 1) for t in sets.tensors(n, "float32")] for n in scales]
    outs = [t.view(-1, BLOCK) for t in sets.tensors("out", dtype)]

    def use(i: int) -> None:
        total = codes[0][i].float() * factors[0][i]
        for code, factor in zip(codes[1:], factors[1:]):
            total.addcmul_(code[i].float(), factor[i])
        outs[i].copy_(total)

    return use


def transposition() -> Kernel:
    """Return the packing of a transposed matrix of float32."""

    def sides(size: int) -> tuple[int, int]:
        rows = 1 << (max(1, size // 4).bit_length() // 2)
        return rows, max(1, size // 4 // rows)

    def layout(size: int) -> dict[str, int]:
        return dict.fromkeys(("x", "out"), 4 * sides(size)[0] * sides(size)[1])

    def prepare(sets: Sets) -> None:
        sets.fill("x", "float32", 0)

    def uses(sets: Sets) -> dict[str, Use]:
        rows, columns = sides(sets.arrays("x")[0].size)
        xs = [strided_view(a.reshape(rows, columns).T) for a in sets.views("x", "float32")]
        outs = [device_view(a) for a in sets.arrays("out")]
        pack = sets.device.kernels.pack_strided
        found: dict[str, Use] = {"pycomm": lambda i: pack(xs[i], outs[i])}
        here = [a.reshape(rows, columns).T for a in sets.views("x", "float32")]
        there, copyto = sets.views("out", "float32"), sets.device.xp.copyto
        found["cupy"] = lambda i: copyto(there[i].reshape(columns, rows), here[i])
        if sets.device.torch is not None:
            froms = [t.view(rows, columns).t() for t in sets.tensors("x", "float32")]
            tos = [t.view(columns, rows) for t in sets.tensors("out", "float32")]
            found["torch"] = lambda i: tos[i].copy_(froms[i])
        return found

    def expected(sets: Sets) -> list[tuple[np.ndarray, np.ndarray]]:
        rows, columns = sides(sets.arrays("x")[0].size)
        x, out = (sets.views(n, "float32")[0] for n in ("x", "out"))
        right = bool((out.reshape(columns, rows) == x.reshape(rows, columns).T).all())
        return [(np.array([right], np.uint8), np.ones(1, np.uint8))]

    return Kernel("transpose", "float32", "none", layout, prepare, uses, expected)


def _views(sets: Sets, *names: str) -> list[list[Any]]:
    """Return, for each set, the views of these buffers."""
    return [[device_view(a) for a in row] for row in zip(*map(sets.arrays, names))]


def moves() -> list[Kernel]:
    """Return the rows."""
    return [
        packing("pack"),
        packing("unpack"),
        transposition(),
        quantisation("float32", "int8"),
        quantisation("bfloat16", "float8_e4m3fn"),
        dequantisation("float32", "int8", 4),
        dequantisation("bfloat16", "float8_e4m3fn", 4),
    ]
