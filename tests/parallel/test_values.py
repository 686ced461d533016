"""Values are taken apart and put together again."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import pytest
import torch

from pycomm.errors import UnsupportedError
from pycomm.parallel.values import Place, Value, describe

Pair = namedtuple("Pair", "left right")


def test_every_structure_comes_back() -> None:
    x, y = torch.ones(2, requires_grad=True), torch.zeros(3, dtype=torch.int64)
    content = {
        "list": [x, 1, None],
        "pair": Pair(y, (True, "text", 2.5)),
        "more": OrderedDict(size=torch.Size([1, 2]), span=slice(1, 2), kind=torch.float16),
    }
    value = Value.of(content)
    assert value.learns == [True, False]
    assert value.learning() == [x]
    assert value.tensors[0] is x and value.tensors[1] is y
    again = value.content()
    assert again == content
    assert type(again["pair"]) is Pair and type(again["more"]) is OrderedDict
    assert again["more"]["size"] == torch.Size([1, 2])


def test_a_tensor_alone() -> None:
    assert Value.of(torch.ones(2)).form == Place(0)


def test_nothing_learns_without_gradients() -> None:
    with torch.no_grad():
        assert Value.of(torch.ones(2, requires_grad=True)).learns == [False]


def test_what_cannot_be_passed_on() -> None:
    with pytest.raises(UnsupportedError, match="a function cannot go from stage to stage"):
        Value.of([torch.ones(1), test_a_tensor_alone])
    with pytest.raises(UnsupportedError, match="layout torch.sparse_coo"):
        Value.of(torch.eye(2).to_sparse())


def test_descriptions() -> None:
    content = {"x": torch.ones(2, 3), "rest": (1, [None])}
    assert describe(content) == (
        "dict of {'x': float32 (2, 3), 'rest': tuple of (int, list of (NoneType))}"
    )
