"""What a checkpoint holds besides the optimizer's state: the tensors' kinds, random generators."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn


def describe(module: nn.Module) -> dict[str, tuple[str, list[int]]]:
    """Return (dtype, shape) of every parameter and persistent buffer by full name."""
    return {name: (str(t.dtype), list(t.shape)) for name, t in module.state_dict().items()}


def random_state() -> dict[str, Any]:
    """Return the states of torch's, NumPy's and Python's random generators, as plain values."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "numpy": [name, [int(key) for key in keys], *rest],
        "python": random.getstate(),
    }


def restore_random(state: Mapping[str, Any]) -> None:
    """Set the random generators to what `random_state` returned."""
    name, keys, *rest = state["numpy"]
    torch.set_rng_state(state["torch"])
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
