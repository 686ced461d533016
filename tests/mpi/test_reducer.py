"""Gradients are reduced while backward computes others; on any model, the same on all ranks."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pycomm
from pycomm.errors import UnsupportedError
from pycomm.parallel.reducer import Reducer
from tests.training import one_thread as one_thread

WIDTH = 32
LAYER_BYTES = WIDTH * WIDTH * 4


class Slow(torch.autograd.Function):
    """Takes its time in backward, as a layer on another device or a large one would."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(0.05)
        return gradient


class Layers(nn.Module):
    """Layers that are applied in another order than that of their names."""

    def __init__(self, order: list[int], slow: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in set(order))
        self.order, self.slow = order, slow

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index in self.order:
            x = self.layers[index](Slow.apply(x) if self.slow else x)
        return x


def inputs(rank: int) -> torch.Tensor:
    return torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(rank))


def averages(module: nn.Module, ranks: int) -> list[torch.Tensor]:
    """Return the averages over ranks of the gradients, added in rank order."""
    grads = []
    for rank in range(ranks):
        module.zero_grad()
        module(inputs(rank)).sum().backward()
        grads.append([p.grad for p in module.parameters()])
    return [sum(of[1:], of[0]) / ranks for of in zip(*grads)]


def backward(model: nn.Module, rank: int) -> list[torch.Tensor]:
    model.zero_grad()
    model(inputs(rank)).sum().backward()
    return [p.grad for p in model.parameters()]


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, found, expected))


@pytest.mark.parametrize(("bucket_bytes", "least"), [(LAYER_BYTES, 0.5), (25 << 20, 0.0)])
def test_all_but_the_last_bucket_hide_behind_backward(comm, bucket_bytes, least) -> None:
    model = pycomm.DataParallel(Layers([0, 1, 2, 3], slow=True), comm, bucket_bytes)
    expected = averages(Layers([0, 1, 2, 3]), comm.size)
    for _ in range(2):
        assert same(backward(model, comm.rank), expected)
    assert least <= model.hidden <= 1.5 * least


def test_buckets_follow_the_order_of_the_first_backward(comm) -> None:
    order = [2, 0, 3, 1]
    model = pycomm.DataParallel(Layers(order, slow=True), comm, LAYER_BYTES)
    expected = averages(Layers(order), comm.size)
    assert same(backward(model, comm.rank), expected)
    names = [bucket.slots[0].name for bucket in model._reducer.buckets]
    assert names == [f"layers.{index}.weight" for index in reversed(order)]
    assert same([p.grad for p in model.parameters()], expected)
    assert same(backward(model, comm.rank), expected)
    assert model.hidden >= 0.5


def test_a_first_step_without_samples_on_a_rank(comm) -> None:
    reducer = Reducer(
        (module := Layers([1, 0])).named_parameters(),
        comm,
        bucket_bytes=LAYER_BYTES,
        op="sum",
        algorithm=None,
    )
    for empty in (0, comm.size - 1):
        module.zero_grad()
        if comm.rank != empty:
            with reducer.synchronizing():
                module(inputs(0)).sum().backward()
        reducer.start_all()
        comm.barrier()  # behind all reductions, on every rank
        reducer.finish(scale=0.5)
        if comm.size > 1:
            [one] = averages(Layers([1, 0]), 1)[:1]
            grad = module.layers[0].weight.grad
            assert torch.allclose(grad, one * (comm.size - 1) / 2, rtol=1e-5, atol=1e-5)


def test_two_models_in_one_backward_and_in_turns(comm) -> None:
    first, second = (pycomm.DataParallel(Layers([0, 1]), comm, LAYER_BYTES) for _ in range(2))
    chain = nn.Sequential(Layers([0, 1]), Layers([0, 1]))
    expected = averages(chain, comm.size)
    second(first(inputs(comm.rank))).sum().backward()
    assert same([p.grad for m in (first, second) for p in m.parameters()], expected)
    alone = averages(Layers([0, 1]), comm.size)
    for model in (second, first, second):
        assert same(backward(model, comm.rank), alone)


def test_gradients_of_several_backward_passes(comm) -> None:
    model = pycomm.DataParallel(Layers([0, 1]), comm, LAYER_BYTES)
    backward(model, comm.rank)
    model(inputs(comm.rank)).sum().backward()
    expected = averages(Layers([0, 1]), comm.size)
    for p, q in zip(model.parameters(), expected):
        assert torch.allclose(p.grad, 2 * q, rtol=1e-5, atol=1e-6)


def test_checkpointed_layers(comm) -> None:
    class Recomputed(Layers):
        def forward(self, x):
            for index in self.order:
                x = checkpoint(self.layers[index], x, use_reentrant=False)
            return x

    model = pycomm.DataParallel(Recomputed([0, 1, 2]), comm, LAYER_BYTES)
    assert same(backward(model, comm.rank), averages(Layers([0, 1, 2]), comm.size))


