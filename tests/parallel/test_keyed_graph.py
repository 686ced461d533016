"""Graphs whose functions drop what they drop in the model that was traced."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.fx.passes.split_module import split_module
from torch.nn import functional as F

from pycomm.parallel.dropout import KeyedDropout
from pycomm.parallel.keyed_graph import name_dropouts


class Block(nn.Module):
    def forward(self, x):
        x = F.dropout(F.dropout(x, 0.3), 0.2, self.training)
        x = F.scaled_dot_product_attention(x, x, x)
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.2) + F.dropout(x, 0.1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x):
        return F.dropout(self.blocks(F.dropout(x, 0.1)), 0.1)


class OnItsOwn(nn.Module):
    """Runs a part as a rank does that has it: in a pass of its own."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, *values):
        return output(self.part, *values)


def output(module, *values):
    with KeyedDropout(module, seed=1)(step=2, first_sample=3, samples=4):
        return module(*values)


def test_a_graph_in_any_parts():
    model, x = Model(), torch.randn(4, 5, 6)
    expected = output(model, x)
    traced = fx.symbolic_trace(model)
    assert not torch.equal(output(traced, x), expected)
    name_dropouts(traced.graph)
    traced.recompile()
    assert torch.equal(output(traced, x), expected)
    place = {node: at for at, node in enumerate(traced.graph.nodes)}
    for pieces in (2, 3, 5):
        cut = split_module(traced, model, lambda node, n=pieces: place[node] * n // len(place))
        for name, part in list(cut.named_children()):
            setattr(cut, name, OnItsOwn(part))
        assert len(list(cut.children())) == pieces
        assert torch.equal(cut(x), expected)
    torch.manual_seed(0)
    assert traced(x).shape == x.shape, "outside of a pass it is torch's"
