"""More rows of the table: keyed dropout, beside torch's, which draws another mask."""

from __future__ import annotations

import numpy as np

from bench.device_kernels import WINDOW, Kernel
from bench.device_sampling import Use
from bench.rotation import Sets
from pycomm import _native
from pycomm.kernels.device import device_view
from pycomm.kernels.dropout import Draw, Place, dropout
from pycomm.types import DTYPES

_DRAW = Draw(key=1, step=2, p=0.1, scale=1 / 0.9)


def keyed(dtype_name: str) -> Kernel:
    """Return dropout of a tenth of an array, all of it one sample."""
    dtype = DTYPES[dtype_name]

    def layout(size: int) -> dict[str, int]:
        return dict.fromkeys(("x", "out"), size - size % dtype.itemsize)

    def prepare(sets: Sets) -> None:
        sets.fill("x", dtype_name, 0)

    def uses(sets: Sets) -> dict[str, Use]:
        xs, outs = ([device_view(a) for a in sets.arrays(n)] for n in ("x", "out"))
        place = Place(0, 1, 1, sets.arrays("x")[0].size // dtype.itemsize)
        drop = sets.device.kernels.dropout
        found: dict[str, Use] = {"pycomm": lambda i: drop(xs[i], outs[i], dtype, place, _DRAW)}
        if sets.device.torch is not None:
            of_torch, tensors = sets.device.torch.dropout, sets.tensors("x", dtype_name)
            found["torch"] = lambda i: of_torch(tensors[i], _DRAW.p, True)
        return found

    def expected(sets: Sets) -> list[tuple[np.ndarray, np.ndarray]]:
        x = sets.device.host(sets.arrays("x")[0][: WINDOW * dtype.itemsize])
        wanted = np.empty_like(x)
        place = Place(0, 1, 1, x.size // dtype.itemsize)
        dropout(_native.address(x), _native.address(wanted), dtype, place, _DRAW)
        return [(sets.device.host(sets.arrays("out")[0][: x.size]), wanted)]

    return Kernel("dropout", dtype_name, "p=0.1", layout, prepare, uses, expected)


def dropouts() -> list[Kernel]:
    """Return the rows."""
    return [keyed("float32"), keyed("bfloat16")]
