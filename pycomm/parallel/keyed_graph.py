"""Dropout functions in a graph traced by torch.fx: called as by the modules they were traced in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import fx

from pycomm.parallel.dropout import in_layer
from pycomm.parallel.dropout_functions import KEYED


def name_dropouts(graph: fx.Graph) -> None:
    """Have each dropout and attention function of the graph of a whole model know its layer.

    Tracing goes through forward and leaves calls of functions, which belong to no module any more,
    and would be numbered anew in each part. Called before the graph is cut, this has them keep the
    masks of the model that was traced. Modules that stay whole know their layer themselves; one
    that is called several times must have all its calls in one part.

    Args:
        graph: as the tracer returned it; targets of its nodes are replaced.
    """
    calls: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op == "call_function" and node.target in KEYED:
            stack = node.meta.get("nn_module_stack") or {"": ("", None)}
            layer = next(reversed(stack.values()))[0]
            node.target = _called_in(layer, calls[layer], node.target)
            calls[layer] += 1


def _called_in(layer: str, number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    def keyed(*args: Any, **kwargs: Any) -> Any:
        with in_layer(layer, number):
            return function(*args, **kwargs)

    return keyed
