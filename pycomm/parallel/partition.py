"""Splitting a model into parts: contiguous layers, the largest part as small as possible."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

from torch import nn

from pycomm.errors import ArgumentError
from pycomm.parallel.joined import Joined
from pycomm.parallel.parts import INPUT, OUTPUT, Part

Layers = list[tuple[str, nn.Module]]
"""The layers of a model with their names, in the order in which they are applied."""


def layers_of(model: nn.Module | Sequence[nn.Module]) -> Layers:
    """Return the layers of an nn.Sequential, nn.ModuleList or list, with the names they have there.

    Raises:
        ArgumentError: `model` is nothing of that kind, has a forward of its own, or no layers.
    """
    if isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward:
        layers = list(model._modules.items())  # named_children() would leave out repetitions
    elif isinstance(model, (list, tuple, nn.ModuleList)):
        layers = [(str(index), layer) for index, layer in enumerate(model)]
    else:
        raise ArgumentError(
            f"a {type(model).__name__} cannot be split by layers: pass an nn.Sequential without a "
            f"forward of its own, or a list of layers that are applied one after the other"
        )
    for name, layer in layers:
        if not isinstance(layer, nn.Module):
            raise ArgumentError(f"layer {name!r} is a {type(layer).__name__}, not an nn.Module")
    return layers


def partition(costs: Sequence[float], parts: int) -> list[range]:
    """Split layers into contiguous, non-empty parts such that the most expensive is cheapest.

    Among those the one with the least sum of squares is taken; of equals the one that leaves
    layers that cost nothing with the layer before them.

    Args:
        costs: of each layer, ≥ 0.
        parts: how many.

    Returns:
        For each part the range of its layers.

    Raises:
        ArgumentError: there are more parts than layers, or none.
    """
    if not 1 <= parts <= len(costs):
        raise ArgumentError(
            f"{len(costs)} layers cannot be split into {parts} parts: use between 1 and "
            f"{max(len(costs), 1)} ranks, or split the model into more layers"
        )
    sums = [0.0, *accumulate(costs)]
    limit = _best(sums, parts, max, float("inf"))[0]
    cuts = _best(sums, parts, lambda total, part: total + part * part, limit)[1]
    return [range(start, stop) for start, stop in pairwise(cuts)]


def better_cut(
    costs: Sequence[float], parts: Sequence[range], microbatches: int | None = None
) -> tuple[list[range], float]:
    """Return the best parts, and how many times as fast as the given ones they are.

    A pipeline of stages that take t(1) … t(p) for a microbatch takes about
    (m − 1) · max t + t(1) + … + t(p) for m of them.

    Args:
        costs: the time of each layer, ≥ 0; see `scaled_costs`.
        parts: the present ones.
        microbatches: of a batch; None for many.

    Returns:
        The parts, as `partition` gives them, and the predicted speedup; the present ones and 1.0
        if there are none better.
    """
    better = partition(costs, len(parts))
    before, after = _longest(costs, parts), _longest(costs, better)
    if not after < before:
        return list(parts), 1.0
    if microbatches is None:
        return better, before / after
    through, rest = sum(costs), microbatches - 1
    return better, (rest * before + through) / (rest * after + through)


def scaled_costs(
    costs: Sequence[float], parts: Sequence[range], times: Sequence[float]
) -> list[float]:
    """Return costs of layers that add up to the measured times of the parts.

    Args:
        costs: what each layer was thought to cost, in any unit.
        parts: their ranges.
        times: of each part.
    """
    scaled = [0.0] * len(costs)
    for part, time in zip(parts, times, strict=True):
        total = sum(costs[i] for i in part)
        for i in part:
            scaled[i] = time * costs[i] / total if total else time / len(part)
    return scaled


def _longest(costs: Sequence[float], parts: Sequence[range]) -> float:
    return max(sum(costs[i] for i in part) for part in parts)


def given_parts(parts: Sequence[Part], count: int) -> list[Part]:
    """Return parts that the user has made, if there are `count` and none shares a parameter.

    Raises:
        ArgumentError: there are more or fewer, or a parameter is in two.
    """
    if len(parts) != count:
        raise ArgumentError(
            f"{len(parts)} parts for {count} stages: pass one for each, or use {len(parts)} "
            f"ranks, or more with fewer stages_per_rank"
        )
    owner: dict[int, int] = {}
    for stage, part in enumerate(parts):
        for name, parameter in part.module.named_parameters():
            other = owner.setdefault(id(parameter), stage)
            if other != stage:
                raise ArgumentError(
                    f"parameter {name!r} of part {stage} is shared with part {other}: give each "
                    f"its own, or pass the whole model, which can be split there"
                )
    return list(parts)


class Chain(Joined):
    """Layers, one after the other, as a part of a model: the result is the only value it gives."""

    def __init__(self, layers: Layers):
        super().__init__([nn.Sequential(OrderedDict(layers))])

    def forward(self, x: Any) -> tuple[Any]:
        """Return the result of the last layer, in a tuple."""
        return (self.inside[0](x),)


def cut(layers: Layers, ranges: Sequence[range]) -> list[Part]:
    """Return parts of consecutive layers; what passes from part k to part k + 1 is "cut k"."""
    values = [INPUT, *(f"cut {number}" for number in range(len(ranges) - 1)), OUTPUT]
    return [
        Part(Chain(layers[r.start : r.stop]), (taken,), (given,))
        for r, (taken, given) in zip(ranges, pairwise(values))
    ]


def _best(
    sums: list[float], parts: int, combine: Callable[[float, float], float], limit: float
) -> tuple[float, list[int]]:
    """Return the least combined cost, and its cuts, with no part above `limit`.

    Dynamic programming over (parts used, layers covered).
    """
    count = len(sums) - 1
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [0])}
    for _ in range(parts):
        following: dict[int, tuple[float, list[int]]] = {}
        for stop in range(1, count + 1):
            for start in reversed(range(stop)):
                cost = sums[stop] - sums[start]
                if start not in best or cost > limit:
                    continue
                total = combine(best[start][0], cost)
                if stop not in following or total < following[stop][0]:
                    following[stop] = total, [*best[start][1], stop]
        best = following
    return best[count]