class Twice(Layers):
    """Its backward passes are nested: each finishes the gradient of the same layer."""

    def forward(self, x):
        x.requires_grad_()
        for _ in range(2):
            x = checkpoint(self.layers[0], x, use_reentrant=True)
        return x


def test_a_gradient_that_changes_while_it_is_reduced_is_an_error(comm) -> None:
    module = Twice([0])
    parts = {"bucket_bytes": LAYER_BYTES, "op": "sum", "algorithm": None}
    reducer = Reducer(module.named_parameters(), comm, **parts)
    match = rf"'layers.0.weight' became ready twice.*rank {comm.rank}.*use_reentrant=False"
    with pytest.raises(UnsupportedError, match=match), reducer.synchronizing():
        module(inputs(0)).sum().backward()


def test_nested_backward_passes_are_averaged_one_by_one(comm) -> None:
    found = backward(pycomm.DataParallel(Twice([0]), comm, LAYER_BYTES), comm.rank)
    assert torch.allclose(*found, *averages(Layers([0, 0]), comm.size), rtol=1e-5, atol=1e-5)


class Words(nn.Module):
    def __init__(self, tied: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 3, sparse=True)
        self.linear = nn.Linear(3, 7, bias=False)
        self.tied = tied

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        y = self.embedding(words)
        return y @ self.embedding.weight.T if self.tied else self.linear(y)


@pytest.mark.parametrize("tied", [False, True])
def test_sparse_embeddings(comm, tied: bool) -> None:
    words = [torch.tensor([1, r, 1, 5])[: 4 - r % 2] for r in range(comm.size)]
    model = pycomm.DataParallel(Words(tied), comm)
    model(words[comm.rank]).sum().backward()
    reference, total = Words(tied), []
    for of in words:
        reference.zero_grad()
        reference(of).sum().backward()
        total.append(reference.embedding.weight.grad.to_dense())
    grad = model.module.embedding.weight.grad
    assert grad.is_sparse == (not tied)
    assert torch.allclose(grad.to_dense(), sum(total) / comm.size, rtol=1e-6, atol=1e-6)
    assert len(set(comm.all_gather_object(grad.to_dense().numpy().tobytes()))) == 1


def test_only_used_rows_of_an_embedding_travel(comm) -> None:
    if comm.size == 1:
        pytest.skip("one rank sends nothing")
    table = nn.Embedding(100_000, 4, sparse=True)
    model = pycomm.DataParallel(table, comm)
    before = comm.stats.bytes_sent
    model(torch.tensor([comm.rank])).sum().backward()
    assert comm.stats.bytes_sent - before < 10_000
    assert table.weight.grad._nnz() == comm.size


def test_an_embedding_that_only_some_ranks_use(comm) -> None:
    model = pycomm.DataParallel(Words(), comm)
    x = torch.ones(1, 3)
    y = model.module.linear(x)
    if comm.rank == comm.size - 1:
        y = y + model(torch.tensor([2]))
    y.sum().backward()
    grad = model.module.embedding.weight.grad
    assert grad.coalesce().indices().tolist() == [[2]]
    model.zero_grad()
    model.module.linear(x).sum().backward()
    assert model.module.embedding.weight.grad is None
    assert model.unused == ["embedding.weight"]


def test_ranks_that_run_out_early_follow_the_others(comm) -> None:
    model = pycomm.DataParallel(Layers([0, 1]), comm, LAYER_BYTES, checksums=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reference = Layers([0, 1])
    follower = torch.optim.SGD(reference.parameters(), lr=0.1)
    with model.uneven():
        for _ in range(1 + comm.rank):
            backward(model, comm.rank)
            optimizer.step()
    for step in range(comm.size):
        grads = [torch.zeros_like(p) for p in reference.parameters()]
        for rank in range(step, comm.size):
            for total, grad in zip(grads, backward(reference, rank)):
                total += grad
        for p, grad in zip(reference.parameters(), grads):
            p.grad = grad / comm.size
        follower.step()
    assert all(p.grad is None for p in model.parameters())
    for p, q in zip(model.parameters(), reference.parameters()):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)
    assert (
        len(set(comm.all_gather_object(next(model.parameters()).detach().numpy().tobytes()))) == 1
    )
    backward(model, comm.rank)


def test_an_error_in_a_loop_of_uneven_ranks_is_raised(comm) -> None:
    model = pycomm.DataParallel(Layers([0]), comm)
    with pytest.raises(ZeroDivisionError), model.uneven():
        raise ZeroDivisionError
    assert same(backward(model, comm.rank), averages(Layers([0]), comm.size))
