"""Loading samples: in the trainer's process, or ahead of it by worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pycomm.errors import ArgumentError
from pycomm.trainers import batches

CONTEXTS = ("fork", "spawn", "forkserver")


class Loader:
    """Fetches the samples at given indices, batch by batch, in their order.

    Args:
        dataset: map-style; picklable for workers that are not forked.
        workers: processes that load ahead; with 0 the caller's loads when it asks.
        context: how they start: "fork", "spawn" or "forkserver".
        seed: of the workers' random generators; torch's own generator is left alone.

    Raises:
        ArgumentError: `workers` is negative, or `context` unknown.
    """

    def __init__(self, dataset: Any, workers: int, context: str, seed: int):
        if type(workers) is not int or workers < 0 or context not in CONTEXTS:
            raise ArgumentError(
                f"workers={workers!r}, worker_context={context!r}: a number ≥ 0, and one of "
                f"{', '.join(CONTEXTS)}"
            )
        self._batches = _Batches(dataset)
        self._indices = _Indices()
        self._loader = self._start(workers, context, seed) if workers else None

    def load(self, indices: Iterable[np.ndarray]) -> Iterator[tuple[Any, Any]]:
        """Yield (inputs, targets) for each array of indices; (None, None) for an empty one."""
        if self._loader is None:
            yield from map(self._batches.__getitem__, indices)
        else:
            self._indices.now = indices
            yield from self._loader

    def _start(self, workers: int, context: str, seed: int) -> Iterable[tuple[Any, Any]]:
        return DataLoader(
            self._batches,
            batch_size=None,
            sampler=self._indices,
            num_workers=workers,
            multiprocessing_context=context,
            persistent_workers=True,
            collate_fn=_as_it_is,
            generator=torch.Generator().manual_seed(seed),
        )


class _Batches(Dataset[tuple[Any, Any]]):
    """A dataset whose samples are batches of another, by their indices."""

    def __init__(self, dataset: Any):
        self._dataset = dataset

    def __getitem__(self, indices: np.ndarray) -> tuple[Any, Any]:
        return batches.fetch(self._dataset, indices)


class _Indices:
    """What persistent workers load when they are asked next."""

    now: Iterable[np.ndarray] = ()

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.now)


def _as_it_is(batch: Any) -> Any:
    return batch
