"""Reading a model: which way it becomes a flow of layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

from torch import nn
from torch.nn.parameter import is_lazy

from pycomm.errors import ArgumentError
from pycomm.parallel.partition import layers_of
from pycomm.parallel.splitting.blocks import Blocks, Leaves
from pycomm.parallel.splitting.flow import Flow, chain
from pycomm.parallel.splitting.tracer import trace

Model = nn.Module | Sequence[nn.Module]


def whole(model: Model) -> nn.Module:
    """Return the model as one module: a list of layers as nn.Sequential, anything else as it is."""
    if isinstance(model, nn.Module) and not isinstance(model, nn.ModuleList):
        return model
    return nn.Sequential(OrderedDict(layers_of(model)))


def read(
    model: Model,
    stages: int = 1,
    cuts: Collection[str] = (),
    leaves: Leaves = (),
    inputs: Sequence[str] | None = None,
) -> Flow:
    """Return the flow of a model: as many layers as it shows, at least `stages` if it can be.

    The layers of an nn.Sequential or a list are its elements, which may hand on anything. Any
    other model is traced, and so are those if there are too few elements, or a cut lies inside.

    Raises:
        ArgumentError: it cannot be traced, or has parameters that wait for their first input.
    """
    root = whole(model)
    for name, parameter in root.named_parameters():
        if is_lazy(parameter):
            raise ArgumentError(f"parameter {name!r} has no shape yet: run the model once before")
    if isinstance(root, nn.Sequential) and type(root).forward is nn.Sequential.forward:
        layers = layers_of(root)
        enough = len(layers) >= stages or not layers
        if enough and not any("." in cut for cut in cuts) and not leaves:
            return chain(root, layers)
        inputs = None
    return trace(root, Blocks(root, leaves, cuts), inputs)
