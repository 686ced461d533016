"""Every divided layer and operation alone, against torch's whole one."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.parallel.tensor import (
    ColumnLinear,
    HeadsAttention,
    RowLinear,
    VocabularyEmbedding,
    divisions,
    full_tensor,
    operations,
    vocabulary_cross_entropy,
)
from pycomm.parallel.tensor.division import even
from tests.training import one_thread as one_thread


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def close(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.shape == y.shape and bool((x - y).norm() <= 1e-13 * (1 + y.norm()))


def assert_parameters(comm, layer: nn.Module, reference: nn.Module) -> None:
    """Compare gradients by the names of the whole layer's parameters."""
    divided = divisions(layer)
    for name, p in reference.named_parameters():
        mine = layer.get_parameter(name).grad
        mine = full_tensor(mine, divided[name], comm) if name in divided else mine
        assert close(mine, p.grad), name


@pytest.mark.parametrize("more", [0, 1])
def test_what_operations_give(comm, more: int) -> None:
    length = 2 * comm.size + more
    mine = even(length, comm.size)[comm.rank]
    same, other = random(3, length), random(3, length, seed=comm.rank + 1)
    part = random(3, mine, seed=comm.rank + 1)
    begin = sum(even(length, comm.size)[: comm.rank])
    whole = torch.cat([random(3, n, seed=r + 1) for r, n in enumerate(even(length, comm.size))], 1)
    total = sum(random(3, length, seed=r + 1) for r in range(comm.size))
    here = slice(begin, begin + mine)
    cases = [
        (operations.copy(same, comm), same),
        (operations.reduce(other, comm), total),
        (operations.scatter(same, comm, 1), same[:, here]),
        (operations.gather(part, comm, 1), whole),
        (operations.all_gather(part, comm, 1), whole),
        (operations.reduce_scatter(other, comm, 1), total[:, here]),
    ]
    for got, expected in cases:
        assert close(got, expected)


@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        (operations.copy, operations.reduce),
        (operations.reduce, operations.copy),
        (lambda x, c: operations.scatter(x, c, 1), lambda x, c: operations.gather(x, c, 1)),
        (lambda x, c: operations.gather(x, c, 1), lambda x, c: operations.scatter(x, c, 1)),
        (
            lambda x, c: operations.all_gather(x, c, 1),
            lambda x, c: operations.reduce_scatter(x, c, 1),
        ),
        (
            lambda x, c: operations.reduce_scatter(x, c, 1),
            lambda x, c: operations.all_gather(x, c, 1),
        ),
    ],
)
def test_backward_is_the_conjugate_and_again(comm, forward, backward) -> None:
    x = random(2, 2 * comm.size, seed=comm.rank).requires_grad_()
    y = forward(x, comm)
    gradient = random(*y.shape, seed=7 + comm.rank).requires_grad_()
    (dx,) = torch.autograd.grad(y, x, gradient, create_graph=True)
    assert close(dx, backward(gradient.detach(), comm))
    second = random(*dx.shape, seed=20 + comm.rank)
    (again,) = torch.autograd.grad(dx, gradient, second)
    assert close(again, forward(second, comm))


@pytest.mark.parametrize("bias", [True, False])
def test_an_mlp_of_neurons_that_do_not_divide(comm, bias: bool) -> None:
    torch.manual_seed(0)
    hidden = 2 * comm.size + 1
    reference = nn.Sequential(
        nn.Linear(3, hidden, bias=bias), nn.Tanh(), nn.Linear(hidden, 4, bias=bias)
    ).double()
    divided = nn.Sequential(
        ColumnLinear.of(reference[0], comm), nn.Tanh(), RowLinear.of(reference[2], comm)
    )
    assert divided[0].weight.shape == (even(hidden, comm.size)[comm.rank], 3)
    x = random(5, 3).requires_grad_()
    y = x.detach().clone().requires_grad_()
    divided(x).square().sum().backward()
    reference(y).square().sum().backward()
    assert close(divided(x), reference(y)) and close(x.grad, y.grad)
    assert_parameters(comm, divided, reference)


def test_a_column_layer_that_gathers(comm) -> None:
    torch.manual_seed(0)
    reference = nn.Linear(3, 2 * comm.size + 1).double()
    layer = ColumnLinear.of(reference, comm, gathers=True)
    x = random(5, 3)
    layer(x).square().sum().backward()
    reference(x).square().sum().backward()
    assert close(layer(x), reference(x))
    assert_parameters(comm, layer, reference)


@pytest.mark.parametrize("padding", [None, 0, -1])
def test_an_embedding(comm, padding) -> None:
    torch.manual_seed(0)
    symbols = 2 * comm.size + 1
    reference = nn.Embedding(symbols, 4, padding_idx=padding).double()
    layer = VocabularyEmbedding.of(reference, comm)
    x = torch.arange(symbols).repeat(2, 2)
    x[0, 0] = symbols - 1
    weight = random(*x.shape, 4)
    (layer(x) * weight).sum().backward()
    (reference(x) * weight).sum().backward()
    assert torch.equal(layer(x), reference(x))
    assert_parameters(comm, layer, reference)


@pytest.mark.parametrize("symbol", [-1, 10])
def test_symbols_that_are_not_there(comm, symbol: int) -> None:
    layer = VocabularyEmbedding.of(nn.Embedding(10, 4), comm)
    with pytest.raises(ArgumentError, match="in an embedding of 10, 0 to 9"):
        layer(torch.tensor([3, symbol]))
    assert layer(torch.empty(0, 2, dtype=torch.long)).shape == (0, 2, 4)


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"sparse": True}])
def test_embeddings_that_cannot_be_divided(comm, option) -> None:
    with pytest.raises(UnsupportedError, match="leave it out of the plan"):
        VocabularyEmbedding.of(nn.Embedding(10, 4, **option), comm)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_cross_entropy(comm, reduction: str, ignore_index: int, size: float) -> None:
    classes = 3 * comm.size + 1
    logits = (size * random(4, 5, classes)).requires_grad_()
    targets = torch.arange(20).view(4, 5) % classes
    targets[1, 2:] = ignore_index
    counts = even(classes, comm.size)
    mine = logits.detach().split(counts, -1)[comm.rank].clone().requires_grad_()
    options = {"ignore_index": ignore_index, "reduction": reduction}
    loss = vocabulary_cross_entropy(mine, targets, comm, classes, **options)
    expected = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), **options)
    (3 * loss).backward()
    (3 * expected).backward()
    assert abs(loss - expected) <= 1e-13 * expected
    assert close(mine.grad, logits.grad.split(counts, -1)[comm.rank])
    assert len(set(comm.all_gather_object(loss.item()))) == 1


def test_cross_entropy_of_narrow_logits_and_of_nothing(comm) -> None:
    classes = 3 * comm.size
    logits = random(7, classes).to(torch.bfloat16)
    targets = torch.arange(7) % classes
    mine = logits.split(3, -1)[comm.rank].clone().requires_grad_()
    loss = vocabulary_cross_entropy(mine, targets, comm, classes)
    loss.backward()
    assert loss.dtype == torch.float32 and mine.grad.dtype == torch.bfloat16
    assert abs(loss - functional.cross_entropy(logits.float(), targets)) < 1e-6
    nothing = torch.full((7,), -100)
    assert vocabulary_cross_entropy(mine, nothing, comm, classes).isnan()
    assert vocabulary_cross_entropy(mine, nothing, comm, classes, reduction="sum") == 0


