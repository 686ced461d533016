"""What a checkpoint holds besides the optimizer's state: the tensors' kinds, random generators."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from pycomm.parallel.placement import CPU


def describe(module: nn.Module) -> dict[str, tuple[str, list[int]]]:
    """Return (dtype, shape) of every parameter and persistent buffer by full name."""
    return {name: (str(t.dtype), list(t.shape)) for name, t in module.state_dict().items()}


def random_state(device: torch.device = CPU) -> dict[str, Any]:
    """Return the states of torch's, NumPy's and Python's random generators, as plain values.

    Args:
        device: where the trainer computes; a GPU has a generator of its own.
    """
    name, keys, *rest = np.random.get_state()
    gpu = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {
        **gpu,
        "torch": torch.get_rng_state(),
        "numpy": [name, [int(key) for key in keys], *rest],
        "python": random.getstate(),
    }


def restore_random(state: Mapping[str, Any], device: torch.device = CPU) -> None:
    """Set the random generators to what `random_state` returned, perhaps on another device."""
    name, keys, *rest = state["numpy"]
    torch.set_rng_state(state["torch"])
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def on_host(state: Any) -> Any:
    """Return nested dicts and lists with every tensor copied to the host, if it is not there."""
    if isinstance(state, torch.Tensor):
        return state.detach().cpu()
    if isinstance(state, dict):
        return {key: on_host(value) for key, value in state.items()}
    return [on_host(value) for value in state] if isinstance(state, list) else state
