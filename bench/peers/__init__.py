"""Whom pycomm is compared with, one class each; importing this registers them all."""

from bench.peers import deepspeed, device_limits, gloo, limit, mpi, mpi_staged, own
from bench.peers.base import PEERS, Peer, UnavailableError

__all__ = ["PEERS", "Peer", "UnavailableError"]
