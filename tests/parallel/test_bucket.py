"""Buckets on one rank: which gradients share one, and where gradients lie."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import pycomm
from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.parallel.bucket import ALIGNMENT_BYTES, plan_buckets
from pycomm.parallel.reducer import Reducer

F32, F64 = torch.float32, torch.float64


def make(module: nn.Module, bucket_bytes: int = 1 << 20) -> Reducer:
    return Reducer(
        module.named_parameters(),
        pycomm.init(),
        bucket_bytes=bucket_bytes,
        op="sum",
        algorithm=None,
    )


def test_buckets_fill_in_the_order_of_readiness() -> None:
    assert plan_buckets([(F32, 40)] * 5, 100, [4, 3, 2, 1, 0]) == [[4, 3], [2, 1], [0]]
    assert plan_buckets([(F32, 40)] * 5, 100, [0, 4, 2, 1, 3]) == [[0, 4], [2, 1], [3]]


def test_a_large_gradient_has_a_bucket_of_its_own() -> None:
    assert plan_buckets([(F32, 10), (F32, 500), (F32, 10)], 100, [2, 1, 0]) == [[2], [1], [0]]


def test_dtypes_do_not_mix() -> None:
    gradients = [(F32, 10), (F64, 10), (F32, 10), (F64, 10)]
    assert plan_buckets(gradients, 100, [3, 2, 1, 0]) == [[3, 1], [2, 0]]


def test_a_bucket_comes_where_its_last_gradient_does() -> None:
    gradients = [(F32, 10), (F64, 10), (F64, 10), (F32, 10)]
    assert plan_buckets(gradients, 100, [3, 2, 1, 0]) == [[2, 1], [3, 0]]


def test_nothing_to_plan() -> None:
    assert plan_buckets([], 100, []) == []


def test_gradients_become_aligned_views_with_the_values_of_autograd() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 5)).double()
    x = torch.randn(2, 1, 4, 4).double()
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    reducer = make(model)
    model(x).sum().backward()
    begin = reducer.buckets[0].flat.data_ptr()
    end = begin + reducer.buckets[0].flat.nbytes
    for p, gradient in zip(model.parameters(), expected):
        assert torch.equal(p.grad, gradient)
        assert p.grad.stride() == p.stride()
        assert begin <= p.grad.data_ptr() < end
        assert (p.grad.data_ptr() - begin) % ALIGNMENT_BYTES == 0


def test_strides_are_those_of_the_parameter() -> None:
    model = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    reducer = make(model)
    model(torch.randn(1, 4, 5, 5)).sum().backward()
    assert model.weight.grad.stride() == model.weight.stride()
    assert any(model.weight.grad is slot.view for slot in reducer.slots)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_later_gradients_are_added_in_place(set_to_none: bool) -> None:
    model = nn.Linear(3, 2)
    reducer = make(model)
    x = torch.randn(4, 3)
    for _ in range(2):
        model.zero_grad(set_to_none=set_to_none)
        model(x).sum().backward()
        first = model.weight.grad.clone()
        model(x).sum().backward()
        assert torch.equal(model.weight.grad, first + first)
        assert any(model.weight.grad is slot.view for slot in reducer.slots)


def test_unused_and_frozen_parameters_have_no_gradient() -> None:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)])
    model[2].requires_grad_(False)
    reducer = make(model)
    assert len(reducer.slots) == 4
    model[2](model[0](torch.ones(1, 2))).sum().backward()
    reducer.finish(scale=0.5)
    assert model[1].weight.grad is None
    assert model[2].weight.grad is None
    assert torch.equal(model[0].bias.grad, model[2].weight.sum(0) * 0.5)


def test_a_gradient_that_the_user_replaced_counts() -> None:
    model = nn.Linear(2, 2)
    reducer = make(model)
    model.weight.grad = torch.full((2, 2), 3.0)
    reducer.finish()
    assert torch.equal(model.weight.grad, torch.full((2, 2), 3.0))
    assert any(model.weight.grad is slot.view for slot in reducer.slots)


def test_sparse_gradients_are_refused() -> None:
    model = nn.Embedding(5, 2, sparse=True)
    reducer = make(model)
    with pytest.raises(UnsupportedError, match=r"gradient of 'weight' is torch.sparse_coo.*sparse"):
        model(torch.tensor([1])).sum().backward()
    assert len(reducer.slots) == 1


def test_a_graph_of_gradients_is_refused() -> None:
    model = nn.Linear(2, 1)
    reducer = make(model)
    with pytest.raises(UnsupportedError, match=r"gradient of '(weight|bias)' is part of a graph"):
        (model(torch.ones(1, 2)) ** 2).sum().backward(create_graph=True)
    assert len(reducer.slots) == 2


def test_unused_parameters_are_named() -> None:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    reducer = make(model)
    model[0](torch.ones(1, 2)).sum().backward()
    reducer.finish()
    assert sorted(reducer.unused) == ["1.bias", "1.weight"]
    sum(layer(torch.ones(1, 2)).sum() for layer in model).backward()
    reducer.finish()
    assert reducer.unused == []


def test_bucket_bytes_must_be_positive() -> None:
    with pytest.raises(ArgumentError, match="bucket_bytes=0 must be positive"):
        make(nn.Linear(1, 1), bucket_bytes=0)


def test_dropped_buckets_leave_the_model() -> None:
    model = nn.Linear(2, 2)
    reducer = make(model)
    alive = weakref.ref(reducer)
    del reducer
    gc.collect()
    assert alive() is None
    assert not model.weight._post_accumulate_grad_hooks
