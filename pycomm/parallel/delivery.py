"""Delivery: the weights of a whole model, from the rank that has them to the stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pycomm.parallel.parts import Part
from pycomm.parallel.replicate import tensors

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


def deliver(parts: Sequence[Part], comm: Communicator) -> None:
    """Send each stage's parameters and buffers from rank 0 to the rank that runs it."""
    for stage, part in enumerate(parts):
        rank = stage % comm.size
        for _, tensor in tensors(part.module) if rank > 0 else ():
            if comm.rank == 0:
                comm.send(tensor, rank)
            elif comm.rank == rank:
                comm.recv(0, out=tensor)
