"""Tensor parallelism gives the gradients and weights of one process."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pycomm.errors import ArgumentError, MismatchError
from pycomm.parallel.gradient_norm import norm_of, squares_of
from pycomm.parallel.tensor import (
    ColumnLinear,
    counted,
    divisions,
    full_tensor,
    qkv,
    ready_plan,
    take_shard,
    tensor_parallel,
    vocabulary_cross_entropy,
)
from pycomm.workloads.models import gpt
from pycomm.workloads.task import Task
from tests.training import adamw, sgd
from tests.training import one_thread as one_thread

SYMBOLS, LENGTH, BATCH = 11, 7, 3
"""Few numbers of ranks divide these."""


def character_gpt(comm, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    heads = 2 * comm.size
    return gpt(task(), width=3 * heads, blocks=2, heads=heads).double()


def encoder(comm, norm_first: bool, *, batch_first: bool = True) -> nn.Module:
    torch.manual_seed(1)
    heads = 2 * comm.size
    layer = nn.TransformerEncoderLayer(
        3 * heads, heads, 13, dropout=0.0, batch_first=batch_first, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()


class Classifier(nn.Module):
    """An encoder between an embedding and a linear layer, with a mask and padding."""

    def __init__(self, comm, norm_first: bool):
        super().__init__()
        torch.manual_seed(2)
        width = 6 * comm.size
        self.embedding = nn.Embedding(SYMBOLS, width, padding_idx=0)
        self.encoder = encoder(comm, norm_first)
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        padding = x == 0
        padding[:, 0] = False
        return self.head(self.encoder(self.embedding(x), later, padding))


def task() -> Task:
    return Task("letters", "tokens", None, None, (LENGTH,), SYMBOLS, None)


def tokens(seed: int, batch: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, t = torch.randint(0, SYMBOLS, (2, batch, LENGTH), generator=generator)
    return x, t


def mean_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits.flatten(0, -2), targets.flatten())


MODELS = {
    "gpt": character_gpt,
    "pre-norm": lambda comm: Classifier(comm, True).double(),
    "post-norm": lambda comm: Classifier(comm, False).double(),
}


def plan(module: nn.Module):
    if isinstance(module, Classifier):
        return {**ready_plan(module), "embedding": "embedding", "head": "output"}
    return None


def whole(comm, module: nn.Module, *, gradients: bool = False) -> dict[str, torch.Tensor]:
    """Return the whole parameters, or gradients, by name, on every rank."""
    divided = divisions(module)
    values = {n: p.grad if gradients else p.detach() for n, p in module.named_parameters()}
    return {n: full_tensor(v, divided[n], comm) if n in divided else v for n, v in values.items()}


def assert_gradients(comm, module: nn.Module, reference: nn.Module) -> None:
    mine = whole(comm, module, gradients=True)
    expected = {n: p.grad for n, p in reference.named_parameters()}
    assert list(mine) == list(expected)
    norm = torch.cat([g.flatten() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (mine[name] - gradient).norm() <= 1e-12 * norm, name


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_one_process(comm, name: str, sequence: bool) -> None:
    reference = MODELS[name](comm)
    model = MODELS[name](comm)
    model = tensor_parallel(model, comm, plan(model), sequence)
    for seed in range(2):  # gradients of the second are added to those of the first
        x, t = tokens(seed)
        loss, expected = mean_loss(model(x), t), mean_loss(reference(x), t)
        loss.backward()
        expected.backward()
        assert abs(loss - expected) <= 1e-14
        assert_gradients(comm, model, reference)
    assert len(set(comm.all_gather_object(loss.item()))) == 1
    assert all(p.shape == reference.get_parameter(n).shape for n, p in whole(comm, model).items())


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("optimizer", "bound"), [(sgd, 1e-12), (adamw, 1e-9)])
def test_weights_after_ten_steps(comm, name, sequence, optimizer, bound) -> None:
    reference, model = MODELS[name](comm), MODELS[name](comm)
    model = tensor_parallel(model, comm, plan(model), sequence)
    optimizers = [optimizer(list(m.named_parameters())) for m in (model, reference)]
    for step in range(10):
        x, t = tokens(step, 1 + step % 3)
        for m, o in zip((model, reference), optimizers):
            o.zero_grad()
            mean_loss(m(x), t).backward()
            o.step()
    weights = whole(comm, model)
    for name, p in reference.named_parameters():
        assert (weights[name] - p).abs().max() <= bound * p.abs().max(), name


@pytest.mark.parametrize("sequence", [False, True])
def test_a_vocabulary_that_stays_divided(comm, sequence: bool) -> None:
    reference, model = character_gpt(comm), character_gpt(comm)
    tensor_parallel(model, comm, {**ready_plan(model), "3.1": "vocabulary"}, sequence)
    x, t = tokens(0)
    logits = model(x)
    assert logits.shape[:-1] == (BATCH, LENGTH)
    assert sum(comm.all_gather_object(logits.shape[-1])) == SYMBOLS
    loss = vocabulary_cross_entropy(logits, t, comm, SYMBOLS)
    expected = mean_loss(reference(x), t)
    loss.backward()
    expected.backward()
    assert abs(loss - expected) <= 1e-14
    assert_gradients(comm, model, reference)


@pytest.mark.parametrize("sequence", [False, True])
def test_the_length_comes_first(comm, sequence: bool) -> None:
    reference = encoder(comm, True, batch_first=False)
    model = tensor_parallel(copy.deepcopy(reference), comm, None, sequence, sequence_dim=0)
    x = torch.randn(LENGTH, BATCH, reference.layers[0].linear1.in_features).double()
    comm.broadcast(x)
    y, expected = model(x), reference(x)
    assert (y - expected).norm() <= 1e-13 * expected.norm()
    y.square().sum().backward()
    expected.square().sum().backward()
    assert_gradients(comm, model, reference)


@pytest.mark.parametrize("sequence", [False, True])
def test_evaluation_takes_no_fast_path_of_torch(comm, sequence: bool) -> None:
    torch.manual_seed(0)
    width = 6 * comm.size
    layer = nn.TransformerEncoderLayer(width, 2 * comm.size, 13, batch_first=True)
    reference = nn.TransformerEncoder(layer, 2).double().eval()
    assert reference.use_nested_tensor
    model = tensor_parallel(copy.deepcopy(reference), comm, None, sequence)
    x = torch.randn(BATCH, LENGTH, width).double()
    comm.broadcast(x)
    padding = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    padding[1, 4:] = True
    with torch.inference_mode():
        y, expected = (m(x, src_key_padding_mask=padding) for m in (model, reference))
    assert (y - expected)[~padding].norm() <= 1e-13 * expected.norm()


@pytest.mark.parametrize("sequence", [False, True])
def test_a_copy_of_a_divided_model(comm, sequence: bool) -> None:
    reference, model = character_gpt(comm), character_gpt(comm)
    model = copy.deepcopy(tensor_parallel(model, comm, None, sequence))
    x, t = tokens(0)
    mean_loss(model(x), t).backward()
    mean_loss(reference(x), t).backward()
    assert_gradients(comm, model, reference)


def test_what_is_sent_between_blocks(comm, monkeypatch) -> None:
    """Neighbouring blocks leave the sequence divided: gathered once, where the last one ends."""
    if comm.size == 1:
        pytest.skip("one rank sends nothing")
    calls: list[str] = []
    for name in ("all_reduce", "all_gather", "reduce_scatter"):
        monkeypatch.setattr(comm, name, counting(getattr(comm, name), name, calls), raising=True)
    for sequence in (False, True):
        model = tensor_parallel(character_gpt(comm), comm, None, sequence)
        calls.clear()
        loss = mean_loss(model(tokens(0)[0]), tokens(0)[1])
        sums = "embedding", "attention, MLP", "attention, MLP"
        halves = calls.count("reduce_scatter"), calls.count("all_reduce")
        assert halves == ((4, 1) if sequence else (0, 5)), sums
        calls.clear()
        loss.backward()
        # Norms' weights and biases and the biases of row layers, of two blocks; and the head's.
        assert calls.count("all_reduce") == (2 * 6 + 1 if sequence else 4 + 1)
        assert calls.count("reduce_scatter") == (4 if sequence else 0)


def counting(function, name: str, calls: list[str]):
    def counted(*args, **kwargs):
        calls.append(name)
        return function(*args, **kwargs)

    return counted


def test_rank_0_gives_the_weights(comm) -> None:
    model, reference = character_gpt(comm, seed=comm.rank), character_gpt(comm, seed=0)
    weights = whole(comm, tensor_parallel(model, comm))
    for name, p in reference.named_parameters():
        assert torch.equal(weights[name], p), name


def test_a_rank_has_its_part_of_the_weights(comm) -> None:
    reference, model = character_gpt(comm), tensor_parallel(character_gpt(comm), comm)
    divided = divisions(model)
    names = {"inward.weight", "inward.bias", "project.weight", "1.weight", "1.bias", "3.weight"}
    assert set(divided) == {
        "0.symbols.weight",
        "3.1.weight",
        *(f"{b}.attention.1.{n}" for b in (1, 2) for n in names if "." in n and n[0] in "ip"),
        *(f"{b}.feedforward.{n}" for b in (1, 2) for n in names if n[0] in "13"),
    }
    for name, p in model.named_parameters():
        full = reference.get_parameter(name).detach()
        mine = take_shard(full, divided[name], comm.rank) if name in divided else full
        assert torch.equal(p, mine), name
        assert p.untyped_storage().nbytes() == mine.nbytes  # the whole one is not kept
    numbers = comm.all_gather_object(sum(p.numel() for _, p in counted(model, comm)))
    assert sum(numbers) == sum(p.numel() for p in reference.parameters())


def test_the_norm_of_the_gradient(comm) -> None:
    reference, model = character_gpt(comm), tensor_parallel(character_gpt(comm), comm)
    for m in (model, reference):
        mean_loss(m(tokens(0)[0]), tokens(0)[1]).backward()
    norm = norm_of(comm, [squares_of(p.grad) for _, p in counted(model, comm)])
    expected = torch.cat([p.grad.flatten() for p in reference.parameters()]).norm()
    assert abs(norm - expected) <= 1e-13 * expected


class Tied(nn.Module):
    """A model whose head has the weights of its embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(SYMBOLS, 6)
        self.between = nn.Linear(6, 6)
        self.head = nn.Linear(6, SYMBOLS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.between(self.embedding(x)).tanh())


