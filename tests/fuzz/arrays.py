"""Arrays of every kind that pycomm takes, with given contents, and what is beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import pycomm
from pycomm import arrays
from pycomm.arrays import torch_dtype, view
from pycomm.types import DTYPES

Made = tuple[Any, Callable[[], bool]]
"""An array, and whether what lies beside it in memory is as it was."""


def _nothing_beside() -> bool:
    return True


def _plain(comm: pycomm.Communicator, x: np.ndarray) -> Made:
    return x.copy(), _nothing_beside


def _symmetric(comm: pycomm.Communicator, x: np.ndarray) -> Made:
    y = comm.empty(x.shape, x.dtype)
    y[...] = x
    return y, _nothing_beside


def _inside(comm: pycomm.Communicator, x: np.ndarray) -> Made:
    whole = comm.empty(x.size + 8, x.dtype)
    whole[:] = 1
    y = whole[3 : 3 + x.size].reshape(x.shape)
    y[...] = x
    return y, lambda: bool((whole[:3] == 1).all() and (whole[3 + x.size :] == 1).all())


def _strided(comm: pycomm.Communicator, x: np.ndarray) -> Made:
    whole = np.ones((*x.shape, 2), x.dtype)
    whole[..., 0] = x
    return whole[..., 0], lambda: bool((whole[..., 1] == 1).all())


def _at_odd_address(comm: pycomm.Communicator, x: np.ndarray) -> Made:
    whole = np.ones(x.nbytes + 2, np.uint8)
    y = whole[1:-1].view(x.dtype).reshape(x.shape)
    y[...] = x
    return y, lambda: whole[0] == 1 and whole[-1] == 1


def _tensor(comm: pycomm.Communicator, x: np.ndarray) -> Made:
    t = torch.empty(x.shape, dtype=torch_dtype(DTYPES[x.dtype.name]))
    view(t).bytes[:] = view(x.copy()).bytes
    return t, _nothing_beside


def _symmetric_tensor(comm: pycomm.Communicator, x: np.ndarray) -> Made:
    t = comm.empty(x.shape, torch_dtype(DTYPES[x.dtype.name]))
    view(t).bytes[:] = view(x.copy()).bytes
    return t, _nothing_beside


def _transposed_tensor(comm: pycomm.Communicator, x: np.ndarray) -> Made:
    return _tensor(comm, np.ascontiguousarray(x.T))[0].t() if x.ndim == 2 else _tensor(comm, x)[
        0
    ], _nothing_beside


FORMS = [
    _plain,
    _plain,
    _symmetric,
    _symmetric,
    _inside,
    _strided,
    _at_odd_address,
    _tensor,
    _symmetric_tensor,
    _transposed_tensor,
]


def flat(x: Any) -> bytes:
    """Return the contents of an array or tensor, in the order of its elements."""
    if isinstance(x, torch.Tensor):
        return arrays.view(x.contiguous()).bytes.tobytes()
    return np.ascontiguousarray(x).tobytes()


def same(x: Any, expected: np.ndarray, what: str) -> None:
    """Compare shape and bits."""
    assert tuple(x.shape) == expected.shape, f"{what}: shape {tuple(x.shape)}"
    got, want = flat(x), expected.tobytes()
    if got != want:
        width = expected.dtype.itemsize
        wrong = [i for i in range(0, len(want), width) if got[i : i + width] != want[i : i + width]]
        raise AssertionError(
            f"{what}: {len(wrong)} of {expected.size} elements of {expected.dtype} are wrong, the "
            f"first at {wrong[0] // width}, the last at {wrong[-1] // width}"
        )
