"""Cutting a batch into microbatches."""

from __future__ import annotations

import pytest
import torch

from pycomm.errors import ArgumentError
from pycomm.trainers.microbatches import split


@pytest.mark.parametrize(("samples", "count"), [(1, 1), (5, 1), (7, 3), (8, 4), (3, 8)])
def test_every_sample_is_in_one_part_and_no_part_is_empty(samples: int, count: int) -> None:
    x = torch.arange(samples * 2).reshape(samples, 2)
    parts = split(x, count)
    assert len(parts) == min(samples, count)
    assert torch.equal(torch.cat(parts), x)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_batch_may_be_nested_and_hold_other_things() -> None:
    x = {"ids": torch.arange(5), "pair": (torch.arange(10).reshape(5, 2), "causal")}
    first, second = split(x, 2)
    assert first["ids"].tolist() == [0, 1, 2] and second["ids"].tolist() == [3, 4]
    assert second["pair"][0].tolist() == [[6, 7], [8, 9]]
    assert first["pair"][1] == second["pair"][1] == "causal"


@pytest.mark.parametrize("nothing", [None, torch.empty(0, 3), (torch.empty(0), torch.empty(0))])
def test_nothing_has_no_parts(nothing) -> None:
    assert split(nothing, 4) == []


def test_tensors_of_different_length_are_an_error() -> None:
    with pytest.raises(ArgumentError, match=r"\[3, 4\] samples"):
        split((torch.zeros(3), torch.zeros(4)), 2)
