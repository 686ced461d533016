"""The norm of a gradient, the same bits however it is spread over ranks and buffers.

Squares are added in double, in blocks of 4096 elements of one parameter; the sums of blocks, of
which it does not matter which rank has them, are added exactly and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from pycomm import _native, arrays
from pycomm.kernels import update

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

EPSILON = 1e-6
"""What torch.nn.utils.clip_grad_norm_ adds to the norm."""


def clip_factor(norm: float, clip_norm: float) -> float:
    """Return what a gradient is multiplied by so that its norm is at most `clip_norm`."""
    return min(1.0, clip_norm / (norm + EPSILON)) if norm == norm else norm


def norm_of(comm: Communicator | None, squares: Sequence[np.ndarray]) -> float:
    """Return the norm from sums of squares, which all ranks have some of; collective.

    Args:
        comm: the ranks; None for this one alone.
        squares: float64, any number.
    """
    mine = np.concatenate([*squares, np.empty(0)])
    if comm is not None and comm.size > 1:
        counts = comm.all_gather(np.array([len(mine)])).reshape(-1).tolist()
        mine = comm.all_gather(mine, counts=counts)
    return math.sqrt(_exact_sum(mine.tolist()))


def clip_gradients(gradients: Iterable[torch.Tensor], norm: float, clip_norm: float | None) -> None:
    """Scale gradients of a norm, in place, so that it is at most `clip_norm`.

    Args:
        gradients: dense, or sparse and coalesced.
        norm: of them and perhaps of others.
        clip_norm: None leaves them as they are.
    """
    factor = 1.0 if clip_norm is None else clip_factor(norm, clip_norm)
    if factor != 1:
        for gradient in gradients:
            (gradient._values() if gradient.is_sparse else gradient).mul_(factor)


def squares_of(x: torch.Tensor) -> np.ndarray:
    """Return the sum of squares of every block of a tensor, in the order of its memory.

    Args:
        x: dense, or sparse and coalesced.
    """
    flat = _flat(x._values() if x.is_sparse else x)
    if flat.device.type == "cpu" and flat.dtype in _NATIVE:
        squares = np.empty(-(-flat.numel() // update.NORM_BLOCK))
        code = arrays.resolve_dtype(flat.dtype).code
        _native.squares(flat.data_ptr(), flat.numel(), code, _native.address(squares))
        return squares
    wide = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
    whole = wide.numel() // update.NORM_BLOCK * update.NORM_BLOCK
    each = wide.double().square()
    sums = each[:whole].view(-1, update.NORM_BLOCK).sum(1), each[whole:].sum(0, keepdim=True)
    return np.asarray(torch.cat(sums).cpu())


_NATIVE = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _flat(x: torch.Tensor) -> torch.Tensor:
    like = torch.empty_like(x, device="meta").stride()
    if x.stride() != like:
        x = x.contiguous()
    return x.detach().as_strided((x.numel(),), (1,), x.storage_offset())


def _exact_sum(values: list[float]) -> float:
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf
