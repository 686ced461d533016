"""Each of torch's dropouts with keyed masks: values, gradients, and what is left to torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pycomm.errors import ArgumentError
from pycomm.parallel.dropout import KeyedDropout
from pycomm.parallel.keyed_mask import part_of

SAMPLES = 6


class Call(nn.Module):
    """Calls a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def run(function, *args, step=1, first_sample=0, samples=None, seed=0, **options):
    keyed = KeyedDropout(module := Call(function), seed, **options)
    with keyed(step, first_sample, samples):
        return module(*args)


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def test_torchs_generator_is_neither_read_nor_changed():
    before = torch.get_rng_state()
    first = run(F.dropout, ones(4, 100))
    torch.manual_seed(5)
    assert torch.equal(run(F.dropout, ones(4, 100)), first)
    torch.set_rng_state(before)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_are_scaled_and_rounded_once(dtype):
    x = torch.randn(5, 1000, dtype=torch.float64).to(dtype)
    y = run(lambda x: F.dropout(x, 0.3), x)
    wide = x.to(torch.float64 if dtype == torch.float64 else torch.float32)
    kept = (wide * (1 / 0.7)).to(dtype)
    assert y.dtype == dtype
    assert torch.equal(y, torch.where(y == 0, 0, kept))
    assert 0.25 < (y == 0).double().mean() < 0.35
    assert abs(run(lambda x: F.dropout(x, 0.3), ones(64, 1000)).mean() - 1) < 0.02


