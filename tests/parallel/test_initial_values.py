"""A part that is built alone has the values that it has in the whole model."""

from __future__ import annotations

import copy
import gc

import numpy as np
import pytest
import torch
from torch import nn

from pycomm.errors import ArgumentError
from pycomm.parallel.initial_values import building
from pycomm.parallel.initial_values.source import source_of
from pycomm.parallel.splitting.split import split
from tests.parallel.parts_runner import run
from tests.parallel.split_models import WORDS, Skips, TiedLanguageModel


class Initialised(nn.Module):
    """Draws in many ways."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(3, 4, 2)
        self.norm = nn.BatchNorm1d(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.linear = nn.Linear(4, 4)
        self.scale = torch.tensor([1.0, 2.0])
        self.register_buffer("mask", torch.tril(torch.ones(4, 4)))
        self.register_buffer("from_numpy", torch.from_numpy(np.arange(4.0)).float() * 2)
        nn.init.orthogonal_(self.linear.weight)
        nn.init.trunc_normal_(self.convolution.weight, std=0.5)
        torch.manual_seed(77)
        self.last = nn.Linear(4, 4)
        self.last.weight.data.normal_(0, 0.3)
        self.noise = nn.Parameter(torch.randn(4) * torch.bernoulli(torch.full((4,), 0.5)))
        self.rates = [x.item() for x in torch.linspace(0, 1, 3)]
        with torch.no_grad():
            self.last.bias.copy_(self.linear.weight.sum(0))
        self.generator = torch.Generator().manual_seed(5)
        self.own = nn.Parameter(torch.rand(3, generator=self.generator))
        self.apply(self._again)
        self.double()
        self.frozen = nn.Parameter(torch.randperm(5).float(), requires_grad=False)

    def _again(self, module):
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(1.5)
            nn.init.normal_(module.bias)

    def forward(self, x):
        y = self.norm(self.convolution(x)).transpose(1, 2)
        y = self.linear(y) * self.scale.sum()
        return self.last(y) * self.noise + self.mask.sum() + self.from_numpy + self.own.sum()


def keep(name: str, whole: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor: there is no tensor parallelism."""
    return whole


def build(factory):
    torch.manual_seed(3)
    return factory(), torch.rand(3)


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


FACTORIES = [
    Initialised,
    lambda: Skips().double(),
    lambda: TiedLanguageModel().double(),
    lambda: [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)],
]


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_values_are_those_of_the_whole(factory, stages: int) -> None:
    given, after = build(factory)
    model = given if isinstance(given, nn.Module) else nn.Sequential(*given)
    expected = tensors_of(model)
    found: set[str] = set()
    for stage in range(stages):
        torch.manual_seed(3)
        source = source_of(factory)
        assert source.deferred and all(t.is_meta for t in source.model.parameters())
        part = split(source.model, stages).parts[stage].module
        source.fill(part, keep)
        assert torch.equal(torch.rand(3), after)  # as many numbers drawn
        for name, tensor in tensors_of(part).items():
            assert torch.equal(tensor, expected[name]), name
            assert tensor.dtype == expected[name].dtype
            assert tensor.stride() == expected[name].stride()
            assert tensor.requires_grad == expected[name].requires_grad
            found.add(name)
    assert found == set(expected)


def test_attributes_and_values_of_tensors() -> None:
    torch.manual_seed(3)
    model = Initialised()
    torch.manual_seed(3)
    source = source_of(Initialised)
    assert source.model.rates == model.rates
    parts = split(source.model, 1).parts
    source.fill(parts[0].module, keep)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    for part in parts:
        part.module.eval()
    torch.testing.assert_close(run(parts, x), model.eval()(x), rtol=0, atol=0)


def test_a_part_that_is_built_alone_runs_like_the_whole() -> None:
    tokens = torch.randint(0, WORDS, (2, 5))
    torch.manual_seed(3)
    expected = TiedLanguageModel()(tokens)
    made = []
    for stage in range(3):
        torch.manual_seed(3)
        source = source_of(TiedLanguageModel)
        parts = split(source.model, 3).parts
        source.fill(parts[stage].module, keep)
        made.append(parts[stage])
    assert torch.equal(run(made, tokens), expected)
    assert made[0].module.words.weight is not made[2].module.words.weight
    assert made[2].module.words.weight is made[2].module.head.weight


def test_a_layer_may_be_chosen_by_random_values() -> None:
    def factory():
        return [nn.Linear(2, 2), nn.Linear(2, 2 + int(torch.rand(()).item() * 10)), nn.ReLU()]

    torch.manual_seed(3)
    expected = factory()[1].weight
    torch.manual_seed(3)
    source = source_of(factory)
    part = split(source.model, 3).parts[1].module
    source.fill(part, keep)
    assert torch.equal(part.get_parameter("1.weight"), expected)


