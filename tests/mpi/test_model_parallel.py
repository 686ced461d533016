"""Model parallelism gives the gradients and weights of one process on the same global batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import pycomm
from pycomm.errors import ArgumentError, MismatchError
from pycomm.parallel.partition import cut
from tests.training import CLASSES, PAD, adamw, dense, named, samples, sgd
from tests.training import one_thread as one_thread


def mine(comm, x, t):
    """Return only what this rank needs of a batch."""
    return x if comm.rank == 0 else None, t if comm.rank == comm.size - 1 else None


@pytest.mark.parametrize("microbatches", [1, 3, 4])
@pytest.mark.parametrize("clip_norm", [None, 0.2])
def test_gradients_are_those_of_one_process(comm, microbatches: int, clip_norm) -> None:
    x, t = samples(10, 1)
    trainer = pycomm.ModelParallelTrainer(
        dense(comm.rank), sgd, cross_entropy, comm, microbatches, clip_norm=clip_norm, shard=False
    )
    loss = trainer.step(*mine(comm, x, t))
    reference = dense(0)
    whole = cross_entropy(reference(x), t)
    whole.backward()
    if clip_norm is not None:
        assert torch.nn.utils.clip_grad_norm_(reference.parameters(), clip_norm) > clip_norm
    gradients = named(comm, trainer.module, gradients=True)
    expected = named(comm, reference, gradients=True)
    assert list(gradients) == list(expected)
    norm = torch.cat([g.flatten() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).norm() <= 1e-12 * norm, name
    assert abs(loss - whole.item()) <= 1e-14
    assert len(set(comm.all_gather_object(loss))) == 1


@pytest.mark.parametrize("microbatches", [1, 3, 4])
@pytest.mark.parametrize(("optimizer", "bound"), [(sgd, 1e-12), (adamw, 1e-9)])
def test_weights_after_ten_steps(comm, microbatches: int, optimizer, bound: float) -> None:
    trainer = pycomm.ModelParallelTrainer(dense(0), optimizer, cross_entropy, comm, microbatches)
    reference = dense(0)
    single = optimizer(list(reference.named_parameters()))
    for k, size in enumerate([8, 7, 1, 2, 12, 5, 9, 3, 4, 10]):
        x, t = samples(size, k)
        loss = trainer.step(x, t)
        single.zero_grad()
        whole = cross_entropy(reference(x), t)
        whole.backward()
        single.step()
        assert abs(loss - whole.item()) <= 1e-9
    weights = named(comm, trainer.module)
    for name, p in reference.named_parameters():
        assert (weights[name] - p).abs().max() <= bound * p.abs().max(), name


def test_tokens_in_and_weights_of_microbatches(comm) -> None:
    torch.manual_seed(comm.rank)
    layers = [
        nn.Embedding(11, 6),
        nn.Flatten(0, 0),
        nn.Linear(6, 6),
        nn.Identity(),
        nn.Linear(6, CLASSES),
    ]
    whole = nn.Sequential(*layers).double()
    x = torch.randint(0, 11, (7, 5), generator=torch.Generator().manual_seed(1))
    t = torch.randint(0, CLASSES, (7, 5), generator=torch.Generator().manual_seed(2))
    t[0] = PAD  # the first of seven microbatches has nothing to learn from

    def unpadded_loss(output, targets):
        return cross_entropy(output.flatten(0, 1), targets.flatten(), ignore_index=PAD)

    trainer = pycomm.ModelParallelTrainer(
        layers, sgd, unpadded_loss, comm, 7, weight=lambda t: (t != PAD).sum()
    )
    whole = comm.broadcast_object(copy.deepcopy(whole), 0)
    loss = trainer.step(x, t)
    expected = unpadded_loss(whole(x), t)
    expected.backward()
    assert abs(loss - expected.item()) < 1e-13
    gradients = named(comm, trainer.module, gradients=True)
    for name, p in whole.named_parameters():
        assert (gradients[name] - p.grad).norm() <= 1e-12 * p.grad.norm()


def test_frozen_layers_and_a_gradient_nobody_needs(comm) -> None:
    model = dense(0)
    for layer in model[:3]:
        layer.requires_grad_(False)
    x, t = samples(6, 3)
    trainer = pycomm.ModelParallelTrainer(model, sgd, cross_entropy, comm, 2, balance=[1] * 7)
    trainer.step(x, t)
    reference = dense(0)
    cross_entropy(reference(x), t).backward()
    gradients = named(comm, trainer.module, gradients=True)
    for name, p in reference.named_parameters():
        if int(name[0]) < 3:
            assert gradients[name] is None
        else:
            assert (gradients[name] - p.grad).norm() <= 1e-12 * p.grad.norm()


def test_parts_without_parameters(comm) -> None:
    layers = [nn.Tanh() for _ in range(comm.size)]
    model = nn.Sequential(nn.Linear(6, CLASSES).double(), *layers)
    trainer = pycomm.ModelParallelTrainer(model, sgd, cross_entropy, comm, 2)
    assert (trainer.optimizer is None) == (comm.rank > 0)
    before = trainer.step(*samples(6, 3))
    assert trainer.step(*samples(6, 3)) < before


def test_more_ranks_than_layers(comm) -> None:
    layers = [nn.Linear(2, 2) for _ in range(comm.size - 1)]
    match = f"{comm.size - 1} layers cannot be split into {comm.size} parts: use between 1 and"
    if comm.size == 1:
        match = "a model without layers cannot be split"
    with pytest.raises(ArgumentError, match=match):
        pycomm.ModelParallelTrainer(layers, sgd, cross_entropy, comm)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"microbatches": 0}, "microbatches=0 must be an integer"),
        ({"microbatches": True}, "microbatches=True must be an integer"),
        ({"bucket_bytes": -1}, "bucket_bytes=-1 must be an integer ≥ 1"),
        ({"recompute": "no"}, "recompute='no' must be True or False"),
        ({"sequence": 1}, "sequence=1 must be True or False"),
        ({"shard": "a"}, "shard='a' must be True or False or None"),
        ({"check_finite": 1}, "check_finite=1 must be True or False"),
        ({"deferred_batch_norm": "yes"}, "deferred_batch_norm='yes' must be True or False"),
        ({"batch_dims": 1}, "batch_dims=1 must be dict or None"),
        ({"schedule": "zigzag"}, "schedule='zigzag' does not exist"),
        ({"stages_per_rank": 2}, "schedule='1f1b' has one stage a rank, not stages_per_rank=2"),
        ({"schedule": "interleaved", "stages_per_rank": 0}, "stages_per_rank=0 must be an integer"),
        ({"schedule": "interleaved", "stages_per_rank": 8}, "7 layers cannot be split into"),
        ({"balance": [1, 2]}, "each of the 7 layers a cost"),
        ({"clip_norm": -1.0}, r"clip_norm=-1.0 must be positive"),
    ],
)
def test_bad_arguments(comm, arguments, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        pycomm.ModelParallelTrainer(dense(0), sgd, cross_entropy, comm, **arguments)


def test_no_communicator() -> None:
    with pytest.raises(ArgumentError, match=r"comm=None is no Communicator: pass pycomm.init\(\)"):
        pycomm.ModelParallelTrainer(dense(0), sgd, cross_entropy, None)


def test_arguments_that_differ(comm) -> None:
    if comm.size == 1:
        pytest.skip("one rank cannot differ")
    with pytest.raises(MismatchError, match="microbatches differ: rank 0 has 1, rank 1 has 2"):
        pycomm.ModelParallelTrainer(dense(0), sgd, cross_entropy, comm, 1 + comm.rank)


def test_batches_that_do_not_fit(comm) -> None:
    trainer = pycomm.ModelParallelTrainer(dense(0), sgd, cross_entropy, comm, 2)
    x, t = samples(4, 0)
    match = f"rank 0 got inputs with {{}} samples, rank {comm.size - 1} targets with {{}} "
    for inputs, targets, numbers in ((None, t, (0, 4)), (x, t[:3], (4, 3))):
        with pytest.raises(ArgumentError, match=match.format(*numbers)):
            trainer.step(inputs, targets)
    with pytest.raises(ArgumentError, match="a batch with 0 samples on rank . add up to 0.0"):
        trainer.step(x[:0], t[:0])
    before = trainer.step(x, t)
    assert trainer.step(x, t) < before


def test_weights_that_cannot_be(comm) -> None:
    x, t = samples(4, 0)
    for value in (0.0, -1.0, float("nan")):
        trainer = pycomm.ModelParallelTrainer(
            dense(0), sgd, cross_entropy, comm, 2, weight=lambda t, value=value: value
        )
        with pytest.raises(ArgumentError, match="a batch with 4 samples on rank . add up to"):
            trainer.step(x, t)


def test_a_parameter_in_two_parts_of_the_users_own(comm) -> None:
    if comm.size == 1:
        pytest.skip("there is only one part")
    tied = nn.Linear(6, 6)
    layers = [tied, *(nn.Linear(6, 6) for _ in range(comm.size - 2)), tied]
    parts = cut(
        [(str(k), layer) for k, layer in enumerate(layers)],
        [range(k, k + 1) for k in range(comm.size)],
    )
    with pytest.raises(ArgumentError, match=r"parameter '.*weight' of part .* shared with part 0"):
        pycomm.ModelParallelTrainer(parts, sgd, cross_entropy, comm)
