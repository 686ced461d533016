"""Owners: which part has which modules, parameters and buffers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from pycomm.parallel.splitting.flow import MODE, Flow
from pycomm.parallel.splitting.subtree import copy_subtree


@dataclass
class _Owned:
    """What a part has, by full names: modules with all that is in them, single tensors."""

    modules: set[str]
    tensors: set[str]

    def covers(self, name: str) -> bool:
        """Say whether a tensor is there under that name."""
        return name in self.tensors or name.startswith(tuple(m + "." for m in self.modules))


def modules_of(flow: Flow, graphs: Sequence[fx.Graph]) -> list[nn.Module]:
    """Return a module for each part, whose forward is the part's graph.

    Parameters and buffers have their names of the whole model. A parameter of several names is
    also there under the first, which the whole model's `named_parameters` has. The first part also
    has what no part uses.
    """
    owned = [_used(flow, graph) for graph in graphs]
    for name, _ in _named_tensors(flow.root):
        if not any(part.covers(name) for part in owned):
            owned[0].tensors.add(name)
    first = {id(p): name for name, p in flow.root.named_parameters()}
    for part in owned:
        _add_first_names(flow.root, part, first)
    return [_module(flow, graph, part) for graph, part in zip(graphs, owned)]


def _used(flow: Flow, graph: fx.Graph) -> _Owned:
    modules = {str(n.target) for n in graph.nodes if n.op == "call_module"}
    read = _read(graph) - set(flow.constants)
    modules |= {name for name in read if isinstance(flow.find(name), nn.Module)}
    return _Owned(modules, read - modules)


def _read(graph: fx.Graph) -> set[str]:
    return {str(n.target) for n in graph.nodes if n.op == "get_attr" and n.target != MODE}


def _add_first_names(root: nn.Module, part: _Owned, first: dict[int, str]) -> None:
    named = dict(root.named_parameters(remove_duplicate=False))
    names = {first[id(p)] for name, p in named.items() if part.covers(name)}
    part.tensors |= {name for name in names if not part.covers(name)}


def _named_tensors(root: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from root.named_parameters(remove_duplicate=False)
    yield from root.named_buffers(remove_duplicate=False)


def _module(flow: Flow, graph: fx.Graph, owned: _Owned) -> nn.Module:
    module = fx.GraphModule(nn.Module(), fx.Graph(), type(flow.root).__name__)
    copy_subtree(flow.root, module, owned.modules, owned.tensors)
    for name in sorted(_read(graph) & set(flow.constants)):
        module.register_buffer(name, flow.constants[name], persistent=False)
    module.graph = graph
    return module