@pytest.mark.parametrize("look", [lambda w: w.sum().item(), lambda w: w.detach().numpy().sum()])
def test_a_decision_by_values_that_are_gone(monkeypatch, look) -> None:
    monkeypatch.setattr(building, "BUDGET_BYTES", 0)

    def factory():
        layers = [nn.Linear(10, 10) for _ in range(20)]
        return layers if look(layers[0].weight) > 1000 else [*layers, nn.ReLU()]

    with pytest.raises(ArgumentError, match="decides by values of a layer.* long before"):
        source_of(factory)


def test_layers_that_are_copies_or_depend_on_others(monkeypatch) -> None:
    monkeypatch.setattr(building, "BUDGET_BYTES", 0)

    def factory():
        layer = nn.TransformerEncoderLayer(4, 2, 8)
        layers = [copy.deepcopy(layer) for _ in range(9)]
        with torch.no_grad():
            layers[8].linear1.weight += layers[0].linear1.weight * layers[4].linear2.weight.t()
        return [layer.double() for layer in layers]

    torch.manual_seed(3)
    expected = tensors_of(nn.Sequential(*factory()))
    for stage in (0, 4, 8):
        torch.manual_seed(3)
        source = source_of(factory)
        part = split(source.model, 9).parts[stage].module
        source.fill(part, keep)
        for name, tensor in tensors_of(part).items():
            assert torch.equal(tensor, expected[name]), name


def test_a_factory_that_changes_its_mind() -> None:
    calls = []

    def factory():
        calls.append(torch.zeros(1) if calls else None)
        extra = [torch.zeros(3)] * len(calls)
        return [nn.Linear(2, 2 + 0 * len(extra)), nn.Linear(2, 2)][:: (-1) ** len(calls)]

    source = source_of(factory)
    with pytest.raises(ArgumentError, match="in another way the second time"):
        source.fill(split(source.model, 1).parts[0].module, keep)


def test_made_before_the_factory() -> None:
    with torch.device("meta"):
        before = nn.Linear(2, 2)
    source = source_of(lambda: [before, nn.Linear(2, 2)])
    with pytest.raises(ArgumentError, match="'0.weight' was not made by the factory"):
        source.fill(split(source.model, 1).parts[0].module, keep)


def whole_by_modules(model: nn.Module, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def test_built_on_meta() -> None:
    def make():
        first = nn.Linear(4, 4)
        layers = [first, nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 4)]
        layers[3].weight = first.weight
        return nn.Sequential(*layers)

    expected = tensors_of(whole_by_modules(make(), 9))
    for stage in range(3):
        with torch.device("meta"):
            model = make()
        source = source_of(model, seed=9)
        part = split(model, 3, cuts=["1", "3"]).parts[stage].module
        source.fill(part, keep)
        assert list(tensors_of(part))
        for name, tensor in tensors_of(part).items():
            assert torch.equal(tensor, expected[name]), (stage, name)


def test_built_on_meta_without_a_way_to_initialise() -> None:
    with torch.device("meta"):
        model = TiedLanguageModel()
    part = split(model, 1).parts[0].module
    with pytest.raises(ArgumentError, match="module '', a TiedLanguageModel on the meta device"):
        source_of(model).fill(part, keep)

    def init(name: str, module: nn.Module) -> None:
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            tensor.fill_(len(name))

    source_of(model, init).fill(part, keep)
    assert part.places[0, 0] == 0 and part.norm.weight[0] == 4
    assert part.words.weight is part.head.weight


def test_a_model_with_values_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    source = source_of(model)
    assert source.model is model and not source.deferred
    source.fill(model, keep)


def test_only_the_part_and_few_tensors_need_memory(monkeypatch) -> None:
    monkeypatch.setattr(building, "BUDGET_BYTES", 0)
    sizes, draws = [], []

    def factory():
        return [nn.Linear(100, 100) for _ in range(40)]

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            draws.append(func is torch.ops.aten.uniform_.default)
            if draws[-1] and sum(draws) % 20 == 0:
                sizes.append(allocated())
            return func(*args, **(kwargs or {}))

    source = source_of(factory)
    part = split(source.model, 40).parts[3].module
    before = allocated()
    with Counting():
        source.fill(part, keep)
    own = sum(p.nbytes for p in part.parameters())
    assert len(sizes) == 2 * 40 / 20 and own > 100 * 100 * 4
    assert max(sizes) - before <= own + 7 * 100 * 100 * 4


def allocated() -> int:
    """Return the bytes of all tensors on the CPU."""
    tensors = [t for t in gc.get_objects() if type(t) in (torch.Tensor, nn.Parameter)]
    storages = [t.untyped_storage() for t in tensors if t.device.type == "cpu"]
    return sum({s._cdata: s.nbytes() for s in storages}.values())
