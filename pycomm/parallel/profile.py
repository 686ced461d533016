"""Profiling: how long each layer of a model takes, and what its activations occupy."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from pycomm.parallel.parts import INPUT, Part
from pycomm.parallel.placement import CPU
from pycomm.parallel.replicate import on_every_rank
from pycomm.parallel.splitting.build import build_parts
from pycomm.parallel.splitting.flow import Flow

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

REPETITIONS = 5
_MEASURING = "measuring layers on sample="
_SILENT_S = 2.0  # a bar is shown when it takes longer


@dataclass(frozen=True)
class LayerProfile:
    """What a layer was measured to cost on one microbatch.

    Attributes:
        forward_s, backward_s: medians.
        activation_bytes: of the tensors that forward keeps for backward, its inputs included,
            parameters not.
    """

    forward_s: float
    backward_s: float
    activation_bytes: int

    @property
    def seconds(self) -> float:
        """Forward and backward together."""
        return self.forward_s + self.backward_s


def profile(
    flow: Flow,
    inputs: Any,
    comm: Communicator | None = None,
    repetitions: int = REPETITIONS,
    device: torch.device | None = None,
    measures: bool | None = None,
) -> list[LayerProfile]:
    """Measure each layer on a microbatch; the result is that of rank 0 on every rank.

    Layers run one after the other, so only one needs memory at a time; those on the meta device
    get stand-ins, those elsewhere than on `device` are copied there. Parameters, buffers, gradients
    and random generators stay as they were.

    Args:
        flow: the model.
        inputs: a microbatch, as the model takes it, anywhere.
        comm: the ranks, all of which must call this; None for this one alone.
        repetitions: of which the median is taken, after one that does not count.
        device: where; on a GPU the host waits for it before and after each measurement. None: where
            the model is.
        measures: whether this rank takes part; the ranks of rank 0's group do over which layers are
            divided. None: rank 0 does.
    """
    device = device or _home(flow.root)
    if comm is None or comm.size == 1:
        return _profile(flow, inputs, repetitions, device)

    if measures is None:
        measures = comm.rank == 0

    def measured() -> list[LayerProfile]:
        return _profile(flow, inputs, repetitions, device) if measures else []

    return comm.broadcast_object(on_every_rank(comm, measured, _MEASURING), 0)


def _profile(flow: Flow, inputs: Any, repetitions: int, device: torch.device) -> list[LayerProfile]:
    from tqdm import tqdm  # torch's users have it; `import pycomm` needs neither

    parts = build_parts(flow, [range(i, i + 1) for i in range(len(flow.layers))])
    last_use = {name: index for index, part in enumerate(parts) for name in part.takes}
    values: dict[str, Any] = {INPUT: tree_map(lambda x: _moved(x, device), inputs)}
    measured = []
    with _unchanged(flow.root, device):
        for index, part in enumerate(tqdm(parts, "measuring layers", delay=_SILENT_S)):
            taken = [values[name] for name in part.takes]
            row, given = _measure(part, taken, repetitions, device)
            measured.append(row)
            values |= dict(zip(part.gives, given))
            values = {n: v for n, v in values.items() if last_use.get(n, -1) > index}
    return measured


def _measure(
    part: Part, taken: list[Any], repetitions: int, device: torch.device
) -> tuple[LayerProfile, tuple[Any, ...]]:
    module = _stand_in(part.module, device)
    forwards, backwards = [], []
    for _ in range(repetitions + 1):
        fresh = tree_map(_entering, taken)
        _settle(device)
        started = time.perf_counter()
        with _Kept(module) as kept:
            given = module(*fresh)
        _settle(device)
        ran = time.perf_counter()
        ends = [t for t in tree_leaves(given) if isinstance(t, torch.Tensor) and t.requires_grad]
        torch.autograd.backward(ends, [torch.ones_like(t) for t in ends])
        _settle(device)
        forwards.append(ran - started)
        backwards.append(time.perf_counter() - ran)
        module.zero_grad(set_to_none=True)
    row = LayerProfile(median(forwards[1:]), median(backwards[1:]), kept.bytes)
    return row, tree_map(_leaving, given)


class _Kept:
    """Counts the bytes that autograd keeps for backward: each storage once, no parameters."""

    def __init__(self, module: nn.Module):
        self._own = {p.untyped_storage()._cdata for p in module.parameters()}
        self._sizes: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)

    @property
    def bytes(self) -> int:
        """The bytes of all storages that were kept."""
        return sum(self._sizes.values())

    def _pack(self, x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in self._own:
            self._sizes[storage._cdata] = storage.nbytes()
        return x

    def __enter__(self) -> _Kept:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)


def _stand_in(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a module that can run: itself, a copy on `device`, or small random weights there."""
    tensors = [*module.parameters(), *module.buffers()]
    if all(t.device == device for t in tensors):
        return module
    if not any(t.is_meta for t in tensors):
        return copy.deepcopy(module).to(device)
    real = copy.deepcopy(module).to_empty(device=device)
    with torch.no_grad():
        for tensor in [*real.parameters(), *real.buffers()]:
            tensor.zero_()
            if tensor.is_floating_point():
                tensor.normal_(std=0.02)
    return real


def _entering(x: Any) -> Any:
    """Return a copy that a layer may change in place, and whose gradient is wanted."""
    if not isinstance(x, torch.Tensor):
        return x
    learns = x.is_floating_point() or x.is_complex()
    return x.detach().requires_grad_(learns).clone()  # no leaf, and no view of one


def _leaving(x: Any) -> Any:
    return x.detach() if isinstance(x, torch.Tensor) else x


def _home(module: nn.Module) -> torch.device:
    """Return where a model is; the CPU if it has no memory yet."""
    return next((p.device for p in module.parameters() if not p.is_meta), CPU)


def _moved(x: Any, device: torch.device) -> Any:
    return x.to(device) if isinstance(x, torch.Tensor) else x


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _unchanged(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Leave buffers, gradients and random generators as they are."""
    buffers = [(b, b.clone()) for b in module.buffers() if not b.is_meta]
    gradients = [(p, p.grad) for p in module.parameters()]
    for p, _ in gradients:
        p.grad = None
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for p, gradient in gradients:
                p.grad = gradient
