"""A run that goes on with other numbers of ranks has the losses of one that never stopped."""

from __future__ import annotations

import pytest
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import pycomm
from tests.training import adamw, dense, samples, shared_folder
from tests.training import one_thread as one_thread


@pytest.mark.parametrize("accumulate", [1, 2])
def test_more_and_fewer_ranks_give_the_losses_of_one_process(comm, tmp_path, accumulate) -> None:
    folder = shared_folder(comm, tmp_path)
    data = TensorDataset(*samples(30, 3))
    alone = comm.split(comm.rank)
    reference = make(alone, accumulate)
    expected = [reference.fit(data, steps=n, batch_size=4, progress=False) for n in (3, 6, 9)]
    found = []
    for steps, ranks in zip((3, 6, 9), (comm.size, max(1, comm.size // 2), max(1, comm.size - 1))):
        some = comm.split(0 if comm.rank < ranks else None)
        if some is not None:
            options = {"batch_size": 4, "checkpoint": folder, "progress": False}
            found.append(make(some, accumulate).fit(data, steps=steps, **options))
            some.close()
        comm.barrier()
    if comm.rank == 0:
        assert found == pytest.approx(expected, rel=1e-9)
    alone.close()


def make(comm, accumulate: int) -> pycomm.DataParallelTrainer:
    return pycomm.DataParallelTrainer(dense(0), adamw, cross_entropy, comm, accumulate)
