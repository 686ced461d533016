"""Flow: a model as the calls that it makes, in their order, and the layers that these form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx, nn

from pycomm.errors import ArgumentError
from pycomm.parallel.partition import Layers
from pycomm.parallel.parts import INPUT

MODE = "training"
"""The attribute of a module that a graph reads where the model's code reads `self.training`."""


@dataclass(frozen=True)
class Layer:
    """A piece of a model that no cut goes through: one call of a module, and what follows it.

    Attributes:
        name: of the module in the whole model, or of the parameter used directly; the second and
            later calls of the same have ":2", ":3" … behind it.
        nodes: its nodes of the graph, in order.
    """

    name: str
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Flow:
    """A model as a graph.

    Attributes:
        root: the model; the graph's names are names in it.
        graph: one placeholder, the model's input; what is called in order; the output.
        constants: tensors that the graph uses and the model does not have, by name.
    """

    root: nn.Module
    graph: fx.Graph
    constants: dict[str, torch.Tensor]

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, in order: one starts at every call of a module or use of a parameter.

        What comes before the first belongs to it.
        """
        names: list[str] = []
        nodes: list[list[fx.Node]] = [[]]
        for node in self.graph.nodes:
            if node.op in ("get_attr", "output"):
                continue
            start = self._starts(node)
            if start is not None:
                names.append(start)
                if len(names) > 1:
                    nodes.append([])
            nodes[-1].append(node)
        numbered = _numbered(names or ["input"])
        return tuple(Layer(name, tuple(members)) for name, members in zip(numbered, nodes))

    def _starts(self, node: fx.Node) -> str | None:
        if node.op == "call_module":
            return str(node.target)
        used = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
        return next((name for name in used if isinstance(self.find(name), nn.Parameter)), None)

    def find(self, name: str) -> object:
        """Return the module, tensor or constant of that full name."""
        if name in self.constants:
            return self.constants[name]
        found: object = self.root
        for part in name.split("."):
            found = getattr(found, part)
        return found

    def tensors(self, layer: Layer) -> Iterator[torch.Tensor]:
        """Yield every parameter of a layer once."""
        seen: set[int] = set()
        for parameter in self._parameters(layer):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter

    def _parameters(self, layer: Layer) -> Iterator[nn.Parameter]:
        for node in layer.nodes:
            for used in (node, *node.all_input_nodes):
                found = self.find(str(used.target)) if _owns(used) else None
                if isinstance(found, nn.Parameter):
                    yield found
                elif isinstance(found, nn.Module) and used is node:
                    yield from found.parameters()


def chain(root: nn.Module, layers: Layers) -> Flow:
    """Return the flow of layers that are applied one after the other, each to the result before.

    Args:
        root: the model.
        layers: in it, by name.

    Raises:
        ArgumentError: there are none.
    """
    if not layers:
        raise ArgumentError("a model without layers cannot be split: pass at least one layer")
    graph = fx.Graph()
    value = graph.placeholder(INPUT)
    for name, _ in layers:
        value = graph.call_module(name, (value,))
    graph.output(value)
    return Flow(root, graph, {})


def _owns(node: fx.Node) -> bool:
    return node.op == "call_module" or (node.op == "get_attr" and node.target != MODE)


def _numbered(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}:{seen[name]}")
    return result
