"""tensor_parallel: dividing the layers of a model over ranks, by a plan of names and styles."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import nn

from pycomm.errors import ArgumentError
from pycomm.parallel.replicate import check_equal, check_same_model, on_every_rank, tensors
from pycomm.parallel.tensor.divided import divisions
from pycomm.parallel.tensor.ready import Plan, ready_plan
from pycomm.parallel.tensor.sequence import SequenceRegion, join
from pycomm.parallel.tensor.styles import Place, Style, find, nearest

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


def tensor_parallel(
    module: nn.Module,
    comm: Communicator,
    plan: Plan | None = None,
    sequence: bool = False,
    sequence_dim: int = 1,
) -> nn.Module:
    """Divide the layers of a model over ranks, in place; collective.

    Every rank then computes what the whole model does, with its part of the weights: inputs have to
    be the same on all ranks, outputs are. Parameters keep their names; `divisions` says which of
    them are parts, and of what. Gradients are those of the whole model, or the part of them.

    Args:
        module: the same on all ranks; rank 0's weights are taken. What is on the device "meta"
            stays there, divided.
        comm: the ranks, such as `mesh["tp"]`.
        plan: the style of each layer to divide by its name; None takes `ready_plan(module)`.
        sequence: also divide what is between divided layers, along the sequence.
        sequence_dim: the dimension of the sequence: 1 if activations are (batch, length, width).

    Returns:
        `module`; or what takes its place if the plan divides it itself, as "".

    Raises:
        ArgumentError: a name or style does not exist, or a layer cannot be divided over so many
            ranks; on every rank. Some layers may be divided then: make the model anew.
        MismatchError: models or arguments differ between ranks.
    """
    chosen = on_every_rank(comm, lambda: _resolve(module, plan))
    told = [(name, s if isinstance(s, str) else s.__name__) for name, s in chosen.items()]
    dim = sequence_dim if sequence else None
    check_equal(comm, "plan, sequence and sequence_dim", (told, dim))
    check_same_model(module, comm)
    _copy_from_rank_0(module, comm)
    ties = _tied(module)
    regions: dict[str, SequenceRegion] = {}
    for name, style in chosen.items():
        layer = _layer(module, name)
        divided = find(style)(layer, Place(name, comm, dim, regions))
        if divided is not layer:
            module = _replace(module, name, divided.train(layer.training))
    _tie_again(module, ties)
    _join_neighbours(module, regions)
    return module


def _resolve(module: nn.Module, plan: Plan | None) -> dict[str, str | Style]:
    """Return the style of each layer by its full name."""
    if plan is None:
        return ready_plan(module)
    names = [name for name, _ in module.named_modules()]
    chosen: dict[str, str | Style] = {}
    for pattern, style in plan.items():
        find(style)
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            raise ArgumentError(f"no layer is named {pattern!r}{nearest(pattern, names[1:])}")
        chosen |= dict.fromkeys(matches, style)
    if not chosen:
        raise ArgumentError("an empty plan divides nothing: pass {name: style}, or None")
    return chosen


def _copy_from_rank_0(module: nn.Module, comm: Communicator) -> None:
    for _, tensor in tensors(module):
        if not tensor.is_meta:
            comm.broadcast(tensor, root=0)


def _layer(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise ArgumentError(
            f"{name!r} is inside of a layer that the plan divides as a whole: leave it out"
        ) from None


def _replace(module: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Put a layer where that of a name is; return the model."""
    if not name:
        return layer
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)
    return module


def _tied(module: nn.Module) -> list[list[str]]:
    """Return the names of parameters that are one and the same, if they have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [several for several in names.values() if len(several) > 1]


def _tie_again(module: nn.Module, ties: list[list[str]]) -> None:
    """Make the parts of one parameter one again.

    Raises:
        ArgumentError: they are different parts.
    """
    divided = divisions(module)
    for first, *others in ties:
        parameter = module.get_parameter(first)
        for other in others:
            if divided.get(first) != divided.get(other):
                raise ArgumentError(
                    f"{first!r} and {other!r} are one parameter, but the plan divides them in "
                    "different ways: divide both by the same dimension, or neither"
                )
            _set_parameter(module, other, parameter)


def _set_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, parameter)


def _join_neighbours(module: nn.Module, regions: dict[str, SequenceRegion]) -> None:
    """Leave sequences divided between layers that are known to follow each other."""
    for prefix, container in module.named_modules():
        if isinstance(container, nn.TransformerEncoder):
            prefix, container = f"{prefix}.layers".lstrip("."), container.layers
        elif type(container).forward is not nn.Sequential.forward:
            continue
        found = [regions.get(f"{prefix}.{child}".lstrip(".")) for child in container._modules]
        for first, second in pairwise(found):
            if first is not None and second is not None:
                join(first, second)
