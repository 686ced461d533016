"""Partitions are compared with the best of all possible ones."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from torch import nn

from pycomm.errors import ArgumentError
from pycomm.parallel.partition import (
    better_cut,
    layers_of,
    partition,
    scaled_costs,
)


def sizes(costs: list[float], parts: int) -> list[int]:
    return [len(part) for part in partition(costs, parts)]


def largest_part(costs: list[float], cuts: list[int]) -> float:
    return max(sum(costs[a:b]) for a, b in zip(cuts, cuts[1:]))


@pytest.mark.parametrize("seed", range(30))
def test_largest_part_is_as_small_as_possible(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 9))
    costs = rng.integers(0, 20, count).astype(float).tolist()
    for parts in range(1, count + 1):
        found = partition(costs, parts)
        cuts = [found[0].start, *(part.stop for part in found)]
        assert [i for part in found for i in part] == list(range(count))
        assert all(len(part) > 0 for part in found)
        choices = ([0, *inner, count] for inner in combinations(range(1, count), parts - 1))
        assert largest_part(costs, cuts) == min(largest_part(costs, c) for c in choices)


def test_what_is_left_is_balanced_too() -> None:
    assert sizes([9, 1, 1, 1, 1], 3) == [1, 2, 2]


def test_free_layers_stay_with_the_layer_before() -> None:
    assert sizes([5, 0, 5, 0, 5], 3) == [2, 2, 1]


def test_more_parts_than_layers() -> None:
    with pytest.raises(ArgumentError, match="2 layers cannot be split into 3 parts.*1 and 2 ranks"):
        partition([1, 1], 3)


def test_layers_keep_the_names_of_the_whole_model() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), shared, nn.Linear(2, 2), shared)
    assert [name for name, _ in layers_of(model)] == ["0", "1", "2", "3"]
    assert layers_of(list(model)) == layers_of(nn.ModuleList(model)) == layers_of(model)


def test_layers_of_what_cannot_be_split() -> None:
    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    for model in (nn.Linear(2, 2), Residual(nn.Linear(2, 2))):
        with pytest.raises(ArgumentError, match="cannot be split by layers: pass an nn.Sequential"):
            layers_of(model)
    with pytest.raises(ArgumentError, match="layer '1' is a function"):
        layers_of([nn.ReLU(), layers_of])


def test_a_better_cut_and_what_it_gains() -> None:
    costs, parts = [4, 1, 1, 2], [range(2), range(2, 4)]
    assert better_cut(costs, parts) == ([range(1), range(1, 4)], 5 / 4)
    assert better_cut(costs, parts, 8) == ([range(1), range(1, 4)], (7 * 5 + 8) / (7 * 4 + 8))
    assert better_cut(costs, [range(1), range(1, 4)]) == ([range(1), range(1, 4)], 1.0)
    assert better_cut([0, 0], [range(1), range(1, 2)])[1] == 1.0


def test_costs_that_add_up_to_measured_times() -> None:
    parts = [range(2), range(2, 4)]
    assert scaled_costs([1, 3, 0, 0], parts, [8.0, 5.0]) == [2, 6, 2.5, 2.5]