def test_cross_entropy_of_what_does_not_fit(comm) -> None:
    classes = 3 * comm.size
    logits, targets = random(7, 3), torch.zeros(7, dtype=torch.long)
    with pytest.raises(ArgumentError, match=r"\(7, 3\) do not fit .* this rank has 6 classes"):
        vocabulary_cross_entropy(logits, targets, comm, 6 * comm.size)
    with pytest.raises(ArgumentError, match=f"target {classes} is none of {classes} classes"):
        vocabulary_cross_entropy(logits, targets + classes, comm, classes)
    with pytest.raises(ArgumentError, match="reduction='none' is neither 'mean' nor 'sum'"):
        vocabulary_cross_entropy(logits, targets, comm, classes, reduction="none")


def attention(comm, **options) -> tuple[nn.MultiheadAttention, HeadsAttention]:
    torch.manual_seed(3)
    heads = 2 * comm.size
    reference = nn.MultiheadAttention(3 * heads, heads, **options).double()
    for p in reference.parameters():
        nn.init.normal_(p, std=0.5)  # torch's biases are zero
    return reference, HeadsAttention.of(copy.deepcopy(reference), comm)


@pytest.mark.parametrize("average", [None, True, False])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bias": False}])
def test_self_attention(comm, average, options) -> None:
    reference, layer = attention(comm, **options)
    x = random(5, 4, reference.embed_dim).requires_grad_()
    y = x.detach().clone().requires_grad_()
    how = {"need_weights": average is not None, "average_attn_weights": bool(average)}
    (a, weights), (b, expected) = layer(x, x, x, **how), reference(y, y, y, **how)
    assert close(a, b)
    if average is None:
        assert weights is expected is None
        (a.square().sum()).backward()
        (b.square().sum()).backward()
    else:
        assert close(weights, expected)
        (a.square().sum() + weights.square().sum()).backward()
        (b.square().sum() + expected.square().sum()).backward()
    assert close(x.grad, y.grad)
    assert_parameters(comm, layer, reference)


def test_attention_to_others_with_masks_of_every_kind(comm) -> None:
    reference, layer = attention(comm, batch_first=True, kdim=4, vdim=5)
    q, k, v = random(2, 3, reference.embed_dim), random(2, 6, 4, seed=1), random(2, 6, 5, seed=2)
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    each = random(2 * reference.num_heads, 3, 6, seed=3)
    masks = [
        {"attn_mask": each},
        {"attn_mask": each > 1},
        {"attn_mask": each[0] > 1, "key_padding_mask": padding},
        {"key_padding_mask": torch.where(padding, -math.inf, 0.25).double()},
        {"attn_mask": torch.ones(3, 6, dtype=torch.bool).triu(1), "is_causal": True},
    ]
    for mask in masks:
        for need_weights in (False, True):
            a, b = (m(q, k, v, need_weights=need_weights, **mask)[0] for m in (layer, reference))
            assert close(a, b), (mask, need_weights)
    layer(q, k, v)[0].square().sum().backward()
    reference(q, k, v)[0].square().sum().backward()
    assert_parameters(comm, layer, reference)


def test_heads_that_do_not_divide(comm) -> None:
    heads = comm.size + 1
    whole = nn.MultiheadAttention(2 * heads, heads)
    if comm.size == 1:
        HeadsAttention.of(whole, comm)
        return
    match = f"{heads} attention heads cannot be divided over {comm.size} ranks: use tp=1 or"
    with pytest.raises(ArgumentError, match=match):
        HeadsAttention.of(whole, comm)


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_attention_that_cannot_be_divided(comm, option: str) -> None:
    with pytest.raises(UnsupportedError, match="leave it out of the plan"):
        attention(comm, **{option: True})


def test_attention_without_a_batch_or_a_mask(comm) -> None:
    _, layer = attention(comm)
    x = random(5, layer.embed_dim)
    with pytest.raises(ArgumentError, match=r"query of shape \(5, \d+\) with is_causal=False"):
        layer(x, x, x)
    x = x[None]
    with pytest.raises(ArgumentError, match=r"is_causal=True: give it .* attn_mask="):
        layer(x, x, x, is_causal=True)
