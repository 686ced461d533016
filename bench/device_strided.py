"""More rows of the table: copies of strided arrays to contiguous ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.device_kernels import Kernel
from bench.device_sampling import Use
from bench.rotation import Sets
from pycomm.kernels.cuda_strided import strided_view
from pycomm.kernels.device import device_view


def copying(
    name: str, shape: Callable[[int], tuple[int, int]], part: Callable[[Any], Any]
) -> Kernel:
    """Return the packing of a part, a view, of a matrix of float32.

    Args:
        name: of the row.
        shape: of the matrix, from its bytes; of the bytes that it takes, too.
        part: the view of a matrix of NumPy, CuPy or torch.
    """

    def packed(size: int) -> tuple[int, ...]:
        """Return the shape of the part."""
        return part(np.broadcast_to(np.float32(0), shape(size))).shape

    def layout(size: int) -> dict[str, int]:
        return {"x": 4 * int(np.prod(shape(size))), "out": 4 * int(np.prod(packed(size)))}

    def prepare(sets: Sets) -> None:
        sets.fill("x", "float32", 0)

    def uses(sets: Sets) -> dict[str, Use]:
        size = sets.arrays("x")[0].size
        given, made = shape(size), packed(size)
        here = [part(a.reshape(given)) for a in sets.views("x", "float32")]
        there = [a.reshape(made) for a in sets.views("out", "float32")]
        xs, outs = [strided_view(a) for a in here], [device_view(a) for a in there]
        pack, copyto = sets.device.kernels.pack_strided, sets.device.xp.copyto
        found: dict[str, Use] = {
            "pycomm": lambda i: pack(xs[i], outs[i]),
            "cupy": lambda i: copyto(there[i], here[i]),
        }
        if sets.device.torch is not None:
            froms = [part(t.view(given)) for t in sets.tensors("x", "float32")]
            tos = [t.view(made) for t in sets.tensors("out", "float32")]
            found["torch"] = lambda i: tos[i].copy_(froms[i])
        return found

    def expected(sets: Sets) -> list[tuple[np.ndarray, np.ndarray]]:
        x, out = (sets.views(n, "float32")[0] for n in ("x", "out"))
        wanted = part(x.reshape(shape(4 * x.size)))
        right = bool((out.reshape(wanted.shape) == wanted).all())
        return [(np.array([right], np.uint8), np.ones(1, np.uint8))]

    return Kernel(name, "float32", "none", layout, prepare, uses, expected)


def square(size: int) -> tuple[int, int]:
    """Return the shape of a matrix whose rows are a power of two, about as many as columns."""
    rows = 1 << (max(1, size // 4).bit_length() // 2)
    return rows, max(1, size // 4 // rows)


def of_width(width: int) -> Callable[[int], tuple[int, int]]:
    """Return the shape of matrices of so many columns."""
    return lambda size: (max(1, size // 4 // width), width)


def strided() -> list[Kernel]:
    """Return the rows: a matrix transposed, its first 512 of 516 columns, every second element."""
    return [
        copying("transpose", square, lambda matrix: matrix.T),
        copying("rows", of_width(516), lambda matrix: matrix[:, :512]),
        copying("items", of_width(2), lambda matrix: matrix[:, :1]),
    ]
