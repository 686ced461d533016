"""What parts share: tied weights, and what no cut may go through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import nn

from pycomm.errors import ArgumentError
from pycomm.parallel.parts import Part
from pycomm.parallel.ties import Tie

_WHAT_TO_DO = "keep them in one part by cuts= or other costs in balance="


def find_ties(root: nn.Module, parts: Sequence[Part]) -> list[Tie]:
    """Return the parameters that several parts hold, in the order of the whole model.

    Raises:
        ArgumentError: parts share what cannot be kept equal: memory that several parameters or
            buffers see (views, a transposed weight), or a layer whose forward changes buffers.
    """
    _refuse_updated_buffers(parts)
    _refuse_views(parts)
    names: dict[int, list[str]] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    stages: dict[int, list[int]] = {key: [] for key in names}
    for stage, part in enumerate(parts):
        for parameter in part.module.parameters():
            stages[id(parameter)].append(stage)
    return [
        Tie(tuple(names[key]), tuple(holders))
        for key, holders in stages.items()
        if len(holders) > 1
    ]


def shared_buffers(parts: Sequence[Part]) -> list[str]:
    """Return the names of buffers that several parts hold; forward must not change them."""
    owner: dict[int, int] = {}
    found = []
    for stage, part in enumerate(parts):
        for name, buffer in part.module.named_buffers():
            if owner.setdefault(id(buffer), stage) != stage:
                found.append(name)
    return list(dict.fromkeys(found))


def _refuse_updated_buffers(parts: Sequence[Part]) -> None:
    """Refuse a norm with running statistics in several parts: each would keep its own."""
    owner: dict[int, int] = {}
    for stage, part in enumerate(parts):
        for name, module in part.module.named_modules():
            if getattr(module, "running_mean", None) is None:
                continue
            other = owner.setdefault(id(module), stage)
            if other != stage:
                raise ArgumentError(
                    f"the cut goes through a tie that cannot be resolved: {name!r}, a "
                    f"{type(module).__name__} with running statistics, is in parts {other} and "
                    f"{stage}, and each would see half of its inputs: {_WHAT_TO_DO}, or give each "
                    f"part a layer of its own"
                )


def _refuse_views(parts: Sequence[Part]) -> None:
    """Refuse different tensors of different parts that see the same memory."""
    known: dict[int, list[tuple[int, str, torch.Tensor]]] = {}
    for stage, part in enumerate(parts):
        for name, tensor in _tensors(part.module):
            known.setdefault(tensor.untyped_storage()._cdata, []).append((stage, name, tensor))
    for tensors in known.values():
        for (one, a, x), (other, b, y) in combinations(tensors, 2):
            if one != other and x is not y and _overlap(x, y):
                raise ArgumentError(
                    f"the cut goes through a tie that cannot be resolved: {a!r} of shape "
                    f"{tuple(x.shape)} in part {one} and {b!r} of shape {tuple(y.shape)} in part "
                    f"{other} are different tensors in the same memory: make them one nn.Parameter "
                    f"(and transpose it where it is used), or {_WHAT_TO_DO}"
                )


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _overlap(x: torch.Tensor, y: torch.Tensor) -> bool:
    (a, b), (c, d) = _extent(x), _extent(y)
    return a < d and c < b


def _extent(x: torch.Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor in its storage, and the one behind its last."""
    if x.numel() == 0:
        return 0, 0
    first = int(x.storage_offset())
    last = first + sum((n - 1) * int(stride) for n, stride in zip(x.shape, x.stride()))
    return first * x.itemsize, (last + 1) * x.itemsize
