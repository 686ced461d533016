"""Symmetric buffers of node-mates, as arrays of this rank."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from pycomm import _native, arrays
from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.transport.sharing import Exchange


@dataclass(frozen=True)
class Offer:
    """What a rank passes: what it is, and where it lies; `place` is None if nobody can map it."""

    dtype: str
    shape: tuple[int, ...]
    pid: int
    place: tuple[int, int, int, int] | None


def mates_views(x: Any, rank: int, shared: bool, exchange: Exchange) -> list[Any]:
    """Return the arrays that all ranks pass; see Communicator.views.

    Args:
        shared: whether the ranks share memory.
        exchange: gathers one object of every rank.
    """
    offers = exchange(_offer(x))
    if len(offers) == 1:
        return [x]
    if not shared:
        raise UnsupportedError(
            f"rank {rank}: views needs ranks that share memory: use comm.local, and PYCOMM_"
            f"SHARED_MEMORY=1"
        )
    for other, offer in enumerate(offers):
        _check(offer, other, rank)
    as_tensor = arrays.is_tensor(x)
    return [x if r == rank else _mapped(o, as_tensor) for r, o in enumerate(offers)]


def _offer(x: Any) -> Offer:
    found = arrays.view(x)
    place = None
    if found.device == arrays.HOST and not found.packed and found.count:
        place = _native.place(found.address)
    elif not found.count:
        place = (0, 0, 0, 0)
    return Offer(found.dtype.name, tuple(x.shape), os.getpid(), place)


def _check(offer: Offer, other: int, rank: int) -> None:
    if offer.place is None or (0 not in offer.shape and offer.place[0] == 0):
        raise ArgumentError(
            f"rank {other} passes memory that others cannot map (this is rank {rank}): "
            f"pass what comm.empty returns, or a contiguous part of it, in host memory"
        )


def _mapped(offer: Offer, as_tensor: bool) -> Any:
    dtype = arrays.resolve_dtype(offer.dtype)
    nbytes = dtype.itemsize
    for length in offer.shape:
        nbytes *= length
    memory = _native.PeerMemory(offer.pid, *offer.place, nbytes) if nbytes and offer.place else b""
    return arrays.laid_into(memory, offer.shape, dtype, as_tensor)
