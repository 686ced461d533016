"""Compressed training on real data: as accurate as without, by every method."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

import pycomm
from pycomm.parallel.compression import METHODS
from pycomm.workloads import data, models
from tests.training import one_thread as one_thread

EPOCHS, BATCH, RATE = 8, 32, 0.05


def accuracy(comm, method: str | None) -> float:
    """Train a small CNN on the digits; return its accuracy in % of held-out samples."""
    torch.manual_seed(0)
    task = data.digits()
    (x, t), (test_x, test_t) = task.train.tensors, task.test.tensors
    model = pycomm.DataParallel(models.cnn(task, width=16), comm, compression=method)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True)
    batches = [b for _ in range(EPOCHS) for b in torch.randperm(len(x)).split(BATCH)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, len(batches))
    for batch in batches:
        mine = batch[: len(batch) // comm.size * comm.size].chunk(comm.size)[comm.rank]
        optimizer.zero_grad()
        cross_entropy(model(x[mine]), t[mine]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return (model(test_x).argmax(1) == test_t).double().mean().item() * 100


@pytest.fixture(scope="module")
def uncompressed(comm) -> float:
    if comm.size != 2:
        pytest.skip("one number of ranks is enough")
    return accuracy(comm, None)


@pytest.mark.parametrize("method", METHODS)
def test_as_accurate_as_uncompressed(comm, uncompressed, method) -> None:
    assert uncompressed >= 97.5
    assert accuracy(comm, method) >= uncompressed - 0.5
