"""The table of what is measured: what each operation reads, writes, must give, and moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from bench.patterns import Pattern
from pycomm.arrays import numpy_dtype
from pycomm.types import DTYPES

Extent = Literal["none", "chunk", "whole"]
Place = Literal["in", "out"]


@dataclass(frozen=True)
class Operation:
    """A collective, or a way to exchange messages.

    Attributes:
        name: as in the Communicator, if it is a collective.
        bus: ranks → bytes over the busiest link per byte of size.
        input: how much of the size each rank gives.
        output: how much of it each rank gets.
        result: what a rank must have afterwards; None where that is not defined.
        places: the first is the default; "in" has input and output in the same memory.
        reduces: whether it takes a reduce operation.
        rooted: whether it takes a root.
        given: whether only the root gives anything.
        trips: how many times the size is sent one after the other; the time is that of one.
        message: whether it is made of messages between pairs of ranks.
    """

    name: str
    bus: Callable[[int], float]
    input: Extent
    output: Extent
    result: Callable[[Case, Pattern], np.ndarray | None]
    places: tuple[Place, ...] = ("in",)
    reduces: bool = False
    rooted: bool = False
    given: bool = False
    trips: int = 1
    message: bool = False


@dataclass(frozen=True)
class Case:
    """One operation on one size, as one rank sees it; `count` is the elements of the size."""

    op: Operation
    dtype: str
    redop: str
    root: int
    place: Place
    count: int
    rank: int
    ranks: int

    @cached_property
    def numpy(self) -> np.dtype:
        """The dtype as NumPy has it."""
        return numpy_dtype(DTYPES[self.dtype])

    @property
    def size_bytes(self) -> int:
        """The size that the output shows, as nccl-tests defines it: the larger of all buffers."""
        return self.count * self.numpy.itemsize

    @property
    def partner(self) -> int:
        """The rank to exchange messages with: 0 and 1 are a pair, 2 and 3, …."""
        return self.rank ^ 1

    @property
    def gives(self) -> bool:
        """Whether this rank's input counts."""
        return not self.op.given or self.rank == self.root

    def elements(self, extent: Extent) -> int:
        """Return how many elements an extent is."""
        return {"none": 0, "chunk": self.count // self.ranks, "whole": self.count}[extent]

    def chunk(self) -> slice:
        """Return where this rank's chunk of a whole buffer is."""
        length = self.count // self.ranks
        return slice(self.rank * length, (self.rank + 1) * length)


def fitting_count(op: Operation, size_bytes: int, itemsize: int, ranks: int) -> int:
    """Return the elements of a size, at least one a chunk, and as many in each chunk."""
    unit = ranks if "chunk" in (op.input, op.output) or op.name == "all_to_all" else 1
    return 0 if op.input == "none" else max(1, size_bytes // itemsize // unit) * unit


def _reduced(case: Case, pattern: Pattern) -> np.ndarray:
    return pattern.reduced(0, case.count)


def _reduced_at_root(case: Case, pattern: Pattern) -> np.ndarray | None:
    return _reduced(case, pattern) if case.rank == case.root else None


def _reduced_chunk(case: Case, pattern: Pattern) -> np.ndarray:
    return pattern.reduced(case.chunk().start, case.elements("chunk"))


def _of_root(case: Case, pattern: Pattern) -> np.ndarray:
    return pattern.of(case.root, 0, case.count)


def _chunk_of_root(case: Case, pattern: Pattern) -> np.ndarray:
    return pattern.of(case.root, case.chunk().start, case.elements("chunk"))


def _gathered(case: Case, pattern: Pattern) -> np.ndarray:
    return np.concatenate([pattern.of(r, 0, case.elements("chunk")) for r in range(case.ranks)])


def _gathered_at_root(case: Case, pattern: Pattern) -> np.ndarray | None:
    return _gathered(case, pattern) if case.rank == case.root else None


def _exchanged(case: Case, pattern: Pattern) -> np.ndarray:
    start, length = case.chunk().start, case.elements("chunk")
    return np.concatenate([pattern.of(r, start, length) for r in range(case.ranks)])


def _of_partner(case: Case, pattern: Pattern) -> np.ndarray:
    return pattern.of(case.partner, 0, case.count)


def _received(case: Case, pattern: Pattern) -> np.ndarray | None:
    return _of_partner(case, pattern) if case.rank % 2 else None


def _nothing(case: Case, pattern: Pattern) -> None:
    return None


def _one(ranks: int) -> float:
    return 1.0


def _others(ranks: int) -> float:
    return (ranks - 1) / ranks


def _twice_others(ranks: int) -> float:
    return 2 * (ranks - 1) / ranks


WINDOW = 16
"""Messages of a stream that are sent before an answer is waited for."""

COLLECTIVES = {
    op.name: op
    for op in [
        Operation("all_reduce", _twice_others, "whole", "whole", _reduced, reduces=True),
        Operation(
            "reduce_scatter",
            _others,
            "whole",
            "chunk",
            _reduced_chunk,
            places=("out", "in"),
            reduces=True,
        ),
        Operation("all_gather", _others, "chunk", "whole", _gathered, places=("out", "in")),
        Operation("all_to_all", _others, "whole", "whole", _exchanged, places=("out",)),
        Operation("broadcast", _one, "whole", "whole", _of_root, rooted=True, given=True),
        Operation("reduce", _one, "whole", "whole", _reduced_at_root, reduces=True, rooted=True),
        Operation(
            "gather", _others, "chunk", "whole", _gathered_at_root, places=("out",), rooted=True
        ),
        Operation(
            "scatter",
            _others,
            "whole",
            "chunk",
            _chunk_of_root,
            places=("out",),
            rooted=True,
            given=True,
        ),
        Operation("barrier", _one, "none", "none", _nothing),
    ]
}
"""What collectives.py measures, where pycomm has it."""

MESSAGES = {
    op.name: op
    for op in [
        Operation(
            "ping_pong", _one, "whole", "whole", _of_partner, ("out",), trips=2, message=True
        ),
        Operation(
            "stream", _one, "whole", "whole", _received, ("out",), trips=WINDOW, message=True
        ),
    ]
}
"""What p2p.py measures: half a round trip; a message of many one way, back to back."""
