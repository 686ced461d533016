"""What travels between stages, what goes wrong there, and where the time goes."""

from __future__ import annotations

import io
import re
import time

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn.functional import cross_entropy

import pycomm
from pycomm.errors import StageError
from pycomm.parallel.parcels import Parcels
from pycomm.parallel.parts import INPUT, OUTPUT, Part
from pycomm.parallel.schedules.registry import SCHEDULES
from pycomm.trainers.report import print_rows
from tests.pipelines import Whole, skipping, stages
from tests.training import named, samples, sgd
from tests.training import one_thread as one_thread

EVERY = pytest.mark.parametrize("schedule", SCHEDULES)


class Then(nn.Module):
    """A stage made of a function of what it takes."""

    def __init__(self, function, number: int = 0):
        super().__init__()
        self.function = function
        self.add_module(f"layer{number}", nn.Linear(6, 6).double())

    def forward(self, *values):
        (layer,) = self.children()
        return self.function(layer, *values)


def chain(comm, change=None, at: int | None = None, count: int | None = None) -> list[Part]:
    """Return stages of a linear layer each; the one at `at` does something else."""
    torch.manual_seed(0)
    count = count or comm.size
    names = [INPUT, *(f"v{k}" for k in range(count - 1)), OUTPUT]

    def usual(layer, x):
        return (layer(x),)

    functions = [change if change and k == at % count else usual for k in range(count)]
    return [
        Part(Then(function, k), (names[k],), (names[k + 1],))
        for k, function in enumerate(functions)
    ]


def trained(comm, parts, schedule: str = "1f1b", microbatches: int = 3, **options):
    return pycomm.ModelParallelTrainer(
        parts, sgd, cross_entropy, comm, microbatches, schedule, **options
    )


def raised(comm, trainer, count: int = 6) -> str:
    """Return the error of a step, the same on every rank; after it the ranks can go on."""
    with pytest.raises(StageError) as caught:
        trainer.step(*samples(count, 0))
    texts = comm.all_gather_object(str(caught.value))
    assert len(set(texts)) == 1, texts
    return texts[0]


@pytest.fixture
def posted(monkeypatch) -> list:
    """Collect what is sent."""
    sent = []
    post = Parcels._post
    monkeypatch.setattr(
        Parcels, "_post", lambda self, array, *to: (sent.append(array), post(self, array, *to))[1]
    )
    return sent


def test_a_tensor_that_learns_needs_no_header(comm, posted) -> None:
    trained(comm, chain(comm)).step(*samples(6, 0))
    first, last = comm.rank == 0, comm.rank == comm.size - 1
    assert len(posted) == 3 * ((not first) + (not last))
    assert all(isinstance(array, torch.Tensor) for array in posted)


def test_gradients_of_frozen_stages_do_not_travel(comm, posted) -> None:
    parts = chain(comm)
    parts[0].module.requires_grad_(False)
    if comm.size == 1:
        return
    trained(comm, parts).step(*samples(6, 0))
    headers = [array for array in posted if isinstance(array, np.ndarray)]
    assert len(headers) == (3 if comm.rank == 0 else 0)
    if comm.rank == 1:
        assert len(posted) == (0 if comm.size == 2 else 3)  # no gradient goes to rank 0


def test_evaluation_needs_no_headers(comm, posted) -> None:
    trainer = trained(comm, chain(comm))
    trainer.evaluate(torch.utils.data.TensorDataset(*samples(6, 0)), batch_size=6)
    assert len(posted) == (0 if comm.rank == comm.size - 1 else 3)
    assert all(isinstance(array, torch.Tensor) for array in posted)


def test_integers_and_values_without_gradients_cross(comm) -> None:
    if comm.size == 1:
        pytest.skip("nothing crosses")

    def first(layer, x):
        return layer(x), torch.arange(len(x)), x.detach()

    def last(layer, x, index, plain):
        assert not plain.requires_grad
        return (layer(x) + index[:, None] * plain,)

    def build() -> list[Part]:
        parts = chain(comm)
        parts[0].module.function, parts[-1].module.function = first, last
        parts[0] = Part(parts[0].module, (INPUT,), ("v0", "index", "plain"))
        parts[-1] = Part(parts[-1].module, (parts[-1].takes[0], "index", "plain"), (OUTPUT,))
        return parts

    x, t = samples(6, 0)
    trainer, reference = trained(comm, build(), microbatches=1), Whole(build())
    trainer.step(x, t)
    cross_entropy(reference(x), t).backward()
    gradients = named(comm, trainer.module, gradients=True)
    for name, p in reference.named_parameters():
        assert (gradients[name] - p.grad).norm() <= 1e-12 * p.grad.norm()


