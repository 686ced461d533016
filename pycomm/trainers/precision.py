"""In which precision a trainer computes: as the parameters are, or by autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from pycomm.errors import ArgumentError

PRECISIONS = ("fp32", "bf16")


def forward_context(
    precision: str, device: torch.device
) -> Callable[[], AbstractContextManager[Any]]:
    """Return what makes the context of a forward pass and its loss.

    Args:
        precision: "fp32" computes in the dtypes of the parameters; "bf16" lets torch.autocast
            choose bfloat16 where that does well. Parameters, their gradients and the optimizer's
            state keep their dtype.
        device: where it computes.

    Raises:
        ArgumentError: there is no such precision.
    """
    if precision not in PRECISIONS:
        names = " nor ".join(map(repr, PRECISIONS))
        raise ArgumentError(f"precision={precision!r} is neither {names}")
    if precision == "fp32":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)
