"""KeyedDropout: dropout that is the same however a batch and a model are divided over ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode

from pycomm.errors import ArgumentError
from pycomm.parallel.dropout_functions import KEYED
from pycomm.parallel.forward_pass import ForwardPass
from pycomm.parallel.keyed_mask import as_part, current_part
from pycomm.parallel.random_sources import Reports, is_random
from pycomm.parallel.recompute import Restore, restore_in_checkpoints

_local = threading.local()


class KeyedDropout:
    """Make the dropout of a module a function of (seed, step, sample, layer, element).

    ::

        keyed = KeyedDropout(module, seed=0)
        with keyed(step=step, first_sample=begin, samples=len(inputs)):
            output = module(inputs)          # inputs are samples begin … of the global batch

    Inside, whatever drops by torch.nn.functional draws its mask from these numbers: F.dropout and
    its kin, the modules that call them, F.scaled_dot_product_attention with dropout_p, and with it
    nn.MultiheadAttention and the transformer layers. So the masks do not depend on how many ranks,
    microbatches and parts there are; torch's random generators are neither read nor changed. What
    torch.utils.checkpoint computes again drops the same. Attention without dropout stays torch's
    kernel. Every other function that draws random numbers is reported once, by a warning.

    A layer is the full name of the innermost module that runs, and how many of these functions it
    has called in this pass, whether they dropped or not. So a part of a model must have the names
    of the whole one, and calls by one module that lie in different parts are numbered by `in_layer`
    (`keyed_graph.name_dropouts` does so in a graph). What torch.jit has compiled is not seen, which
    is reported; torch.compile is not supported inside.

    Attributes:
        draws: whether a pass has dropped anything yet, or drawn other random numbers.

    Args:
        module: the model, or a part of it; it is not changed.
        seed: the same on all ranks.
        batch_dims: patterns of full module names, such as "encoder.*", → the dimension that is the
            batch in tensors that these modules drop from; None: there is none, all samples share a
            mask. The first pattern that matches counts. Others have it in dimension 0, and the
            dropouts of torch's transformer layers where their batch_first says.
    """

    def __init__(
        self, module: nn.Module, seed: int, batch_dims: Mapping[str, int | None] | None = None
    ):
        self.seed, self.draws = seed, False
        self.reports = Reports()
        patterns = list((batch_dims or {}).items()) + list(_sequence_first(module).items())
        attentions = {n for n, m in module.named_modules() if isinstance(m, nn.MultiheadAttention)}

        @cache
        def batch_dim(layer: str) -> int | None:
            if layer in attentions:
                return 0
            return next((dim for name, dim in patterns if fnmatchcase(layer, name)), 0)

        self._batch_dim = batch_dim
        self.names = {layer: name for name, layer in module.named_modules()}
        for layer, name in self.names.items():
            if isinstance(layer, torch.jit.ScriptModule):
                self.reports.add_opaque(name)
        restore_in_checkpoints(_capture)

    @contextmanager
    def __call__(
        self, step: int, first_sample: int = 0, samples: int | None = None
    ) -> Iterator[None]:
        """Be around one forward pass of a microbatch.

        Backward may come inside or later. Passes may be made again, with the same masks.

        Args:
            step: the number of the update, 0 ≤ step < 2⁶⁴.
            first_sample: the number in the global batch of the microbatch's first sample.
            samples: how many samples it has. A tensor with k times as many rows in its batch
                dimension, such as (samples · length, width), has k rows a sample. None: each row
                is a sample.

        Raises:
            ArgumentError: a number is out of range.
        """
        if not 0 <= step < 1 << 64 or first_sample < 0 or (samples is not None and samples < 0):
            raise ArgumentError(
                f"keyed dropout of step={step}, first_sample={first_sample}, samples={samples}: "
                "these must be numbers ≥ 0, step below 2⁶⁴"
            )
        now = ForwardPass(self.seed, step, first_sample, samples, self._batch_dim)
        with _running(self, now):
            yield
        self.draws = self.draws or now.dropped or self.reports.any


@contextmanager
def in_layer(name: str, number: int | None = None) -> Iterator[None]:
    """Say that what runs inside belongs to the module of this name.

    For code that runs without that module's forward, as in a graph traced by torch.fx. Outside of
    a pass of KeyedDropout it does nothing.

    Args:
        name: the module's full name in the whole model.
        number: of the next call of a dropout or attention function, among those that the module
            makes in a pass, from 0; None: what comes next on this rank.
    """
    now: ForwardPass | None = getattr(_local, "now", None)
    if now is None:
        yield
        return
    if number is not None:
        now.calls[name] = number
    now.names.append(name)
    try:
        yield
    finally:
        now.names.pop()


class _Mode(TorchFunctionMode):
    """Calls the keyed functions instead of torch's, and looks at the others."""

    def __init__(self, owner: KeyedDropout, now: ForwardPass):
        super().__init__()
        self._owner, self._now = owner, now

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        keyed = KEYED.get(func)
        if keyed is not None:
            self._now.count_call()
            return keyed(self._now, *args, **(kwargs or {}))
        if is_random(func, args, kwargs or {}):
            self._owner.reports.add(func, self._now.layer)
        return func(*args, **(kwargs or {}))


@contextmanager
def _running(owner: KeyedDropout, now: ForwardPass) -> Iterator[None]:
    before = getattr(_local, "owner", None), getattr(_local, "now", None)
    _local.owner, _local.now = owner, now
    try:
        with _Mode(owner, now), _watching(owner.names, now):
            yield
    finally:
        _local.owner, _local.now = before


@contextmanager
def _watching(names: Mapping[nn.Module, str], now: ForwardPass) -> Iterator[None]:
    """Have every module that runs on this thread say so to the pass."""

    def enter(module: nn.Module, *_: Any) -> None:
        if getattr(_local, "now", None) is now and (name := names.get(module)) is not None:
            now.names.append(name)

    def leave(module: nn.Module, *_: Any) -> None:
        if getattr(_local, "now", None) is now and module in names:
            now.names.pop()

    handles = (
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _capture() -> Restore | None:
    """Return what brings the pass back to where it is now; None outside of one."""
    owner: KeyedDropout | None = getattr(_local, "owner", None)
    if owner is None:
        return None
    then, part = _local.now.copy(), current_part()

    @contextmanager
    def restore() -> Iterator[None]:
        with as_part(part), _running(owner, then.copy()):
            yield

    return restore


def _sequence_first(module: nn.Module) -> dict[str, int]:
    """Return the names of the dropouts of torch's transformer layers with batch_first=False."""
    layers = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    return {
        f"{name}.{child}" if name else child: 1
        for name, layer in module.named_modules()
        if isinstance(layer, layers) and not layer.self_attn.batch_first
        for child, dropout in layer.named_children()
        if isinstance(dropout, nn.Dropout)
    }
