"""Weight checksums: replicas of a model must be equal to the bit; who is not is named."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from pycomm import _native
from pycomm.arrays import host_view
from pycomm.errors import ArgumentError, DivergedError
from pycomm.observe.flight import note_flight

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


def check_same_weights(module: nn.Module, comm: Communicator, step: int) -> None:
    """Return if every parameter of `module` has the same bits on all ranks.

    Every rank must call it. It reads the parameters once, and gathers 8 bytes for each. Buffers
    are left out: a batch norm's statistics follow each rank's own samples.

    Args:
        module: the same model on every rank.
        comm: the ranks.
        step: for the message: how many updates were made.

    Raises:
        DivergedError: on every rank; names the first parameter that differs, and on which ranks.
    """
    parameters = dict(module.named_parameters())
    names, views = list(parameters), [host_view(p.detach().cpu()) for p in parameters.values()]
    digests = [_native.digest(v.address, v.nbytes) for v in views]
    rows = comm.all_gather(np.array(digests, np.uint64))
    differ = np.flatnonzero((rows != rows[0]).any(axis=0))
    if differ.size:
        error = DivergedError(
            f"{_who(rows[:, differ[0]], names[differ[0]])} at step {step} (as do {differ.size} of "
            f"{len(names)} parameters; this is rank {comm.rank}): go back to a checkpoint, and "
            "look for an update that not all ranks make, or for faulty memory"
        )
        note_flight(error)
        raise error


class Checksums:
    """Calls `check_same_weights` after every so many steps.

    Args:
        module: the model.
        comm: the ranks.
        every: a number of steps, 0 for never; None is PYCOMM_CHECKSUMS, or 0.

    Raises:
        ArgumentError: `every` is negative.
    """

    def __init__(self, module: nn.Module, comm: Communicator, every: int | None):
        self._module, self._comm = module, comm
        self._every = comm.config.checksums if every is None else every
        if self._every < 0:
            raise ArgumentError(f"checksums={self._every} must be a number of steps, or 0")

    def after(self, step: int) -> None:
        """Check, if it is time after this many steps."""
        if self._every and step % self._every == 0:
            check_same_weights(self._module, self._comm, step)


def _who(digests: np.ndarray, name: str) -> str:
    """Say which ranks' digest is not that of most, or if none is, not that of rank 0."""
    _, first, owner, counts = np.unique(
        digests, return_index=True, return_inverse=True, return_counts=True
    )
    usual = max(range(len(counts)), key=lambda i: (counts[i], -first[i]))
    others, most = np.flatnonzero(owner != usual), np.flatnonzero(owner == usual)
    return f"{_ranks(others)}: parameter {name} differs from that of {_ranks(most)}"


def _ranks(numbers: Iterable[int]) -> str:
    texts = [str(number) for number in numbers]
    return f"rank{'s' * (len(texts) > 1)} {', '.join(texts)}"
