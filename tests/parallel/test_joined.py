"""Several modules under one roof keep their names, and are one for everything but a call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pycomm.parallel.joined import Joined, joined
from pycomm.parallel.partition import Chain


class Half(nn.Module):
    """A part of a model that has layers of its own and shares a name with the other part."""

    def __init__(self, name: str):
        super().__init__()
        self.blocks = nn.ModuleDict({name: nn.Linear(2, 2)})
        self.register_buffer(f"count_{name}", torch.zeros(1))


def test_one_alone_stays_what_it_is() -> None:
    half = Half("a")
    assert joined([half]) is half


def test_chains_of_layers_become_a_sequential() -> None:
    layers = [(name, nn.Linear(2, 2)) for name in ("x", "y", "z")]
    model = joined([Chain(layers[:2]), Chain(layers[2:])])
    assert isinstance(model, nn.Sequential)
    assert [name for name, _ in model.named_children()] == ["x", "y", "z"]
    x = torch.randn(1, 2)
    assert torch.equal(model(x), Chain(layers)(x)[0])


def test_names_modes_and_state_are_those_of_the_parts() -> None:
    one, other = Half("a"), Half("b")
    both = joined([one, other])
    assert isinstance(both, Joined)
    names = [f"blocks.{n}.{p}" for n in "ab" for p in ("weight", "bias")]
    assert [name for name, _ in both.named_parameters()] == names
    assert [name for name, _ in both.named_buffers()] == ["count_a", "count_b"]
    assert sorted(both.state_dict()) == sorted([*names, "count_a", "count_b"])
    both.eval()
    assert not any(m.training for part in (one, other) for m in part.modules())
    both.double()
    assert one.blocks["a"].weight.dtype == other.count_b.dtype == torch.float64


def test_state_is_loaded_into_the_parts() -> None:
    both, saved = joined([Half("a"), Half("b")]), joined([Half("a"), Half("b")]).state_dict()
    both.load_state_dict(saved)
    for name, tensor in both.state_dict().items():
        assert torch.equal(tensor, saved[name])
    del saved["blocks.b.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*blocks\.b\.bias"):
        both.load_state_dict(saved)
