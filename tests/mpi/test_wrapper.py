"""DataParallel, for loops of one's own: gradients are averages when backward ends."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import pycomm
from tests.training import conv, images
from tests.training import one_thread as one_thread


def rank_loss(model: nn.Module, rank: int, factor: float = 1.0) -> torch.Tensor:
    return cross_entropy(model(images(3, 50 + rank)[0]), images(3, 50 + rank)[1]) * factor


def averages(model: nn.Module, ranks: int, times: int = 1) -> list[torch.Tensor]:
    """Return the average over ranks of the gradients of `rank_loss`, added in rank order."""
    sums = [torch.zeros_like(p) for p in model.parameters()]
    for rank in range(ranks):
        model.zero_grad()
        for k in range(times):
            rank_loss(model, rank, k + 1.0).backward()
        for total, p in zip(sums, model.parameters()):
            total += p.grad
    return [total / ranks for total in sums]


@pytest.mark.parametrize("bucket_bytes", [1, 200, 25 << 20])
def test_gradients_are_averaged_when_backward_ends(comm, bucket_bytes: int) -> None:
    model = pycomm.DataParallel(conv(comm.rank), comm, bucket_bytes)
    for _ in range(2):
        model.zero_grad()
        rank_loss(model, comm.rank).backward()
    for p, q in zip(model.parameters(), averages(conv(0), comm.size)):
        assert torch.equal(p.grad, q)


def test_no_sync_adds_up(comm) -> None:
    model = pycomm.DataParallel(conv(0), comm)
    with model.no_sync():
        rank_loss(model, comm.rank).backward()
        alone = conv(0)
        rank_loss(alone, comm.rank).backward()
        for p, q in zip(model.parameters(), alone.parameters()):
            assert torch.equal(p.grad, q.grad)
    rank_loss(model, comm.rank, 2.0).backward()
    for p, q in zip(model.parameters(), averages(conv(0), comm.size, times=2)):
        assert torch.equal(p.grad, q)


def test_a_backward_that_failed_does_not_silence_the_next(comm) -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise ZeroDivisionError

    model = pycomm.DataParallel(conv(0), comm)
    y = model.module[3](Fails.apply(model.module[:3](images(2, 0)[0])))
    with pytest.raises(ZeroDivisionError):
        y.sum().backward()
    model.zero_grad()
    rank_loss(model, comm.rank).backward()
    for p, q in zip(model.parameters(), averages(conv(0), comm.size)):
        assert torch.equal(p.grad, q)


def test_parameters_used_on_some_ranks_or_none(comm) -> None:
    layers = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))
    model = pycomm.DataParallel(layers, comm)
    y = layers[0](torch.ones(1, 2))
    if comm.rank == comm.size - 1:
        y = y + layers[1](torch.ones(1, 2))
    y.sum().backward()
    assert torch.equal(layers[0].weight.grad, torch.ones(2, 2))
    assert torch.equal(layers[1].weight.grad, torch.ones(2, 2) / comm.size)
    assert layers[2].weight.grad is None
    assert model.module is layers


def test_mixed_dtypes_and_buffers(comm) -> None:
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.full((3,), float(comm.rank)))
            self.b = nn.Parameter(torch.full((), float(comm.rank), dtype=torch.float64))
            self.c = nn.Parameter(torch.full((2, 2), float(comm.rank), dtype=torch.bfloat16))
            self.register_buffer("seen", torch.full((2,), 7 + comm.rank))
            self.register_buffer("hidden", torch.tensor(comm.rank), persistent=False)

        def forward(self, x):
            return (self.a.sum() * x).double() + self.b * x + (self.c.sum() * x).double()

    model = pycomm.DataParallel(Mixed(), comm)
    inner = model.module
    copied = (inner.a, inner.b, inner.c, inner.seen, inner.hidden)
    assert [t.sum().item() for t in copied] == [0, 0, 0, 14, 0]
    model(float(comm.rank)).backward()
    mean = (comm.size - 1) / 2
    assert torch.equal(inner.a.grad, torch.full((3,), mean))
    assert inner.b.grad.item() == mean
    assert torch.equal(inner.c.grad, torch.full((2, 2), mean, dtype=torch.bfloat16))
