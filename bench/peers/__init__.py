"""Whom pycomm is compared with, one class each; importing this registers them all."""

from bench.peers import deepspeed, gloo, limit, mpi, own
from bench.peers.base import PEERS, Peer, UnavailableError

__all__ = ["PEERS", "Peer", "UnavailableError"]
