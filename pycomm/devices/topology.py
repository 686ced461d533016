"""Which ranks share a GPU, and whose memory can be reached; found out, never configured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Mode = Literal["shared", "peer", "staged"]


def mode(gpus: Sequence[str], access: Sequence[Sequence[bool]]) -> Mode:
    """Return how the ranks reach each other's memory.

    Args:
        gpus: the physical GPU of every rank.
        access: access[r][q] says whether rank r can use the memory of rank q's GPU.

    Returns:
        "peer" if every rank has a GPU of its own and access to all; "shared" if several ranks have
        the same one, and access to all others; "staged" if some memory cannot be reached.
    """
    if not all(map(all, access)):
        return "staged"
    return "peer" if len(set(gpus)) == len(gpus) else "shared"


def launchers(gpus: Sequence[str], every_rank: bool) -> list[int]:
    """Return the ranks that launch kernels: all, or the first one of each GPU."""
    ranks = range(len(gpus))
    return list(ranks) if every_rank else [r for r in ranks if gpus.index(gpus[r]) == r]
