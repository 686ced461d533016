"""Runs parts in one process: values by name from part to part, gradients back the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from pycomm.parallel.parts import INPUT, OUTPUT, Part


def run(parts: Sequence[Part], inputs: Any) -> Any:
    """Return the output of the last part."""
    return _forward(parts, inputs)[0][OUTPUT]


def train_once(
    parts: Sequence[Part], inputs: Any, loss_of: Callable[[Any], torch.Tensor]
) -> torch.Tensor:
    """Run forward, loss and backward; gradients are added to the parameters'."""
    values, tape = _forward(parts, inputs)
    output = tree_map(_cut_off, values[OUTPUT])
    loss = loss_of(output)
    loss.backward()
    gradients = {OUTPUT: _gradients(output)}
    for taken, given in reversed(tape):
        ends, arrived = [], []
        for name, value in given.items():
            pairs = zip(tree_leaves(value), gradients.get(name, []))
            for leaf, gradient in pairs:
                if gradient is not None and leaf.requires_grad:
                    ends.append(leaf)
                    arrived.append(gradient)
        torch.autograd.backward(ends, arrived)
        for name, value in taken.items():
            gradients[name] = _added(gradients.get(name), _gradients(value))
    return loss.detach()


def _forward(parts: Sequence[Part], inputs: Any) -> tuple[dict[str, Any], list]:
    values: dict[str, Any] = {INPUT: inputs}
    tape = []
    for stage, part in enumerate(parts):
        assert (INPUT in part.takes) == (stage == 0)
        taken = {name: tree_map(_cut_off, values[name]) for name in part.takes}
        # What a layer changes in place must not be a leaf.
        results = part.module(*(tree_map(_no_leaf, value) for value in taken.values()))
        assert isinstance(results, tuple) and len(results) == len(part.gives)
        assert not set(part.gives) & set(values)
        given = dict(zip(part.gives, results))
        values |= given
        tape.append((taken, given))
    return values, tape


def _gradients(value: Any) -> list:
    return [t.grad if isinstance(t, torch.Tensor) else None for t in tree_leaves(value)]


def _added(one: list | None, two: list) -> list:
    if one is None:
        return two
    return [b if a is None else a if b is None else a + b for a, b in zip(one, two)]


def _cut_off(x: Any) -> Any:
    if not isinstance(x, torch.Tensor):
        assert x is None or isinstance(x, (int, float, str)), type(x)
        return x
    own = x.detach().clone()
    return own.requires_grad_() if own.is_floating_point() else own


def _no_leaf(x: Any) -> Any:
    return x.view_as(x) if isinstance(x, torch.Tensor) and x.requires_grad else x
