"""The memory that a step keeps between forward and backward, whoever makes it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_pre_hook

from bench.training.variants.base import Training

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def activation_bytes(training: Training) -> int:
    """Make one step; return the most bytes that were saved on this rank at once for backward.

    That is what autograd saves, and what linear layers and convolutions take, which a trainer may
    save by itself. Parameters are left out. Memory counts once, however many operations have saved
    parts of it, from then until it is free.
    """
    saved = _Saved(training.module.parameters())
    handle = register_module_forward_pre_hook(saved.note_input)
    try:
        with torch.autograd.graph.saved_tensors_hooks(saved.note, _unchanged):
            training.step()
    finally:
        handle.remove()
    return saved.most_bytes


class _Saved:
    def __init__(self, parameters: Iterable[torch.Tensor]):
        self.most_bytes = 0
        self._left_out = {p.untyped_storage()._cdata for p in parameters}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def note_input(self, module: nn.Module, inputs: tuple) -> None:
        """Count what a layer takes whose weight needs it in backward."""
        if inputs and isinstance(module, _LAYERS) and torch.is_grad_enabled():
            self.note(inputs[0])

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
