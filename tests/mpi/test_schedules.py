"""Every schedule gives the gradients and weights of one process, and keeps what it says."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import pycomm
from pycomm.parallel.schedules.registry import SCHEDULES
from pycomm.parallel.schedules.timeline import most_held
from pycomm.workloads import models
from tests.pipelines import Whole, flat, skipping, stages
from tests.training import CLASSES, adamw, named, samples, sgd
from tests.training import one_thread as one_thread

IMAGES = SimpleNamespace(kind="values", input_shape=(4, 4), classes=CLASSES)
TEXT = SimpleNamespace(kind="tokens", input_shape=(5,), classes=CLASSES)


def cnn(count: int, seed: int = 0):
    torch.manual_seed(seed)
    return flat(models.cnn(IMAGES, width=2)).double()


def gpt(count: int, seed: int = 0):
    torch.manual_seed(seed)
    return models.gpt(TEXT, width=4, blocks=max(count - 2, 2), heads=2).double()


def pictures(count: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (count,), generator=generator)


def texts(count: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, CLASSES, (count, 5), generator=generator) for _ in range(2))


def loss_fn(output, targets):
    return cross_entropy(output.flatten(0, -2), targets.flatten())


KINDS = {"cnn": (cnn, pictures), "gpt": (gpt, texts), "skips": (skipping, samples)}


def whole(model) -> nn.Module:
    return Whole(model) if isinstance(model, list) else model


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("microbatches", [1, 3, 4, 8])
@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_gradients_are_those_of_one_process(
    comm, schedule: str, kind: str, microbatches: int, clip_norm: float | None
) -> None:
    build, batch = KINDS[kind]
    count = stages(schedule, comm.size)
    x, t = batch(10, 1)
    trainer = pycomm.ModelParallelTrainer(
        build(count, comm.rank),
        sgd,
        loss_fn,
        comm,
        microbatches,
        schedule,
        clip_norm=clip_norm,
        shard=False,
    )
    loss = trainer.step(x if comm.rank == 0 else None, t if comm.rank == comm.size - 1 else None)
    reference = whole(build(count, 0))
    expected_loss = loss_fn(reference(x), t)
    expected_loss.backward()
    if clip_norm is not None:
        assert torch.nn.utils.clip_grad_norm_(reference.parameters(), clip_norm) > clip_norm
    gradients = named(comm, trainer.module, gradients=True)
    expected = {name: p.grad for name, p in reference.named_parameters()}
    assert sorted(gradients) == sorted(expected)
    norm = torch.cat([g.flatten() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).norm() <= 1e-12 * norm, name
    assert abs(loss - expected_loss.item()) <= 1e-14


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("kind", "optimizer", "bound"),
    [("cnn", sgd, 1e-12), ("gpt", adamw, 1e-9), ("skips", sgd, 1e-12)],
)
def test_weights_after_ten_steps(comm, schedule: str, kind: str, optimizer, bound: float) -> None:
    build, batch = KINDS[kind]
    model = build(stages(schedule, comm.size))
    reference = whole(copy.deepcopy(model))
    single = optimizer(list(reference.named_parameters()))
    trainer = pycomm.ModelParallelTrainer(
        model, optimizer, loss_fn, comm, 4, schedule, recompute=True
    )
    for k, size in enumerate([8, 7, 1, 2, 12, 5, 9, 3, 4, 10]):
        x, t = batch(size, k)
        trainer.step(x, t)
        single.zero_grad()
        loss_fn(reference(x), t).backward()
        single.step()
    weights = named(comm, trainer.module)
    for name, p in reference.named_parameters():
        assert (weights[name] - p).abs().max() <= bound * p.abs().max(), name


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("microbatches", [1, 2, 8])
def test_stages_keep_what_the_schedule_says(comm, schedule: str, microbatches: int) -> None:
    count = stages(schedule, comm.size)
    trainer = pycomm.ModelParallelTrainer(
        skipping(count), sgd, loss_fn, comm, microbatches, schedule
    )
    trainer.step(*samples(8, 0))
    kept = {number: stage.most_held for number, stage in trainer.pipeline.stages.items()}
    together = {n: held for part in comm.all_gather_object(kept) for n, held in part.items()}
    plan = SCHEDULES[schedule].build(comm.size, microbatches, count // comm.size)
    assert [together[number] for number in range(count)] == most_held(plan)
    if schedule == "1f1b":
        assert trainer.pipeline.stages[comm.rank].most_held == min(
            comm.size - comm.rank, microbatches
        )
    if schedule == "gpipe":
        assert trainer.pipeline.stages[comm.rank].most_held == microbatches


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_evaluation_keeps_nothing_and_counts_every_sample(comm, schedule: str) -> None:
    count = stages(schedule, comm.size)
    trainer = pycomm.ModelParallelTrainer(skipping(count), sgd, loss_fn, comm, 4, schedule)
    x, t = samples(11, 0)
    result = trainer.evaluate(torch.utils.data.TensorDataset(x, t), batch_size=4)
    expected = loss_fn(whole(skipping(count))(x), t).item()
    assert result["count"] == 11
    assert abs(result["loss"] - expected) <= 1e-12
    assert all(stage.most_held == 0 for stage in trainer.pipeline.stages.values())
