"""Data parallelism is bitwise one process that runs the same shares and adds them in rank order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import pycomm
from pycomm.errors import ArgumentError, MismatchError
from tests.training import (
    adamw,
    assert_same_bits,
    conv,
    images,
    round_roots_correctly,
    sgd,
    shares,
    unpadded,
    unpadded_loss,
)
from tests.training import one_thread as one_thread

WAYS = {"sharded": {"shard": True}, "shared": {"share": True}, "neither": {"shard": False}}


def cut(batch, ranks: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return each rank's contiguous share of a batch, (None, None) where it is empty."""
    parts = np.array_split(np.arange(len(batch[1])), ranks)
    return [(batch[0][i], batch[1][i]) if len(i) else (None, None) for i in parts]


def train_in_one_process(model, optimizer, groups, ranks, loss_fn, *, weight=len, clip_norm=None):
    """The definition; groups holds steps, a step its batches. Return the loss of each batch."""
    parameters, losses = list(model.parameters()), []
    for group in groups:
        sums = [torch.zeros_like(p) for p in parameters]
        shares = [cut(batch, ranks) for batch in group]
        weights = [[0.0 if t is None else float(weight(t)) for _, t in batch] for batch in shares]
        totals = [sum(w) for w in weights]
        unit = len(group) * totals[0]
        parts = np.zeros((len(group), ranks))
        for rank in range(ranks):
            optimizer.zero_grad()
            for j in range(len(group)):
                if weights[j][rank]:
                    x, t = shares[j][rank]
                    loss = loss_fn(model(x), t)
                    (loss * (weights[j][rank] / unit)).backward()
                    parts[j, rank] = loss.item() * weights[j][rank]
            for total, p in zip(sums, parameters):
                total += 0 if p.grad is None else p.grad
        scale = unit / sum(totals)
        for total, p in zip(sums, parameters):
            p.grad = total * scale if scale != 1 else total
        if clip_norm is not None:
            norm = sum(float(p.grad.double().square().sum()) for p in parameters) ** 0.5
            for p in parameters:
                p.grad *= min(1.0, clip_norm / (norm + 1e-6))
        optimizer.step()
        losses += [sum(part) / total for part, total in zip(parts.tolist(), totals)]
    return losses


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("clip_norm", [None, 0.3])
@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("loss_fn", "weight"), [(cross_entropy, None), (unpadded_loss, unpadded)])
def test_same_bits_as_one_process(
    comm, accumulate, optimizer, clip_norm, loss_fn, weight, way, monkeypatch
) -> None:
    if way == "shared" and not shares(comm):
        pytest.skip("no shared memory")
    sizes = [8, 2, comm.size + 1, 13, max(1, comm.size - 1), 5]
    batches = [images(size, seed) for seed, size in enumerate(sizes)]
    for _, t in batches:
        t[-1] = 0  # at least one target of every batch counts
    trainer = pycomm.DataParallelTrainer(
        conv(comm.rank), optimizer, loss_fn, comm, accumulate, clip_norm, weight, **WAYS[way]
    )
    losses = [trainer.step(*cut(batch, comm.size)[comm.rank]) for batch in batches]
    if way != "neither" and shares(comm):
        round_roots_correctly(monkeypatch)
    reference = conv(0)
    groups = [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]
    expected = train_in_one_process(
        reference,
        optimizer(list(reference.named_parameters())),
        groups,
        comm.size,
        loss_fn,
        weight=weight or len,
        clip_norm=clip_norm,
    )
    assert losses == expected
    assert_same_bits(trainer.module, reference)
    assert trainer.progress.step == len(groups)
    assert len(set(comm.all_gather_object(tuple(losses)))) == 1


