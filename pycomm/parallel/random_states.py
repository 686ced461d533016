"""The states of random generators, to be compared and restored."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_states() -> tuple[Any, ...]:
    """Return the states of the random generators of torch, Python and NumPy, to be compared."""
    name, keys, *rest = np.random.get_state()
    state = torch.get_rng_state().numpy().tobytes()
    return state, random.getstate(), (name, np.asarray(keys).tobytes(), *rest)


def restore_random_states(states: tuple[Any, ...]) -> None:
    """Set the generators to what `random_states` returned."""
    torch.set_rng_state(torch.frombuffer(bytearray(states[0]), dtype=torch.uint8))
    random.setstate(states[1])
    name, keys, *rest = states[2]
    np.random.set_state((name, np.frombuffer(keys, np.uint32), *rest))