def test_an_output_that_nobody_learns_from_sends_no_gradient(comm) -> None:
    """The last stage ignores what it takes: those before it get no gradients, and do not wait."""
    parts = chain(comm, lambda layer, x: (layer(torch.ones(len(x), 6).double()),), -1)
    trained(comm, parts).step(*samples(6, 0))
    (layer,) = parts[comm.rank].module.children()
    assert (layer.weight.grad is None) == (comm.rank < comm.size - 1)


def test_shapes_change_from_batch_to_batch(comm) -> None:
    trainer, reference = trained(comm, chain(comm)), Whole(chain(comm))
    optimizer = sgd(reference.named_parameters())
    for shape in ((4, 6), (1, 6), (7, 2, 6), (5, 3, 2, 6)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
        t = torch.zeros(shape[0], dtype=torch.int64)
        trainer.loss_fn = lambda y, t: y.square().flatten(1).sum(1).mean()
        loss = trainer.step(x, t)
        optimizer.zero_grad()
        expected = trainer.loss_fn(reference(x), t)
        expected.backward()
        optimizer.step()
        assert abs(loss - expected.item()) <= 1e-12 * abs(loss)


@EVERY
@pytest.mark.parametrize("at", [0, 1, -1])
def test_a_stage_that_fails_is_named_on_every_rank(comm, schedule: str, at: int) -> None:
    count, broken = stages(schedule, comm.size), [True]

    def fail(layer, x):
        if broken and x.shape[0] == 1:  # the last of the microbatches
            raise ValueError("no more")
        return (layer(x),)

    parts = chain(comm, fail, at, count)
    trainer = trained(comm, parts, schedule)
    stage = at % count
    text = raised(comm, trainer, 5)
    assert (
        f"stage {stage} (rank {stage % comm.size}) failed in the forward pass of microbatch 2: "
        f"ValueError: no more; it took '{parts[stage].takes[0]}': float64 (1, 6)"
    ) in text
    broken.clear()
    before = trainer.step(*samples(5, 0))
    assert trainer.step(*samples(5, 0)) < before


@EVERY
def test_a_loss_that_fails(comm, schedule: str) -> None:
    trainer = trained(comm, chain(comm, count=stages(schedule, comm.size)), schedule)
    trainer.loss_fn = lambda y, t: y.no_such_thing
    assert "AttributeError: 'Tensor' object has no attribute 'no_such_thing'" in raised(
        comm, trainer
    )


def test_a_loss_that_is_no_scalar(comm) -> None:
    trainer = trained(comm, chain(comm))
    trainer.loss_fn = lambda y, t: y
    text = raised(comm, trainer)
    assert "UnsupportedError: the loss has shape (2, 6): return its mean over the samples" in text


def test_evaluation_that_fails(comm) -> None:
    trainer = trained(comm, chain(comm, lambda layer, x: layer(x[:, :3]), -1))
    data = torch.utils.data.TensorDataset(*samples(6, 0))
    with pytest.raises(StageError, match=rf"stage {comm.size - 1} .*forward pass of microbatch 0"):
        trainer.evaluate(data, batch_size=6)
    assert all(module.training for module in trainer.module.modules())


@EVERY
def test_an_operation_in_place_on_what_backward_needs(comm, schedule: str) -> None:
    count = stages(schedule, comm.size)

    def spoil(layer, x):
        y = layer(x * 1) * x
        x.add_(1)
        return (y,)

    trainer = trained(comm, chain(comm, spoil, -1, count), schedule)
    text = raised(comm, trainer)
    assert f"stage {count - 1} (rank {comm.size - 1}) failed in the backward pass" in text
    what = f"'v{count - 2}', which the stage takes," if count > 1 else "a tensor"
    assert f"an in-place operation changed {what} although backward needs it" in text


def test_recomputing_allows_stages_to_change_what_they_take(comm) -> None:
    def relu(layer, x):
        return (layer(nn.functional.relu(x, inplace=True)),)

    def build() -> list[Part]:
        return chain(comm, relu, -1)

    x, t = samples(6, 0)
    trainer, reference = trained(comm, build(), recompute=True), Whole(build())
    trainer.step(x, t)
    cross_entropy(reference(x), t).backward()
    gradients = named(comm, trainer.module, gradients=True)
    for name, p in reference.named_parameters():
        assert (gradients[name] - p.grad).norm() <= 1e-12 * p.grad.norm()


def test_a_value_for_several_stages_must_stay(comm) -> None:
    if comm.size < 3:
        pytest.skip("for three stages")

    def change(layer, x):
        x += 1
        return (layer(x),)

    parts = chain(comm, change, 1)
    last = parts[-1].module
    last.function = lambda layer, x, skip: (layer(x) + skip,)
    parts[-1] = Part(last, (*parts[-1].takes, "v0"), (OUTPUT,))
    text = raised(comm, trained(comm, parts))
    assert "stage 1 (rank 1) failed in the forward pass" in text
    assert "the part changes 'v0' in place, which another stage takes, too" in text


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda layer, x: layer(x),
            "the part returned float64 (2, 6), not a tuple of 1 for ('v0',)",
        ),
        (
            lambda layer, x: (x, x),
            "the part returned tuple of (float64 (2, 6), float64 (2, 6)), not",
        ),
        (lambda layer, x: ({x},), "a set cannot go from stage to stage: pass tensors, numbers"),
        (lambda layer, x: (x.to_sparse(),), "a tensor of layout torch.sparse_coo: pass its to_d"),
    ],
)
def test_a_stage_that_returns_something_else(comm, change, match: str) -> None:
    if comm.size == 1:
        pytest.skip("nothing is passed on")
    text = raised(comm, trained(comm, chain(comm, change, 0)))
    assert "stage 0 (rank 0) failed in the forward pass of microbatch 0: UnsupportedError" in text
    assert match in text


