"""Which samples a rank trains on: each of an epoch once, unless it is asked for otherwise."""

from __future__ import annotations

from itertools import chain
from types import SimpleNamespace

import pytest

from pycomm.errors import ArgumentError
from pycomm.parallel.sampler import ShareSampler


def epochs(samples: int, ranks: int, **options) -> list[list[list[int]]]:
    """Return the batches of every rank in the second epoch."""
    batches = []
    for rank in range(ranks):
        sampler = ShareSampler(samples, SimpleNamespace(rank=rank, size=ranks), **options)
        sampler.epoch = 1
        batches.append(list(sampler))
        assert len(sampler) == len(batches[-1])
    return batches


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("samples", [1, 8, 9, 11, 16])
def test_every_sample_once_in_an_order_that_ranks_do_not_change(samples: int, ranks: int) -> None:
    found = epochs(samples, ranks, batch_size=4, seed=3)
    [alone] = epochs(samples, 1, batch_size=4, seed=3)
    together = [list(chain(*(of[k] for of in found if k < len(of)))) for k in range(len(alone))]
    assert together == alone
    assert sorted(chain(*alone)) == list(range(samples))
    assert samples < 5 or alone != epochs(samples, 1, batch_size=4, seed=4)[0]


def test_ranks_run_out_early_only_in_the_last_batch() -> None:
    assert [len(of) for of in epochs(9, 4, batch_size=4)] == [3, 2, 2, 2]


def test_the_last_batch_dropped_or_filled() -> None:
    dropped = epochs(10, 2, batch_size=4, shuffle=False, drop_last=True)
    assert dropped == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    filled = epochs(10, 2, batch_size=4, shuffle=False, repeat=True)
    assert filled == [[[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], [0, 1]]]
    assert epochs(3, 4, batch_size=8, shuffle=False, repeat=True)[2] == [[1, 2]]


@pytest.mark.parametrize(
    "wrong", [{"samples": 0}, {"batch_size": 1}, {"drop_last": True, "repeat": True}]
)
def test_bad_arguments(wrong) -> None:
    arguments = {"samples": 5, "batch_size": 4, **wrong}
    with pytest.raises(ArgumentError, match=r"samples=\d, batch_size=\d.* on 2 ranks"):
        ShareSampler(arguments.pop("samples"), SimpleNamespace(rank=0, size=2), **arguments)
