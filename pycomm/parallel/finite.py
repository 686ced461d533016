"""Gradients that are infinite or not a number: found before they spread, and named."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from pycomm.errors import NonFiniteError

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


def is_finite(gradient: torch.Tensor) -> bool:
    """Say whether all elements of a gradient are finite."""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return bool(torch.isfinite(values).all())


def raise_if_any(comm: Communicator, names: Iterable[str]) -> None:
    """Raise on every rank if any has something to name; every rank must call this.

    Args:
        names: of the parameters whose gradient on this rank, before it is reduced, is not finite.

    Raises:
        NonFiniteError: names the first one of every rank that has any.
    """
    found = enumerate(comm.all_gather_object(list(names)))
    told = [f"rank {rank}: parameter {of[0]} (and {len(of) - 1} more)" for rank, of in found if of]
    if told:
        raise NonFiniteError(
            f"gradients that are not finite, on {'; '.join(told)} (this is rank {comm.rank}): "
            "look at the samples of that rank, or lower the learning rate"
        )