def test_tied_weights(comm) -> None:
    reference = Tied().double()
    model = tensor_parallel(Tied().double(), comm, {"embedding": "embedding", "head": "output"})
    assert model.head.weight is model.embedding.weight
    x, t = tokens(0)
    mean_loss(model(x), t).backward()
    mean_loss(reference(x), t).backward()
    assert_gradients(comm, model, reference)


@pytest.mark.parametrize("styles", [{"embedding": "embedding"}, {"head": "row"}])
def test_a_tie_that_a_plan_would_cut(comm, styles) -> None:
    with pytest.raises(ArgumentError, match=r"'embedding.weight' and 'head.weight' are one param"):
        tensor_parallel(Tied(), comm, styles)


def test_frozen_parameters_and_a_model_without_memory(comm) -> None:
    model = character_gpt(comm).to("meta")
    model[0].requires_grad_(False)
    tensor_parallel(model, comm, None, sequence=True)
    assert all(p.is_meta for p in model.parameters())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        "0.positions",
        "0.symbols.weight",
    ]
    shape = divisions(model)["0.symbols.weight"].shard_shape(comm.rank)
    assert model[0].symbols.weight.shape == shape


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        ({"between": "columm"}, "there is no style 'columm': did you mean 'column'"),
        ({"betwen": "column"}, "no layer is named 'betwen': did you mean 'between'"),
        ({"*.qkv": "column"}, r"no layer is named '\*.qkv': there are embedding, between, head"),
        ({}, "an empty plan divides nothing"),
        (None, "a Tied has no layer with a ready plan"),
        ({"between": "embedding"}, "'between' is a Linear, but style 'embedding' is for a Embed"),
    ],
)
def test_plans_that_do_not_fit(comm, plan, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        tensor_parallel(Tied(), comm, plan)


def test_heads_and_neurons_that_do_not_divide(comm) -> None:
    if comm.size == 1:
        pytest.skip("one rank has all of them")
    torch.manual_seed(0)
    model = gpt(task(), width=2 * (comm.size + 1), blocks=1, heads=comm.size + 1)
    with pytest.raises(ArgumentError, match=f"{comm.size + 1} attention heads cannot be divided"):
        tensor_parallel(model, comm)
    few = nn.Sequential(nn.Linear(2, comm.size - 1))
    with pytest.raises(ArgumentError, match=f"use at most {comm.size - 1} ranks"):
        tensor_parallel(few, comm, {"0": "column"})


def test_the_wrong_dimension_of_the_sequence(comm) -> None:
    model = encoder(comm, True, batch_first=False)
    with pytest.raises(ArgumentError, match=r"batch_first=False, .* pass sequence_dim=0"):
        tensor_parallel(model, comm, sequence=True)
    model = tensor_parallel(encoder(comm, True), comm, sequence=True)
    width = model.layers[0].norm1.weight.numel()
    with pytest.raises(ArgumentError, match=r"was called with shape \(7, \d+\): .* three dim"):
        model(torch.zeros(LENGTH, width).double())


def test_a_layer_inside_of_one_that_is_divided_as_a_whole(comm) -> None:
    model = encoder(comm, True)
    plan = {"layers.*.self_attn": "attention", "layers.0.self_attn.out_proj": "row"}
    with pytest.raises(ArgumentError, match="self_attn.out_proj' is a RowLinear, but style 'row'"):
        tensor_parallel(model, comm, plan)


def test_arguments_and_models_that_differ(comm) -> None:
    if comm.size == 1:
        pytest.skip("one rank cannot differ")
    with pytest.raises(MismatchError, match="plan, sequence and sequence_dim differ"):
        tensor_parallel(Tied(), comm, {"between": "column" if comm.rank else "output"})
    with pytest.raises(MismatchError, match="models differ"):
        tensor_parallel(nn.Linear(2, 8 + comm.rank), comm, {"": "column"})
    with pytest.raises(ArgumentError, match="rank 1: there is no style 'colum'"):
        tensor_parallel(Tied(), comm, {"between": "output" if comm.rank != 1 else "colum"})


def test_patterns_of_names_and_a_style_of_ones_own(comm) -> None:
    heads = 2 * comm.size
    model = character_gpt(comm)
    seen = []

    def mine(layer, place):
        seen.append(place.name)
        return layer

    plan = {
        "?.attention.1.*": "row",
        "*.inward": qkv(heads),
        "*.feedforward.1": "column",
        "*.feedforward.3": "row",
        "?": mine,
    }
    reference, model = character_gpt(comm), tensor_parallel(model, comm, plan)
    assert seen == ["0", "1", "2", "3"]
    assert isinstance(model[1].attention[1].inward, ColumnLinear)
    x, t = tokens(0)
    mean_loss(model(x), t).backward()
    mean_loss(reference(x), t).backward()
    assert_gradients(comm, model, reference)


def test_a_layer_that_is_the_model(comm) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(3, 5).double()
    model = tensor_parallel(copy.deepcopy(linear), comm, {"": "output"})
    x = torch.ones(2, 3).double()
    assert isinstance(model, ColumnLinear)
    assert torch.allclose(model(x), linear(x), rtol=0, atol=1e-15)