def test_fit_takes_contiguous_shares_of_global_batches(comm) -> None:
    x, t = images(10, 4)
    trainer = pycomm.DataParallelTrainer(conv(0), sgd, cross_entropy, comm)
    trainer.fit(TensorDataset(x, t), epochs=2, batch_size=4, seed=5, progress=False)
    reference = conv(0)
    groups = []
    for epoch in range(2):
        order = np.random.default_rng([5, epoch]).permutation(10)
        groups += [[(x[order[i : i + 4]], t[order[i : i + 4]])] for i in (0, 4, 8)]
    optimizer = sgd(list(reference.named_parameters()))
    train_in_one_process(reference, optimizer, groups, comm.size, cross_entropy)
    assert_same_bits(trainer.module, reference)


def test_gradient_is_that_of_the_whole_batch(comm) -> None:
    x, t = images(2 * comm.size + 1, 3, torch.float64)
    t[0] = 0
    model = conv(0, torch.float64)
    trainer = pycomm.DataParallelTrainer(
        model, sgd, unpadded_loss, comm, weight=unpadded, shard=False
    )
    reference = conv(0, torch.float64)
    whole = unpadded_loss(reference(x), t)
    whole.backward()
    loss = trainer.step(*cut((x, t), comm.size)[comm.rank])
    assert abs(loss - whole.item()) <= 1e-14
    for p, q in zip(model.parameters(), reference.parameters()):
        assert (p.grad - q.grad).norm() <= 1e-12 * q.grad.norm()


def test_an_empty_share_may_be_empty_tensors(comm) -> None:
    x, t = images(1, 0)
    trainer = pycomm.DataParallelTrainer(conv(0), sgd, cross_entropy, comm)
    last = comm.rank == comm.size - 1
    loss = trainer.step(x if last else x[:0], t if last else t[:0])
    assert loss == cross_entropy(conv(0)(x), t).item()


def test_a_batch_that_is_empty_everywhere(comm) -> None:
    trainer = pycomm.DataParallelTrainer(conv(0), sgd, cross_entropy, comm)
    with pytest.raises(ArgumentError, match=f"weighs nothing on any of the {comm.size} ranks"):
        trainer.step(None, None)


def test_bad_shares(comm) -> None:
    trainer = pycomm.DataParallelTrainer(
        conv(0), sgd, cross_entropy, comm, weight=lambda t: float("nan")
    )
    x, t = images(2, 0)
    with pytest.raises(ArgumentError, match=f"rank {comm.rank} got only one of inputs and targets"):
        trainer.step(x, None)
    with pytest.raises(ArgumentError, match=rf"weight\(targets\) is nan on rank {comm.rank}"):
        trainer.step(x, t)


def test_models_that_differ(comm) -> None:
    if comm.size == 1:
        pytest.skip("one rank cannot differ")
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4 + (comm.rank == comm.size - 1)))
    match = (
        rf"rank 0 has '1.weight' \(torch.float32 of shape \(4, 3\), trainable\), "
        rf"rank {comm.size - 1} has '1.weight' \(torch.float32 of shape \(5, 3\), trainable\)"
    )
    with pytest.raises(MismatchError, match=match):
        pycomm.DataParallelTrainer(model, sgd, cross_entropy, comm)
    with pytest.raises(MismatchError, match=match):
        pycomm.DataParallel(model, comm)
    longer = nn.Sequential(*(nn.Linear(1, 1) for _ in range(1 + (comm.rank == comm.size - 1))))
    with pytest.raises(MismatchError, match=f"only rank {comm.size - 1} has '1.weight'"):
        pycomm.DataParallel(longer, comm)


def test_arguments_that_differ(comm) -> None:
    if comm.size == 1:
        pytest.skip("one rank cannot differ")
    with pytest.raises(
        MismatchError, match=r"accumulate and clip_norm differ: rank 0 has \(1, None"
    ):
        pycomm.DataParallelTrainer(
            conv(0), sgd, cross_entropy, comm, accumulate=1 + (comm.rank == 1)
        )
    trainer = pycomm.DataParallelTrainer(conv(0), sgd, cross_entropy, comm)
    with pytest.raises(MismatchError, match="the arguments of fit differ"):
        trainer.fit(TensorDataset(*images(4, 0)), epochs=1, batch_size=2 + comm.rank)
