"""How ranks cooperate: every algorithm, registered by importing its module."""

from pycomm.algorithms import (
    direct,
    gather,
    hierarchical,
    pairwise,
    rails,
    recursive,
    ring,
    rooted,
)

__all__ = ["direct", "gather", "hierarchical", "pairwise", "rails", "recursive", "ring", "rooted"]
