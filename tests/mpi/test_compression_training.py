"""Compressed training on real data: as accurate as without, by every method."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

import pycomm
from pycomm.parallel.compression import METHODS
from pycomm.workloads import data, models
from tests.training import one_thread as one_thread

EPOCHS, BATCH, RATE, SEEDS = 8, 32, 0.03, (0, 1)


def accuracy(comm, method: str | None) -> float:
    """Return the mean accuracy of small CNNs on held-out digits, in %."""
    return sum(trained(comm, method, seed) for seed in SEEDS) / len(SEEDS)


def trained(comm, method: str | None, seed: int) -> float:
    """Train with the average of the weights in the second half: it depends less on chance."""
    torch.manual_seed(seed)
    task = data.digits()
    (x, t), (test_x, test_t) = task.train.tensors, task.test.tensors
    model = pycomm.DataParallel(models.cnn(task, width=16), comm, compression=method)
    average = torch.optim.swa_utils.AveragedModel(model.module)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True)
    batches = [b for _ in range(EPOCHS) for b in torch.randperm(len(x)).split(BATCH)]
    for number, batch in enumerate(batches):
        mine = batch[: len(batch) // comm.size * comm.size].chunk(comm.size)[comm.rank]
        optimizer.zero_grad()
        cross_entropy(model(x[mine]), t[mine]).backward()
        optimizer.step()
        if 2 * number >= len(batches):
            average.update_parameters(model.module)
    with torch.no_grad():
        return (average(test_x).argmax(1) == test_t).double().mean().item() * 100


@pytest.fixture(scope="module")
def uncompressed(comm) -> float:
    if comm.size != 2 or "Open MPI" not in comm.world.wire.library:
        pytest.skip("one number of ranks and one MPI are enough")
    return accuracy(comm, None)


@pytest.mark.parametrize("method", METHODS)
def test_as_accurate_as_uncompressed(comm, uncompressed, method) -> None:
    assert uncompressed >= 97.5
    reached = accuracy(comm, method)
    assert reached >= uncompressed - 0.5
