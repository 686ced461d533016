"""More rows of the table: what reads an array and gives little: checks, norms, selections."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.device_kernels import Kernel
from bench.device_sampling import Use
from bench.rotation import Sets
from pycomm.kernels.device import device_view
from pycomm.types import DTYPES

_KEPT = 100
"""One of so many elements is selected."""


def finite_check(dtype_name: str) -> Kernel:
    """Return the search for a NaN or an infinity in an array that has none."""
    dtype = DTYPES[dtype_name]

    def uses(sets: Sets) -> dict[str, Use]:
        xs, firsts = _views(sets, "x"), _views(sets, "first")
        search = sets.device.kernels.first_non_finite
        found: dict[str, Use] = {"pycomm": lambda i: search(xs[i], firsts[i], dtype)}
        if sets.device.torch is not None:
            isfinite, tensors = sets.device.torch.isfinite, sets.tensors("x", dtype_name)
            found["torch"] = lambda i: isfinite(tensors[i]).all()
        if dtype_name == "float32":
            check, arrays = sets.device.xp.isfinite, sets.views("x", dtype_name)
            found["cupy"] = lambda i: check(arrays[i]).all()
        return found

    def expected(sets: Sets) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(sets.device.host(sets.arrays("first")[0]), np.full(8, 255, np.uint8))]

    return _row("finite", dtype_name, {"first": 8}, uses, expected)


def squares() -> Kernel:
    """Return the sum of the squares of an array, formed in float64."""

    def uses(sets: Sets) -> dict[str, Use]:
        totals = _views(sets, "total")
        of = sets.device.kernels.sum_of_squares
        sums = [of([x], DTYPES["float32"]) for x in _views(sets, "x")]
        norm, arrays = sets.device.xp.linalg.norm, sets.views("x", "float32")
        found: dict[str, Use] = {
            "pycomm": lambda i: sums[i].into(totals[i]),
            "cupy": lambda i: norm(arrays[i]),
        }
        if sets.device.torch is not None:
            torch, tensors = sets.device.torch, sets.tensors("x", "float32")
            found["torch"] = lambda i: torch.linalg.vector_norm(tensors[i])
            found["torch-foreach"] = lambda i: torch._foreach_norm([tensors[i]])
        return found

    def expected(sets: Sets) -> list[tuple[np.ndarray, np.ndarray]]:
        x, total = sets.views("x", "float32")[0], sets.views("total", "float64")[0]
        near = abs(float(sets.device.xp.square(x, dtype="float64").sum()) / float(total[0]) - 1)
        return _truth(near < 1e-12)

    return _row("squares", "float32", {"total": 8}, uses, expected, most_sets=512)


def selection() -> Kernel:
    """Return the selection of a hundredth of an array, the largest magnitudes."""
    dtype = DTYPES["float32"]

    def layout(size: int) -> dict[str, int]:
        kept = max(1, size // 4 // _KEPT)
        return {"x": size, "values": 4 * kept, "indices": 8 * kept}

    def uses(sets: Sets) -> dict[str, Use]:
        xs, values, indices = (_views(sets, n) for n in ("x", "values", "indices"))
        top_k, kept = sets.device.kernels.top_k, values[0].nbytes // 4
        found: dict[str, Use] = {
            "pycomm": lambda i: top_k(xs[i], kept, values[i], indices[i], dtype)
        }
        if sets.device.torch is not None:
            topk, tensors = sets.device.torch.topk, sets.tensors("x", "float32")
            found["torch"] = lambda i: topk(tensors[i].abs(), kept, sorted=False)
        return found

    def expected(sets: Sets) -> list[tuple[np.ndarray, np.ndarray]]:
        xp, x = sets.device.xp, sets.views("x", "float32")[0]
        values, indices = sets.views("values", "float32")[0], sets.views("indices", "int64")[0]
        least = xp.partition(xp.abs(x), x.size - values.size)[x.size - values.size]
        ordered = bool((xp.diff(indices) > 0).all()) and bool((x[indices] == values).all())
        return _truth(ordered and bool(xp.abs(values).min() == least))

    return Kernel("top_k", "float32", "1%", layout, _prepare("float32"), uses, expected)


def checks() -> list[Kernel]:
    """Return the rows."""
    return [finite_check("float32"), finite_check("bfloat16"), squares(), selection()]


def _row(
    name: str, dtype: str, results: dict[str, int], uses: Any, expected: Any, most_sets: int = 4096
) -> Kernel:
    def layout(size: int) -> dict[str, int]:
        return {"x": size, **results}

    return Kernel(name, dtype, "none", layout, _prepare(dtype), uses, expected, most_sets)


def _prepare(dtype: str) -> Any:
    return lambda sets: sets.fill("x", dtype, 0)


def _truth(holds: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.array([holds], np.uint8), np.ones(1, np.uint8))]


def _views(sets: Sets, name: str) -> list[Any]:
    return [device_view(a) for a in sets.arrays(name)]
