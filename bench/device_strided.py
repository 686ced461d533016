"""More rows of the table: copies of strided arrays to contiguous ones."""

from __future__ import annotations

import numpy as np

from bench.device_kernels import Kernel
from bench.device_sampling import Use
from bench.rotation import Sets
from pycomm.kernels.cuda_strided import strided_view
from pycomm.kernels.device import device_view


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


def strided() -> list[Kernel]:
    """Return the rows."""
    return [transposition()]
