"""In which precision a trainer computes: as the parameters are, or by autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from pycomm.errors import ArgumentError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", *_DTYPES)


def forward_context(
    precision: str, device: torch.device
) -> Callable[[], AbstractContextManager[Any]]:
    """Return what makes the context of a forward pass and its loss.

    Args:
        precision: "fp32" computes in the dtypes of the parameters; "bf16" and "fp16" let
            torch.autocast choose bfloat16 or float16 where that does well. Parameters, their
            gradients and the optimizer's state keep their dtype.
        device: where it computes.

    Raises:
        ArgumentError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ArgumentError(f"precision={precision!r} is none of {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, _DTYPES[precision])
