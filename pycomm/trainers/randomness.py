"""Randomness: what surrounds the forward passes of training, so that dropout knows no layout."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from pycomm.parallel.dropout import KeyedDropout

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

_logger = logging.getLogger(__name__)


class Randomness:
    """Keyed dropout, for models that draw random numbers; others are only watched.

    Looking at every function of a model takes time (0.2 ms for a transformer block), so after a
    first pass that drew nothing only torch's generator is looked at; if it ever moves, passes are
    keyed from then on.

    Args:
        module: the model, or this rank's part of it.
        comm: the ranks; they take rank 0's seed, that of torch's generator.
        device: where the module is.
        batch_dims: see KeyedDropout.
    """

    def __init__(
        self,
        module: nn.Module,
        comm: Communicator,
        device: torch.device,
        batch_dims: Mapping[str, int | None] | None,
    ):
        seed = comm.broadcast_object(torch.initial_seed(), 0)
        self._keyed = KeyedDropout(module, seed, batch_dims)
        self._rank, self._device = comm.rank, device
        self._draws: bool | None = None

    @contextmanager
    def __call__(self, step: int, first_sample: int, samples: int) -> Iterator[None]:
        """Be around the forward pass of a microbatch in training; see KeyedDropout."""
        if self._draws is False:
            with self._watching(step):
                yield
            return
        with self._keyed(step, first_sample, samples):
            yield
        self._draws = bool(self._draws) or self._keyed.draws

    @contextmanager
    def _watching(self, step: int) -> Iterator[None]:
        before = self._generator()
        yield
        if not torch.equal(before, self._generator()):
            self._draws = True
            _logger.warning(
                "rank %d: the model began to draw random numbers in step %d; what it drew there "
                "depends on the layout, later dropout does not",
                self._rank,
                step,
            )

    def _generator(self) -> torch.Tensor:
        on_gpu = self._device.type == "cuda"
        return torch.cuda.get_rng_state(self._device) if on_gpu else torch.get_rng_state()
