"""How ranks cooperate: every algorithm, registered by importing its module."""

from pycomm.algorithms import direct, pairwise, recursive, ring, rooted

__all__ = ["direct", "pairwise", "recursive", "ring", "rooted"]
