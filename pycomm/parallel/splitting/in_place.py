"""Changes in place that a cut would hide: a value changed on one part and used again on another."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence

from torch import fx, nn

from pycomm.errors import ArgumentError
from pycomm.parallel.splitting.flow import Flow
from pycomm.parallel.splitting.stand_in import IN_PLACE

_OPERATORS = {operator.setitem, *(getattr(operator, name) for name in IN_PLACE)}
_VIEWS = set(
    "chunk detach diagonal expand flatten movedim narrow permute reshape select split squeeze t "
    "transpose unbind unflatten unfold unsqueeze view view_as".split()
)
_NUMBERS = {"dim", "item", "numel", "size"}


def refuse_hidden_changes(flow: Flow, ranges: Sequence[range]) -> None:
    """Return if every part sees the changes in place that it would see in the whole model.

    Only changes that the graph shows are found: methods that end with "_", operators such as +=,
    `out=` and `inplace=True`; not what happens inside modules of other kinds.

    Raises:
        ArgumentError: a value is changed in a later part than the one that computes it, and still
            used in a later one than that.
    """
    stage_of = {
        node: stage
        for stage, members in enumerate(ranges)
        for layer in flow.layers[members.start : members.stop]
        for node in layer.nodes
    }
    last = len(ranges) - 1
    for node in stage_of:
        here = stage_of[node]
        for value in _changed_by(flow, node):
            users = [last if user.op == "output" else stage_of[user] for user in value.users]
            if stage_of.get(value, here) < here < max(users):
                raise ArgumentError(
                    f"value {value.name!r} of part {stage_of[value]} is changed in place by "
                    f"{node.name!r} in part {here} and used again in part {max(users)}, which "
                    f"would not see the change: do it out of place, or cut elsewhere by cuts="
                )


def _changed_by(flow: Flow, node: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes whose values a node changes in place: one, and what it is a view of."""
    if not _changes(flow, node):
        return
    value = node.kwargs.get("out") or (node.args[0] if node.args else None)
    while isinstance(value, fx.Node) and not _is_number(value):
        yield value
        viewed = _name(value) in _VIEWS or value.target is operator.getitem
        value = value.args[0] if viewed and value.args else None


def _is_number(node: fx.Node) -> bool:
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return _is_number(node.args[0])
    shape = node.target is getattr and node.args[1] == "shape"
    return shape or _name(node) in _NUMBERS


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _changes(flow: Flow, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = flow.find(str(node.target))
        return isinstance(module, nn.Module) and bool(getattr(module, "inplace", False))
    in_place = _name(node).endswith("_") and not _name(node).endswith("__")
    asked = bool(node.kwargs.get("inplace")) or "out" in node.kwargs
    return node.target in _OPERATORS or in_place or asked
