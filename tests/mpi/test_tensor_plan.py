"""Plans of tensor parallelism: names, styles, ties, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pycomm.errors import ArgumentError, MismatchError
from pycomm.parallel.tensor import ColumnLinear, divisions, qkv, ready_plan, tensor_parallel
from pycomm.workloads.models import gpt
from tests.tensor_models import (
    LENGTH,
    SYMBOLS,
    assert_gradients,
    character_gpt,
    encoder,
    mean_loss,
    task,
    tokens,
)
from tests.training import one_thread as one_thread


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


@pytest.mark.parametrize("sequence", [False, True])
def test_a_region_that_is_entered_where_a_layer_begins(comm, sequence: bool) -> None:
    entered = {"?.attention.1": "enter", "*.inward": qkv(2 * comm.size, entered=True)}
    reference, model = character_gpt(comm), character_gpt(comm)
    tensor_parallel(model, comm, {**ready_plan(model), **entered}, sequence)
    lengths = []
    model[1].attention[1].register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape))
    x, t = tokens(0)
    mean_loss(model(x), t).backward()
    mean_loss(reference(x), t).backward()
    assert [shape[1] for shape in lengths] == [LENGTH]
    assert_gradients(comm, model, reference)


def test_a_layer_that_is_the_model(comm) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(3, 5).double()
    model = tensor_parallel(copy.deepcopy(linear), comm, {"": "output"})
    x = torch.ones(2, 3).double()
    assert isinstance(model, ColumnLinear)
    assert torch.allclose(model(x), linear(x), rtol=0, atol=1e-15)
