"""Styles: the ways in which a plan can have a layer divided, each one decorated function."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from pycomm.errors import ArgumentError
from pycomm.parallel.tensor.attention import HeadsAttention, check_heads
from pycomm.parallel.tensor.dropout import DropoutPart
from pycomm.parallel.tensor.edge import Edge
from pycomm.parallel.tensor.embedding import VocabularyEmbedding
from pycomm.parallel.tensor.linear import ColumnLinear, RowLinear
from pycomm.parallel.tensor.sequence import SequenceRegion, SumGradients

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

L = TypeVar("L", bound=nn.Module)


@dataclass(frozen=True)
class Place:
    """Where a style is applied.

    Attributes:
        name: of the layer in the model.
        comm: the tensor-parallel group.
        sequence_dim: the dimension along which activations are divided; None without sequence
            parallelism.
        regions: the sequence-parallel regions so far, by the name of their layer.
    """

    name: str
    comm: Communicator
    sequence_dim: int | None
    regions: dict[str, SequenceRegion]

    def expect(self, layer: nn.Module, kind: type[L], style: str) -> L:
        """Return `layer` if it is of that kind.

        Raises:
            ArgumentError: it is not.
        """
        if not isinstance(layer, kind):
            raise ArgumentError(
                f"rank {self.comm.rank}: {self.name!r} is a {type(layer).__name__}, but style "
                f"{style!r} is for a {kind.__name__}: correct the plan"
            )
        return layer


Style = Callable[[nn.Module, Place], nn.Module]
"""Returns what takes the place of a layer: another one, or the same, changed."""

STYLES: dict[str, Style] = {}
"""Every style by the name that a plan knows it by."""


def style(name: str) -> Callable[[Style], Style]:
    """Register a function as the style of a name."""

    def register(function: Style) -> Style:
        STYLES[name] = function
        return function

    return register


def find(name: str | Style) -> Style:
    """Return the style of a name; a function is one already.

    Raises:
        ArgumentError: there is no such style; the message has the nearest name.
    """
    if callable(name):
        return name
    if name not in STYLES:
        raise ArgumentError(f"there is no style {name!r}{nearest(name, STYLES)}")
    return STYLES[name]


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a question after the most similar of some names, or a list of a few of them."""
    names = [*names]
    near = difflib.get_close_matches(name, names, n=1)
    return f": did you mean {near[0]!r}?" if near else f": there are {', '.join(names[:12])}"


@style("column")
def column(layer: nn.Module, place: Place) -> nn.Module:
    """Divide a Linear by its outputs, which stay divided."""
    linear = place.expect(layer, nn.Linear, "column")
    return ColumnLinear.of(linear, place.comm, sequence_dim=place.sequence_dim)


@style("row")
def row(layer: nn.Module, place: Place) -> nn.Module:
    """Divide a Linear by its inputs, which are divided already."""
    linear = place.expect(layer, nn.Linear, "row")
    return RowLinear.of(linear, place.comm, sequence_dim=place.sequence_dim)


@style("output")
def output(layer: nn.Module, place: Place) -> nn.Module:
    """Divide a Linear by its outputs, and give every rank all of them. Its input is whole."""
    linear = place.expect(layer, nn.Linear, "output")
    return ColumnLinear.of(linear, place.comm, gathers=True)


@style("vocabulary")
def vocabulary(layer: nn.Module, place: Place) -> nn.Module:
    """Divide a Linear by its outputs, for `vocabulary_cross_entropy`. Its input is whole."""
    return ColumnLinear.of(place.expect(layer, nn.Linear, "vocabulary"), place.comm)


@style("embedding")
def embedding(layer: nn.Module, place: Place) -> nn.Module:
    """Divide an Embedding by symbols; its result is whole."""
    return VocabularyEmbedding.of(place.expect(layer, nn.Embedding, "embedding"), place.comm)


@style("attention")
def attention(layer: nn.Module, place: Place) -> nn.Module:
    """Divide an nn.MultiheadAttention by heads."""
    whole = place.expect(layer, nn.MultiheadAttention, "attention")
    return HeadsAttention.of(whole, place.comm, sequence_dim=place.sequence_dim)


def qkv(heads: int, *, blocks: int = 3, entered: bool = False) -> Style:
    """Return the style of a Linear that gives query, key and value, one after the other.

    The layer around it has to take the number of heads from the width of what the Linear gives.

    Args:
        heads: of attention, in each of the `blocks`.
        blocks: how many groups of heads there are one after the other.
        entered: the layer around it has style "enter", as it must where it takes the length from
            its own input.
    """

    def divide(layer: nn.Module, place: Place) -> nn.Module:
        linear = place.expect(layer, nn.Linear, "qkv")
        check_heads(heads, place.comm)
        unit = linear.out_features // (blocks * heads)
        return ColumnLinear.of(
            linear,
            place.comm,
            sequence_dim=place.sequence_dim,
            blocks=blocks,
            unit=unit,
            entered=entered,
        )

    divide.__name__ = f"qkv({heads})"
    return divide


@style("enter")
def enter(layer: nn.Module, place: Place) -> nn.Module:
    """Enter a divided region where a layer begins, not in the column layers inside of it."""
    layer.register_forward_pre_hook(Edge(place.comm, place.sequence_dim).enter_first)
    return layer


def part(dim: int, whole: int) -> Style:
    """Return the style of a layer that drops from this rank's part of something.

    Args:
        dim: the dimension that is divided: −1 where neurons are dropped, 1 where weights of
            attention are, (batch, heads, length, keys).
        whole: its size over all ranks.
    """

    def say(layer: nn.Module, place: Place) -> nn.Module:
        DropoutPart.around(layer, place.comm, dim, whole)
        return layer

    say.__name__ = f"part({dim}, {whole})"
    return say


@style("dropout")
def dropout(layer: nn.Module, place: Place) -> nn.Module:
    """With sequence parallelism: let keyed dropout know which part of the sequence it sees."""
    if place.sequence_dim is not None:
        DropoutPart.around(layer, place.comm, place.sequence_dim)
    return layer


@style("norm")
def norm(layer: nn.Module, place: Place) -> nn.Module:
    """With sequence parallelism: add gradients of a layer that sees a part of the sequence."""
    if place.sequence_dim is not None:
        SumGradients.of(layer, place.comm)
    return layer


@style("sequence")
def sequence(layer: nn.Module, place: Place) -> nn.Module:
    """With sequence parallelism: let a layer that takes whole sequences compute with parts."""
    if (dim := place.sequence_dim) is not None:
        place.regions[place.name] = SequenceRegion.around(layer, place.comm, dim)
    return layer