def test_a_structure_that_the_next_stage_does_not_expect(comm) -> None:
    if comm.size == 1:
        pytest.skip("nothing is passed on")
    text = raised(comm, trained(comm, chain(comm, lambda layer, x: ([x, {"y": x, "k": 1}],), 0)))
    assert "stage 1 (rank 1) failed in the forward pass of microbatch 0: TypeError" in text
    assert "it took 'v0': list of (float64 (2, 6), dict of {'y': float64 (2, 6), 'k': int})" in text


def test_stages_that_cannot_be_dealt(comm) -> None:
    with pytest.raises(pycomm.ArgumentError, match=f"{comm.size + 1} parts for {comm.size} stages"):
        trained(comm, skipping(comm.size + 1))


def test_the_slowest_stage_is_named(comm) -> None:
    if comm.size == 1:
        pytest.skip("one rank does not wait")

    def slow(layer, x):
        time.sleep(0.02)
        return (layer(x),)

    trainer = trained(comm, chain(comm, slow, 1), microbatches=4)
    trainer.step(*samples(8, 0))
    rows, out = trainer.report(), io.StringIO()
    remarks = trainer._remarks(rows)
    print_rows(rows, Console(file=out, width=200), remarks)
    ideal = (comm.size - 1) / (4 + comm.size - 1)
    assert f"1f1b of 4 microbatches idles {ideal:.0%} with equal stages" in out.getvalue()
    assert re.search(r"stage 1 \(rank 1\) is the slowest: [89]\d%", out.getvalue())
    assert rows[1]["stages_s"][1] >= 0.08
    assert rows[1]["idle_s"] < rows[0]["idle_s"]
    assert rows[0]["waiting_s"][1] >= 0.02
    assert rows[0]["idle_share"] > 0.5 > rows[1]["idle_share"]
    for row in rows:
        parts = sum(row["stages_s"].values()) + row["transferring_s"] + row["ending_s"]
        assert parts + sum(row["waiting_s"].values()) == pytest.approx(row["pipeline_s"])
        assert row["ideal_share"] == pytest.approx(ideal)
    times = trainer.pipeline.times
    assert times.total_s == pytest.approx(trainer.report()[comm.rank]["pipeline_s"])
