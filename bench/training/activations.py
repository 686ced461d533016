"""The memory that a step keeps between forward and backward, whoever makes it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from bench.training.variants.base import Training


def activation_bytes(training: Training) -> int:
    """Make one step; return the most bytes that autograd had saved on this rank at once.

    Parameters are left out. Memory counts once, however many operations have saved parts of it,
    from then until it is free.
    """
    saved = _Saved(training.module.parameters())
    with torch.autograd.graph.saved_tensors_hooks(saved.note, _unchanged):
        training.step()
    return saved.most_bytes


class _Saved:
    def __init__(self, parameters: Iterable[torch.Tensor]):
        self.most_bytes = 0
        self._left_out = {p.untyped_storage()._cdata for p in parameters}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def note(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count what is saved; return it without its history, of which it may be a part."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._left_out:
            self._live = {k: kept for k, kept in self._live.items() if not kept[0].expired()}
            self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            self.most_bytes = max(self.most_bytes, sum(size for _, size in self._live.values()))
        return tensor.detach()


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