@pytest.mark.parametrize("shape", [(5, 7, 3), (7, 3, 5)])
def test_gradients_have_the_mask_of_the_values(shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = run(lambda x: F.dropout(x.transpose(1, 2) * 1, 0.4), x)
    gradient = torch.randn_like(y)
    (got,) = torch.autograd.grad(y, x, gradient, create_graph=True)
    factor = (y != 0).double() * (1 / (1 - 0.4))
    assert torch.equal(got, (gradient * factor).transpose(1, 2))
    assert torch.autograd.gradcheck(lambda x: run(F.dropout, x), (x,))
    assert torch.autograd.gradgradcheck(lambda x: run(F.dropout, x), (x,))


DROPOUTS = {
    "dropout": (nn.Dropout, (SAMPLES, 4, 10)),
    "dropout1d": (nn.Dropout1d, (SAMPLES, 40, 5)),
    "dropout2d": (nn.Dropout2d, (SAMPLES, 40, 3, 5)),
    "dropout3d": (nn.Dropout3d, (SAMPLES, 40, 2, 2, 2)),
    "alpha": (nn.AlphaDropout, (SAMPLES, 4, 10)),
    "feature_alpha": (nn.FeatureAlphaDropout, (SAMPLES, 40, 3)),
}
EVERY = pytest.mark.parametrize(("layer", "shape"), DROPOUTS.values(), ids=DROPOUTS)


@EVERY
def test_modules_by_samples(layer, shape):
    x, module = torch.randn(shape), layer(0.4)
    keyed = KeyedDropout(module, seed=2)
    with keyed(step=9):
        whole = module(x)
    for cuts in ((2, 4), (1, 2, 3), (6,), (5, 1)):
        parts, at = [], 0
        for size in cuts:
            with keyed(step=9, first_sample=at, samples=size):
                parts.append(module(x[at : at + size]))
            at += size
        assert torch.equal(torch.cat(parts), whole)
    with keyed(step=10):
        assert not torch.equal(module(x), whole)


@EVERY
def test_modules_as_torchs_but_for_the_mask(layer, shape):
    x, module = torch.randn(shape), layer(0.4)
    keyed = KeyedDropout(module, seed=2)
    first = set()
    for step in range(60):
        with keyed(step):
            first.add(round(float(module(x).flatten()[0]), 4))
    expected = {round(float(module(x).flatten()[0]), 4) for _ in range(60)}
    assert first == expected and len(first) == 2


@EVERY
def test_modules_in_place_in_eval_and_at_the_ends(layer, shape):
    x, module = torch.randn(shape), layer(0.4)
    keyed = KeyedDropout(module, seed=2)
    with keyed(1):
        y = module(x)
    in_place, z = layer(0.4, inplace=True), x.clone().requires_grad_() * 1
    with KeyedDropout(in_place, seed=2)(1):
        result = in_place(z)
    assert torch.equal(result, y)
    if layer not in (nn.AlphaDropout, nn.FeatureAlphaDropout):  # of which torch takes no notice
        assert result is z
    module.eval()
    with keyed(1):
        assert torch.equal(module(x), x)
        assert torch.equal(layer(0.0)(x), x)
        assert module(x[:0]).shape == x[:0].shape
    module.train()
    with keyed(1):
        assert module(x[:0]).shape == x[:0].shape
        certain = layer(1.0)(x)
    assert torch.equal(certain, layer(1.0)(x)) and torch.equal(certain, x * 0)


def test_channels_as_a_whole():
    y = run(lambda x: F.dropout2d(x, 0.5), ones(8, 50, 3, 3))
    assert set(y.sum((2, 3)).unique().tolist()) == {0.0, 18.0}
    assert torch.equal(run(F.dropout1d, ones(50, 3)), run(F.dropout1d, ones(1, 50, 3))[0])
    with pytest.raises(RuntimeError, match="dropout1d: Expected 2D or 3D input"):
        run(F.dropout1d, ones(2, 2, 2, 2))


def test_other_dtypes_and_wrong_probabilities():
    y = run(F.dropout, torch.full((4, 50), 2 + 1j))
    assert set(y.flatten().tolist()) == {0, 4 + 2j}
    with pytest.raises(ValueError, match="has to be between 0 and 1, but got 1.5"):
        run(lambda x: F.dropout(x, 1.5), ones(3))


def test_functions_of_torch_itself():
    x = ones(4, 30)
    expected = run(lambda x: F.dropout(x, 0.5), x)
    assert torch.equal(run(lambda x: torch.dropout(x, 0.5, True), x), expected)
    assert torch.equal(run(lambda x: torch.dropout_(x, 0.5, train=True), x.clone()), expected)


# ---- attention


def attention(q, k, v, mask=None, causal=False, scale=None, gqa=False):
    return F.scaled_dot_product_attention(q, k, v, mask, 0.3, causal, scale=scale, enable_gqa=gqa)


def explicit(q, k, v, bias, scale):
    """Return attention with a dropout that is the first one of a call."""
    weights = torch.softmax(q @ k.transpose(-2, -1) * scale + bias, -1)
    return F.dropout(weights, 0.3) @ v


@pytest.fixture
def qkv():
    torch.manual_seed(3)
    return [torch.randn(2, 4, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]


BOOLEAN = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.7
BOOLEAN[..., 0] = True
ADDED = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
NONE = torch.zeros(5, 5, dtype=torch.float64)
UPPER = torch.full((5, 5), -math.inf, dtype=torch.float64).triu(1)


@pytest.mark.parametrize(
    ("given", "bias", "scale"),
    [
        ({}, NONE, 8**-0.5),
        ({"causal": True}, UPPER, 8**-0.5),
        ({"mask": BOOLEAN}, torch.where(BOOLEAN, 0.0, -math.inf).double(), 8**-0.5),
        ({"mask": ADDED, "scale": 0.2}, ADDED, 0.2),
    ],
    ids=["plain", "causal", "boolean", "added"],
)
def test_attention_with_dropout(qkv, given, bias, scale):
    got = run(lambda *x: attention(*x, **given), *qkv)
    expected = run(lambda *x: explicit(*x, bias, scale), *qkv)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(y.sin().sum(), qkv) for y in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


def test_attention_with_fewer_keys_than_queries(qkv):
    q, k, v = (x.detach() for x in qkv)
    got = run(lambda *x: attention(*x, gqa=True), q, k[:, :2], v[:, :2])
    wide = (q, k[:, :2].repeat_interleave(2, 1), v[:, :2].repeat_interleave(2, 1))
    torch.testing.assert_close(got, run(attention, *wide), rtol=1e-12, atol=1e-12)


def test_attention_where_everything_is_masked(qkv):
    nothing = torch.zeros(5, 5, dtype=torch.bool)
    got = run(lambda *x: attention(*x, mask=nothing), *qkv)
    assert torch.equal(got, torch.zeros_like(got))
    with pytest.raises(ArgumentError, match="is_causal=True and attn_mask: pass one"):
        run(lambda *x: attention(*x, mask=nothing, causal=True), *qkv)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_attention_computes_in_float32(qkv, dtype):
    narrow = [x.detach().to(dtype) for x in qkv]
    got = run(attention, *narrow)
    assert got.dtype == dtype
    assert torch.equal(got, run(attention, *(x.float() for x in narrow)).to(dtype))


def test_attention_without_dropout_is_torchs(qkv, monkeypatch):
    expected = F.scaled_dot_product_attention(*qkv, is_causal=True)
    monkeypatch.setattr(torch, "_safe_softmax", None)
    got = run(lambda *x: F.scaled_dot_product_attention(*x, is_causal=True), *qkv)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("batch_first", [True, False])
def test_multi_head_attention(batch_first):
    """With and without weights, and for the batch in either dimension, the same mask."""
    torch.manual_seed(1)
    module = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=batch_first, dtype=torch.float64)
    x = torch.randn(4, 5, 8, dtype=torch.float64)
    given = x if batch_first else x.transpose(0, 1)
    keyed = KeyedDropout(module, seed=1, batch_dims={"*": 1})
    with keyed(2, 0, 4):
        with_weights, _ = module(given, given, given)
    with keyed(2, 0, 4):
        without, none = module(given, given, given, need_weights=False)
    assert none is None
    torch.testing.assert_close(without, with_weights, rtol=1e-12, atol=1e-12)
    with keyed(2):
        assert torch.equal(module(given, given, given)[0], with_weights), "a row of x is a sample"
    batch = 0 if batch_first else 1
    parts = []
    for at in range(4):
        piece = given.narrow(batch, at, 1)
        with keyed(2, at, 1):
            parts.append(module(piece, piece, piece)[0])
    torch.testing.assert_close(torch.cat(parts, batch), with_weights, rtol=1e-12, atol=1e-12)
    module.eval()
    with keyed(2, 0, 4):
        evaluated = module(given, given, given)[0]
    torch.testing.assert_close(evaluated, module(given, given, given)[0], rtol=1e-12, atol=1e-12)


# ---- parts of tensors


@pytest.mark.parametrize("dim", [1, 2, 3, -1])
def test_parts_of_a_tensor(dim):
    whole = run(F.dropout, ones(3, 4, 6, 8), first_sample=2)
    size = whole.shape[dim]

    def part(begin, end):
        with part_of(dim, begin, size):
            return F.dropout(ones(3, 4, 6, 8).narrow(dim, begin, end - begin))

    for begin, end in ((0, size), (0, 1), (1, size), (size - 2, size)):
        got = run(part, begin, end, first_sample=2)
        assert torch.equal(got, whole.narrow(dim, begin, end - begin))


def test_heads_on_two_ranks(qkv):
    whole = run(attention, *qkv)

    def half(begin):
        with part_of(dim=1, begin=begin, whole=4):
            return attention(*(x[:, begin : begin + 2] for x in qkv))

    assert torch.equal(torch.cat([run(half, 0), run(half, 2)], 1), whole)


def test_channels_on_two_ranks():
    whole = run(F.dropout2d, ones(3, 8, 2, 2))

    def some(dim, begin, *shape):
        with part_of(dim=dim, begin=begin, whole=8):
            return F.dropout2d(ones(*shape))

    assert torch.equal(run(some, 1, 4, 3, 4, 2, 2), whole[:, 4:])
    assert torch.equal(run(some, -3, 4, 3, 4, 2, 2), whole[:, 4:])
    assert torch.equal(run(some, 2, 6, 3, 8, 2, 2), whole), "rows of pixels share their channel"


def test_flattened_and_moved_batches_on_two_ranks():
    whole = run(F.dropout, ones(4, 3, 8))

    def half(x):
        with part_of(dim=-1, begin=4, whole=8):
            return F.dropout(x)

    assert torch.equal(run(half, ones(12, 4), samples=4), whole.reshape(12, 8)[:, 4:])
    got = run(half, ones(3, 4, 4), samples=4, batch_dims={"*": 1})
    assert torch.equal(got, whole.transpose(0, 1)[..., 4:])


@pytest.mark.parametrize("given", [(0, 0, 9), (2, 0, 9), (1, 3, 8), (-2, 0, 9)])
def test_what_is_no_part(given):
    def wrong():
        with part_of(*given):
            F.dropout(ones(4, 6))

    with pytest.raises(ArgumentError, match=r"of a tensor of shape \(4, 6\), whose dimension 0"):
        run(wrong)
