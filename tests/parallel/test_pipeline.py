"""The pipeline on one rank: microbatches add up, evaluation leaves no gradients."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

import pycomm
from pycomm.errors import ArgumentError
from pycomm.parallel.deferred import DeferredWeights
from pycomm.parallel.partition import cut
from pycomm.parallel.parts import INPUT, OUTPUT, Part
from pycomm.parallel.pipeline import Pipeline
from pycomm.parallel.schedules.actions import Forward
from pycomm.parallel.schedules.registry import SCHEDULES
from tests.pipelines import Whole, skipping


def pipeline(*layers: nn.Module, stages: int = 1, **options) -> Pipeline:
    named = [(str(index), layer) for index, layer in enumerate(layers)]
    size = len(layers) // stages
    ranges = [range(s * size, (s + 1) * size) for s in range(stages)]
    return Pipeline(cut(named, ranges), pycomm.init(), **options)


def row(name: str, microbatches: int, stages: int = 1):
    """Return what one rank does; of ZB-H1 what the last of two does, which has weights wait."""
    if name == "zb-h1":
        return [type(a)(0, a.microbatch) for a in SCHEDULES[name].build(2, microbatches, 1)[1]]
    return SCHEDULES[name].build(1, microbatches, stages)[0]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_microbatches_add_up_to_the_gradient_of_the_batch(schedule: str, recompute: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(inplace=True))
    model.double()
    x = torch.randn(5, 3).double()
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    stages = SCHEDULES[schedule].stages_per_rank
    stage = pipeline(*model, stages=stages, recompute=recompute)
    cuts = torch.tensor_split(x, 3)
    stage.run(row(schedule, 3, stages), cuts, lambda m, y: y.square().sum())
    for p, gradient in zip(model.parameters(), expected):
        assert (p.grad - gradient).norm() <= 1e-12 * gradient.norm()


def test_a_microbatch_without_loss_adds_nothing() -> None:
    model = nn.Linear(3, 2)
    pipeline(model).run(row("1f1b", 1), [torch.ones(1, 3)], lambda m, y: None)
    assert model.weight.grad is None


def test_forward_only() -> None:
    model, outputs = nn.Linear(3, 2), {}
    stage = pipeline(model)
    with torch.no_grad():
        stage.run([Forward(0, 0), Forward(0, 1)], [torch.ones(1, 3)] * 2, outputs.__setitem__)
    assert list(outputs) == [0, 1]
    assert torch.equal(outputs[0], model(torch.ones(1, 3)))
    assert stage.stages[0].most_held == 0


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_stages_of_one_rank_pass_values_without_messages(monkeypatch, name: str) -> None:
    parts = skipping(3)
    x = torch.randn(4, 6).double()
    Whole(parts)(x).square().sum().backward()
    expected = [p.grad for p in Whole(parts).parameters()]
    for p in Whole(parts).parameters():
        p.grad = None
    comm = pycomm.init()
    sent = comm.stats.bytes_sent
    stage = Pipeline(parts, comm)
    actions = SCHEDULES["interleaved"].build(1, 2, 3)[0]
    stage.run(actions, x.chunk(2), lambda m, y: y.square().sum())
    for p, gradient in zip(Whole(parts).parameters(), expected):
        assert (p.grad - gradient).norm() <= 1e-12 * gradient.norm()
    assert comm.stats.bytes_sent == sent


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
@pytest.mark.parametrize("recompute", [False, True])
def test_hooks_of_parameters_fire_once_a_microbatch(schedule: str, recompute: bool) -> None:
    class Tied(nn.Module):
        """Uses a weight as an embedding, and twice in linear layers."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4).double())
            self.norm = nn.LayerNorm(4).double()

        def forward(self, x):
            h = self.norm(nn.functional.embedding(x, self.weight))
            return nn.functional.linear(nn.functional.linear(h, self.weight).tanh(), self.weight)

    torch.manual_seed(0)
    model, calls = Tied(), Counter()
    x = torch.tensor([[0, 1], [2, 1], [3, 0]])
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for name, p in model.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: calls.update([name]))
    stage = pipeline(model, recompute=recompute)
    stage.run(row(schedule, 3), x.split(1), lambda m, y: y.square().sum())
    assert calls == {"weight": 3, "norm.weight": 3, "norm.bias": 3}
    for p, gradient in zip(model.parameters(), expected):
        assert (p.grad - gradient).norm() <= 1e-12 * gradient.norm()


