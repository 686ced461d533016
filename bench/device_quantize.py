"""More rows of the table: block-scaled quantisation, and sums of what was quantised."""

from __future__ import annotations

import numpy as np

from bench.device_kernels import WINDOW, Kernel
from bench.device_sampling import Use
from bench.rotation import Sets
from pycomm.kernels import cpu_quantize
from pycomm.kernels.block_scaled import BLOCK, scale_count
from pycomm.types import DTYPES

_LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}


def quantisation(dtype_name: str, stored_name: str) -> Kernel:
    """Return the block-scaled quantisation of one array."""
    dtype, stored = DTYPES[dtype_name], DTYPES[stored_name]

    def layout(size: int) -> dict[str, int]:
        count = size // dtype.itemsize
        return {"x": size, "values": count, "scales": 4 * scale_count(count)}

    def prepare(sets: Sets) -> None:
        sets.fill("x", dtype_name, 0)

    def uses(sets: Sets) -> dict[str, Use]:
        rows = sets.rows("x", "values", "scales")
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
        left, right, outs = sets.rows(*values), sets.rows(*scales), sets.rows("out")
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


def quantised() -> list[Kernel]:
    """Return the rows."""
    pairs = [("float32", "int8"), ("bfloat16", "float8_e4m3fn"), ("bfloat16", "float8_e5m2")]
    return [
        *(quantisation(*pair) for pair in pairs),
        *(dequantisation(*pair, inputs=4) for pair in pairs),
    ]
