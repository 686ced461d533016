"""Worker processes load the same batches in the same order, also none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from pycomm.errors import ArgumentError
from pycomm.trainers.loading import Loader


class Squares(Dataset):
    """Sample i is (i, i²); says in which process it was loaded."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        worker = torch.utils.data.get_worker_info()
        return torch.tensor([index, -1 if worker is None else worker.id]), index**2


INDICES = [np.array([3, 1]), np.array([], np.int64), np.array([0]), np.array([9, 8, 7])]


@pytest.mark.parametrize(("workers", "context"), [(0, "fork"), (2, "fork"), (1, "spawn")])
def test_batches_come_in_their_order(workers: int, context: str) -> None:
    loader = Loader(Squares(), workers, context, seed=0)
    for _ in range(2):
        batches = list(loader.load(INDICES))
        assert [t if t is None else t.tolist() for _, t in batches] == [
            [9, 1],
            None,
            [0],
            [81, 64, 49],
        ]
        places = {place for x, _ in batches if x is not None for place in x[:, 1].tolist()}
        assert places <= set(range(workers)) if workers else places == {-1}


def test_tensors_are_indexed_a_batch_at_a_time_in_workers_too() -> None:
    data = TensorDataset(torch.arange(10.0), torch.arange(10))
    [(x, t)] = Loader(data, 1, "fork", seed=0).load([np.array([4, 2])])
    assert (x.tolist(), t.tolist()) == ([4.0, 2.0], [4, 2])


def test_workers_leave_the_random_generator_alone() -> None:
    before = torch.get_rng_state()
    list(Loader(Squares(), 1, "fork", seed=0).load(INDICES))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("workers", "context"), [(-1, "fork"), (1, "thread")])
def test_bad_workers(workers: int, context: str) -> None:
    with pytest.raises(ArgumentError, match=f"workers={workers}, worker_context='{context}'"):
        Loader(Squares(), workers, context, seed=0)