def test_weights_that_follow_at_once_on_the_first_stage_are_not_split(monkeypatch) -> None:
    """Nobody waits for the gradient of its inputs."""
    finished = []
    monkeypatch.setattr(DeferredWeights, "finish", lambda self: finished.append(self))
    model, x = nn.Sequential(nn.Linear(3, 2)), torch.ones(2, 3, requires_grad=True)
    first = SCHEDULES["zb-h1"].build(2, 2, 1)[0]
    pipeline(*model).run(first, x.split(1), lambda m, y: y.sum())
    assert finished == []
    assert model[0].weight.grad is not None
    pipeline(*model).run(row("zb-h1", 2), x.split(1), lambda m, y: y.sum())
    assert len(finished) == 2


def test_a_hook_on_a_gradient_sees_the_whole_of_it_once() -> None:
    model, seen = nn.Linear(3, 2), []
    model.weight.register_hook(lambda gradient: seen.append(gradient) or 2 * gradient)
    x = torch.ones(2, 3)
    pipeline(model).run(row("zb-h1", 2), x.split(1), lambda m, y: y.sum())
    assert len(seen) == 2
    assert torch.equal(model.weight.grad, torch.full((2, 3), 4.0))


def test_recomputing_draws_the_same_random_numbers_and_counts_statistics_once() -> None:
    def trained(recompute: bool) -> nn.Sequential:
        torch.manual_seed(0)
        layers = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4)
        stage = pipeline(*layers, recompute=recompute)
        torch.manual_seed(1)
        x = torch.randn(8, 3)
        stage.run(row("1f1b", 2), x.chunk(2), lambda m, y: y.square().sum())
        return nn.Sequential(*layers)

    once, again = trained(False), trained(True)
    for (name, p), q in zip(once.named_parameters(), again.parameters()):
        assert torch.equal(p.grad, q.grad), name
    for (name, a), b in zip(once.named_buffers(), again.buffers()):
        assert torch.equal(a, b), name


def test_recomputing_under_autocast() -> None:
    def gradients(**options) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layers = nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 4)
        stage = pipeline(
            *layers, context=lambda m: torch.autocast("cpu", torch.bfloat16), **options
        )
        x = torch.randn(8, 3)
        stage.run(row(options.pop("schedule", "1f1b"), 2), x.chunk(2), lambda m, y: y.float().sum())
        return [p.grad for p in nn.Sequential(*layers).parameters()]

    for one, other in zip(gradients(), gradients(recompute=True)):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ([], "0 stages cannot be dealt to 1 ranks"),
        ([Part(nn.Identity(), ("x",), (OUTPUT,))], r"the first must take \('input',\)"),
        ([Part(nn.Identity(), (INPUT,), ("y",))], r"the last give \('output',\)"),
        (
            [
                Part(nn.Identity(), (INPUT,), ("a",)),
                Part(nn.Identity(), ("b",), (OUTPUT,)),
            ],
            "stage 1 takes 'b', which no stage before it gives: there are 'a'",
        ),
        (
            [
                Part(nn.Identity(), (INPUT,), ("a",)),
                Part(nn.Identity(), ("a",), ("a",)),
                Part(nn.Identity(), ("a",), (OUTPUT,)),
            ],
            "'a' is given by stage 0 and again by stage 1",
        ),
    ],
)
def test_parts_that_do_not_fit(parts: list[Part], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        Pipeline(parts, pycomm.init())
