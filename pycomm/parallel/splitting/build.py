"""Building parts: which values cross the cuts, and a module for each part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import fx, nn

from pycomm.parallel.parts import INPUT, OUTPUT, Part
from pycomm.parallel.splitting.flow import MODE, Flow
from pycomm.parallel.splitting.subtree import copy_subtree


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
    crossing = _crossing(flow.graph, stage_of, len(ranges) - 1)
    last = len(ranges) - 1
    builder = _Builder(flow, stage_of, crossing)
    return [builder.part(stage, stage == last) for stage in range(len(ranges))]


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


class _Builder:
    """Makes the parts of a flow one by one."""

    def __init__(self, flow: Flow, stage_of: dict[fx.Node, int], crossing: dict[fx.Node, set[int]]):
        self._flow, self._stage_of, self._crossing = flow, stage_of, crossing

    def part(self, stage: int, last: bool) -> Part:
        """Return one part."""
        taken = [n for n, stages in self._crossing.items() if stage in stages]
        given = [n for n in self._crossing if self._stage_of[n] == stage]
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        if stage > 0:
            arrived = [graph.placeholder(_identifier(n)) for n in taken]
            copies = {n: _arrive(graph, n, p) for n, p in zip(taken, arrived)}
        look = partial(self._look_up, graph, copies)
        output = None
        for node in self._flow.graph.nodes:
            if self._stage_of.get(node) == stage:
                copies[node] = graph.node_copy(node, look)
            elif node.op == "output" and last:
                output = fx.map_arg(node.args[0], look)
        results = (output,) if last else tuple(_leave(graph, n, look) for n in given)
        graph.output(results)
        return Part(
            self._module(graph),
            tuple(map(value_name, taken)) if stage > 0 else (INPUT,),
            (OUTPUT,) if last else tuple(map(value_name, given)),
        )

    def _look_up(self, graph: fx.Graph, copies: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
        if node not in copies:  # what is read from the module is read where it is used
            copies[node] = graph.get_attr(str(node.target))
        return copies[node]

    def _module(self, graph: fx.Graph) -> nn.Module:
        read = {str(n.target) for n in graph.nodes if n.op == "get_attr" and n.target != MODE}
        called = {str(n.target) for n in graph.nodes if n.op == "call_module"}
        constants = {name: self._flow.constants[name] for name in read & set(self._flow.constants)}
        names = self._canonical(called, read - set(constants))
        module = fx.GraphModule(nn.Module(), fx.Graph(), type(self._flow.root).__name__)
        copy_subtree(self._flow.root, module, called, names)
        for name, value in constants.items():
            module.register_buffer(name, value, persistent=False)
        module.graph = graph
        return module

    def _canonical(self, called: set[str], read: set[str]) -> set[str]:
        """Return the names of tensors that a part needs beside the modules that it calls.

        A parameter with several names is there under its first one, too: the name that the whole
        model's `named_parameters` has.
        """
        root = self._flow.root
        first = {id(p): name for name, p in root.named_parameters()}
        own = [p for name in called for p in root.get_submodule(name).parameters()]
        used = {first[id(p)] for p in own}
        covered = tuple(name + "." for name in called)
        return {name for name in used | read if not name.startswith(covered)}


def _identifier(node: fx.Node) -> str:
    return f"taken_{node.name}"


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
