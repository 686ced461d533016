"""Building parts: which values cross the cuts, and a module for each part."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx

from pycomm.parallel.parts import INPUT, OUTPUT, Part
from pycomm.parallel.splitting.flow import Flow
from pycomm.parallel.splitting.owners import modules_of


def build_parts(flow: Flow, ranges: Sequence[range]) -> list[Part]:
    """Return the parts that consist of the given ranges of layers.

    A value travels from the part that computes it to every part that uses it. Parameters, buffers
    and the mode are read where they are used. A device or dtype travels as an empty tensor of it.

    Args:
        flow: the model.
        ranges: contiguous, all layers together.
    """
    stage_of = {
        node: stage
        for stage, members in enumerate(ranges)
        for layer in flow.layers[members.start : members.stop]
        for node in layer.nodes
    }
    last = len(ranges) - 1
    crossing = _crossing(flow.graph, stage_of, last)
    cutter = _Cutter(flow.graph, stage_of, crossing)
    graphs = [cutter.graph(stage, stage == last) for stage in range(len(ranges))]
    modules = modules_of(flow, graphs)
    return [
        Part(module, *cutter.names(stage, stage == last)) for stage, module in enumerate(modules)
    ]


def value_name(node: fx.Node) -> str:
    """Return the name under which a node's value travels."""
    return f"value {node.name}" if node.name in (INPUT, OUTPUT) else node.name


def _crossing(graph: fx.Graph, stage_of: dict[fx.Node, int], last: int) -> dict[fx.Node, set[int]]:
    """Return the nodes whose values later stages use, in order, and these stages."""
    crossing: dict[fx.Node, set[int]] = {}
    for node in graph.nodes:
        here = stage_of.get(node, 0)
        for user in node.users if node in stage_of else ():
            there = last if user.op == "output" else stage_of[user]
            if there > here:
                crossing.setdefault(node, set()).add(there)
    return crossing


class _Cutter:
    """Cuts a graph into those of the parts."""

    def __init__(
        self,
        whole: fx.Graph,
        stage_of: dict[fx.Node, int],
        crossing: dict[fx.Node, set[int]],
    ):
        self._whole, self._stage_of, self._crossing = whole, stage_of, crossing

    def names(self, stage: int, last: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return what a part takes and gives."""
        takes = tuple(map(value_name, self._taken(stage))) if stage > 0 else (INPUT,)
        return takes, (OUTPUT,) if last else tuple(map(value_name, self._given(stage)))

    def graph(self, stage: int, last: bool) -> fx.Graph:
        """Return the graph of one part."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        if stage > 0:
            taken = self._taken(stage)
            arrived = [graph.placeholder(f"taken_{n.name}") for n in taken]
            copies = {n: _arrive(graph, n, p) for n, p in zip(taken, arrived)}

        def look(node: fx.Node) -> fx.Node:
            if node not in copies:  # what is read from the module is read where it is used
                copies[node] = graph.get_attr(str(node.target))
            return copies[node]

        output = None
        for node in self._whole.nodes:
            if self._stage_of.get(node) == stage:
                copies[node] = graph.node_copy(node, look)
            elif node.op == "output" and last:
                output = fx.map_arg(node.args[0], look)
        given = tuple(_leave(graph, n, look) for n in self._given(stage))
        graph.output((output,) if last else given)
        return graph

    def _taken(self, stage: int) -> list[fx.Node]:
        return [n for n, stages in self._crossing.items() if stage in stages]

    def _given(self, stage: int) -> list[fx.Node]:
        return [n for n in self._crossing if self._stage_of[n] == stage]


def _is_kind(node: fx.Node) -> bool:
    """Say whether a node's value is a device or dtype, which is another on another rank."""
    return (
        node.op == "call_function"
        and node.target is getattr
        and node.args[1] in ("device", "dtype")
    )


def _leave(graph: fx.Graph, node: fx.Node, look: Callable[[fx.Node], fx.Node]) -> fx.Node:
    """Return what is given for a value."""
    if not _is_kind(node):
        return look(node)
    owner = node.args[0]
    return graph.call_method("new_empty", (look(owner), 0))  # type: ignore[arg-type]


def _arrive(graph: fx.Graph, node: fx.Node, taken: fx.Node) -> fx.Node:
    """Return the value that was given by `_leave`."""
    return graph.call_function(getattr, (taken, node.args[1])) if _is_kind(node) else taken
