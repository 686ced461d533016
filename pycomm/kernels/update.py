"""One pass over a shard in host memory: reduce gradients, update, publish (csrc/cpu/update.h).

Bytes moved for each element of a shard on n ranks: the gradients of n ranks and the parameter are
read, n copies of the parameter (or the shared one) are written, and state is read and written; each
rank does so for one element in n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pycomm import _native

NORM_BLOCK: int = _native.NORM_BLOCK
"""Elements whose squares are one partial sum of a norm."""

SGD, ADAM = 0, 1
STATES = {SGD: ("momentum_buffer",), ADAM: ("exp_avg", "exp_avg_sq")}
"""What a rule keeps for every element, by torch's names."""


@dataclass
class Piece:
    """Addresses of some elements of one parameter; what they point to must outlive its use.

    Attributes:
        gradients: one of each rank, in rank order.
        parameters: the copies to write; the first one is read, too.
        state: what the rule keeps, in the order of STATES.
        settings: which row of settings is its.
        count: how many elements.
        tail: how many of the last ones torch's vector code would leave over, see `tail`.
    """

    gradients: Sequence[int]
    parameters: Sequence[int]
    state: Sequence[int]
    settings: int
    count: int
    tail: int = 0

    def row(self) -> list[int]:
        """Return it as a row of a table for `update`."""
        states = [*self.state, 0, 0][:2]
        return [*self.gradients, *self.parameters, *states, self.settings, self.count, self.tail]


def tail(numel: int, itemsize: int, begin: int, end: int) -> int:
    """Return how many elements of [begin, end) of a parameter torch computes one by one.

    Its loops of additions take two AVX2 vectors at a time; what is left over they form in the
    narrow float itself.
    """
    if itemsize > 2:
        return 0
    body = numel - numel % (64 // itemsize)
    return max(0, end - max(begin, body))


def table(pieces: Sequence[Piece], ranks: int, copies: int) -> np.ndarray:
    """Return pieces as a table for `update`, whose first columns are the gradients of the ranks."""
    return np.array([p.row() for p in pieces], np.uint64).reshape(-1, ranks + copies + 5)


def sgd_settings(
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
) -> tuple[float, ...]:
    """Return a row of settings for SGD; `first`: there is no momentum yet."""
    return lr, weight_decay, momentum, dampening, nesterov, maximize, first, 0, 0


def adam_settings(
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    maximize: bool,
    decoupled: bool,
    step: float,
) -> tuple[float, ...]:
    """Return a row of settings for Adam, or AdamW if `decoupled`, in step number `step`, from 1."""
    beta1, beta2 = betas
    decay = 1 - lr * weight_decay if decoupled else 1.0
    correction = (1 - beta2**step) ** 0.5
    size = lr / (1 - beta1**step)
    l2 = 0.0 if decoupled else weight_decay
    return decay, l2, 1 - beta1, beta2, 1 - beta2, correction, eps, size, maximize
