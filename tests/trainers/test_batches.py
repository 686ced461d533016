"""The order of samples, and batches out of datasets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from pycomm.errors import ArgumentError
from pycomm.parallel.sampler import share
from pycomm.trainers.batches import Plan, count_samples, fetch, in_order


def plan(samples=10, batch_size=4, accumulate=1, seed=0, epochs=1, steps=None) -> Plan:
    return Plan(samples, batch_size, accumulate, seed, epochs, steps)


def test_an_epoch_has_every_sample_once() -> None:
    groups = list(plan(samples=11, accumulate=2).groups(0))
    assert [[len(batch) for batch in group] for group in groups] == [[4, 4], [3]]
    flat = np.concatenate([batch for group in groups for batch in group])
    assert sorted(flat.tolist()) == list(range(11))


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int, epoch: int, batch_size: int) -> list[int]:
        groups = plan(100, batch_size, seed=seed).groups(epoch)
        return np.concatenate([batch for group in groups for batch in group]).tolist()

    assert order(1, 0, 4) == order(1, 0, 33)
    assert len({tuple(order(seed, epoch, 4)) for seed in range(3) for epoch in range(3)}) == 9


def test_an_epoch_goes_on_where_it_stopped() -> None:
    whole = list(plan(samples=21, accumulate=2).groups(3))
    rest = list(plan(samples=21, accumulate=2).groups(3, start=2))
    assert [[b.tolist() for b in g] for g in rest] == [[b.tolist() for b in g] for g in whole[1:]]


@pytest.mark.parametrize(
    ("epochs", "steps", "last"), [(2, None, 6), (None, 4, 4), (2, 4, 4), (1, 9, 3)]
)
def test_the_end(epochs, steps, last: int) -> None:
    planned = plan(samples=21, accumulate=2, epochs=epochs, steps=steps)
    assert planned.last_step(0, 0, 0) == last
    epoch = step = batch = 0
    while not planned.done(epoch, step):
        for group in planned.groups(epoch):
            step, batch = step + 1, batch + len(group)
            assert planned.last_step(epoch, batch, step) == last
            if planned.done(epoch, step):
                break
        if batch == planned.batches:
            epoch, batch = epoch + 1, 0
    assert step == last
    assert planned.last_step(epoch, batch, step) == last


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"batch_size": 0}, "batch_size=0 must be an integer ≥ 1"),
        ({"batch_size": 2.5}, "batch_size=2.5 must be an integer"),
        ({"samples": 0}, "samples=0 must be an integer ≥ 1"),
        ({"seed": -1}, "seed=-1 must be an integer ≥ 0"),
        ({"epochs": None}, "fit has no end: pass epochs= or steps="),
    ],
)
def test_bad_plans(wrong, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        plan(**wrong)


@pytest.mark.parametrize("samples", [0, 1, 4, 7])
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_shares_are_contiguous_and_differ_by_one_at_most(samples: int, ranks: int) -> None:
    shares = [share(np.arange(samples), rank, ranks) for rank in range(ranks)]
    assert np.concatenate(shares).tolist() == list(range(samples))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_in_order() -> None:
    assert [i.tolist() for i in in_order(5, 2)] == [[0, 1], [2, 3], [4]]


class Pairs:
    """A map-style dataset without `tensors`."""

    def __init__(self, x: torch.Tensor, t: torch.Tensor):
        self.x, self.t = x, t

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.x[index], int(self.t[index])


def test_both_kinds_of_datasets_give_the_same() -> None:
    x, t = torch.randn(6, 2), torch.arange(6)
    indices = np.array([4, 0, 5])
    for dataset in (TensorDataset(x, t), Pairs(x, t)):
        inputs, targets = fetch(dataset, indices)
        assert torch.equal(inputs, x[[4, 0, 5]])
        assert torch.equal(targets, t[[4, 0, 5]])


def test_fetching_nothing() -> None:
    assert fetch(None, np.array([], int)) == (None, None)


def test_samples_must_be_pairs() -> None:
    x = torch.randn(3, 2)
    for dataset in (TensorDataset(x), TensorDataset(x, x, x), [1, 2, 3]):
        with pytest.raises(ArgumentError, match=r"is not a pair \(input, target\)"):
            fetch(dataset, np.arange(2))


def test_counting_samples() -> None:
    x = torch.zeros(3, 2)
    assert [count_samples(b) for b in (None, x, [x, x], {"a": x}, ())] == [0, 3, 3, 3, 0]
