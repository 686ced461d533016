"""Tracing: a model's forward is run once on stand-ins, and what it calls becomes a graph."""

from __future__ import annotations

import linecache
import logging
import operator
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from pycomm.errors import ArgumentError
from pycomm.parallel.parts import INPUT
from pycomm.parallel.random_states import random_states, restore_random_states
from pycomm.parallel.splitting.blocks import Blocks
from pycomm.parallel.splitting.flow import MODE, Flow
from pycomm.parallel.splitting.inputs import input_names, takes_as_it_is, unpack
from pycomm.parallel.splitting.stand_in import StandIn, asserting_line

_logger = logging.getLogger(__name__)


def trace(model: nn.Module, blocks: Blocks, inputs: Sequence[str] | None = None) -> Flow:
    """Return the flow of a model's forward (torch.fx: Reed et al. 2022, sections 4 and 5).

    Nothing is computed. A submodule whose own forward cannot be traced stays whole. Where forward
    reads `self.training`, the graph reads the mode of the part that it is in, at every run.

    Args:
        model: any module.
        blocks: which modules stay whole.
        inputs: the parameters of forward that get values, see `inputs.input_names`.

    Raises:
        ArgumentError: the model's own forward cannot be traced; says where and why.
    """
    tracer = _Tracer(blocks, input_names(model, inputs))
    before = set(vars(model))
    states = random_states()
    try:
        graph = tracer.trace(model)
        if random_states() != states:
            raise fx.proxy.TraceError("random numbers are drawn that do not depend on the input")
    except ArgumentError:
        raise
    except Exception as error:
        raise ArgumentError(_why(model, error)) from error
    finally:
        restore_random_states(states)
        made = [name for name in vars(model) if name not in before]
        constants = {name: vars(model).pop(name) for name in made}
    _take_input(graph, tracer.names, takes_as_it_is(model))
    return Flow(model, graph, constants)


class _Tracer(fx.Tracer):
    """Calls of modules that stay whole become nodes; what cannot be traced becomes whole."""

    proxy_buffer_attributes = True

    def __init__(self, blocks: Blocks, names: list[str]):
        super().__init__()
        self.names, self._blocks = names, blocks

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return a stand-in for a node's value."""
        return StandIn(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Record what is asserted, to be checked when the graph runs; refuse other decisions."""
        line = asserting_line()
        if line is None:
            return super().to_bool(obj)
        self.create_proxy("call_function", torch._assert, (obj, line), {})
        return True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Say whether a module stays whole."""
        return self._blocks.whole(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Return a function of the inputs that get values, and stand-ins for them."""
        stand_ins = [self.create_proxy("placeholder", name, (), {}) for name in self.names]

        def forward(*values: Any) -> Any:
            with self._attributes_of(self.root):
                return root_fn(self.root, **dict(zip(self.names, values)))

        return forward, stand_ins

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace through a module; if that fails, or it draws random numbers, leave it whole."""
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        known, stack, states = set(self.graph.nodes), len(self.module_stack), random_states()
        try:
            with self._attributes_of(m):
                result = super().call_module(m, forward, args, kwargs)
            if random_states() != states:
                raise fx.proxy.TraceError("random numbers are drawn")
            return result
        except Exception as error:
            if self._blocks.has_cut_inside(name):
                raise ArgumentError(f"a cut lies in {name!r}, but {_why(m, error)}") from error
            _logger.debug("%s", _why(m, error))
            restore_random_states(states)
            while len(self.module_stack) > stack:
                self.module_stack.popitem()
            self._undo(known)
            return self.create_proxy("call_module", name, args, kwargs)

    def _undo(self, known: set[fx.Node]) -> None:
        for node in reversed(list(self.graph.nodes)):
            if node not in known and node.op != "get_attr":  # those may be in use elsewhere
                self.graph.erase_node(node)

    @contextmanager
    def _attributes_of(self, module: nn.Module) -> Iterator[None]:
        """Let the graph read `module.training`, and tensors that are attributes, when it runs."""
        own = vars(module)
        before = {k: v for k, v in own.items() if k == MODE or isinstance(v, torch.Tensor)}
        for key, value in before.items():
            name = MODE if key == MODE else self.tensor_attrs[value]
            own[key] = self.create_proxy("get_attr", name, (), {})
        try:
            yield
        finally:
            own.update(before)


def _take_input(graph: fx.Graph, names: list[str], as_it_is: bool) -> None:
    """Replace the stand-ins by one input, which is unpacked when the graph runs."""
    stand_ins = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_before(stand_ins[0]):
        whole = graph.placeholder(INPUT)
        values = [whole]
        if not as_it_is:
            given = graph.call_function(unpack, (whole, tuple(names)))
            values = [graph.call_function(operator.getitem, (given, i)) for i in range(len(names))]
    for stand_in, value in zip(stand_ins, values):
        stand_in.replace_all_uses_with(value)
        graph.erase_node(stand_in)


def _why(module: nn.Module, error: Exception) -> str:
    """Say where in the user's code tracing failed, and what to do."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    own = [f for f in frames if not f.filename.startswith((*inside, "<"))]
    where = ""
    if own:
        line = linecache.getline(own[-1].filename, own[-1].lineno or 0).strip()
        where = f" at {own[-1].filename}:{own[-1].lineno} ({line})"
    return (
        f"{type(module).__name__}.forward cannot be traced{where}: {error}; what decides by "
        f"values, shapes or self.training, or draws random numbers, goes into a submodule, which "
        f"stays whole (name it in leaves= if need be), or pass a list of layers"
    )
