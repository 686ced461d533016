"""Making ranks agree: the same arguments, the same model, the same values in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from pycomm.errors import CommError, MismatchError

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


T = TypeVar("T")


def tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter and buffer of `module` once, with its full name, detached.

    A detached tensor shares its memory, so writing to it changes the model.
    """
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        yield name, tensor.detach()


def check_equal(comm: Communicator, what: str, value: Any) -> None:
    """Return if all ranks gave an equal `value`, a small picklable object.

    Raises:
        MismatchError: on every rank; the message names the first rank that differs from rank 0.
    """
    values = comm.all_gather_object(value)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise MismatchError(
                f"{what} differ: rank 0 has {values[0]}, rank {rank} has {other} "
                f"(this is rank {comm.rank}): pass the same on every rank"
            )


def raise_together(comm: Communicator, error: CommError | None) -> None:
    """Raise the error of the first rank that has one, on every rank; return if none has."""
    for rank, failure in enumerate(comm.all_gather_object(error)):
        if failure is not None:
            raise type(failure)(f"rank {rank}: {failure}") from error


def on_every_rank(comm: Communicator, action: Callable[[], T]) -> T:
    """Return what `action` returns here; if it raises a CommError on any rank, raise on all."""
    result, error = None, None
    try:
        result = action()
    except CommError as caught:
        error = caught
    raise_together(comm, error)
    return cast(T, result)


def check_same_model(module: nn.Module, comm: Communicator) -> None:
    """Return if parameters and buffers have the same names, shapes and dtypes on all ranks.

    Only a digest travels, unless the models differ.

    Raises:
        MismatchError: on every rank; the message names the first parameter that differs.
    """
    rows = _signature(module)
    digests = comm.all_gather_object(hashlib.sha256(repr(rows).encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    signatures = comm.all_gather_object(rows)
    other = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    raise MismatchError(
        f"models differ: {_first_difference(signatures, other)} "
        f"(this is rank {comm.rank}): build the same model on every rank"
    )


def copy_from_rank_0(module: nn.Module, comm: Communicator, *, buffers_only: bool = False) -> None:
    """Overwrite parameters and buffers with those of rank 0; every rank must call it."""
    parameters = {name for name, _ in module.named_parameters()} if buffers_only else set()
    for name, tensor in tensors(module):
        if name not in parameters:
            comm.broadcast(tensor, root=0)


def _signature(module: nn.Module) -> list[tuple[str, str]]:
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    return [
        (name, f"{t.dtype} of shape {tuple(t.shape)}{', trainable' * (name in trainable)}")
        for name, t in tensors(module)
    ]


def _first_difference(signatures: list[list[tuple[str, str]]], other: int) -> str:
    ours, theirs = signatures[0], signatures[other]
    for mine, its in zip(ours, theirs):
        if mine != its:
            return f"rank 0 has {mine[0]!r} ({mine[1]}), rank {other} has {its[0]!r} ({its[1]})"
    longer, rank = (ours, 0) if len(ours) > len(theirs) else (theirs, other)
    name, kind = longer[min(len(ours), len(theirs))]
    return f"only rank {rank} has {name!r} ({kind})"
