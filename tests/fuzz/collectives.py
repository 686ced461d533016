"""One random call of each collective, and what it must give on this rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import pycomm
from pycomm.algorithms.registry import algorithms
from pycomm.arrays import numpy_dtype
from pycomm.types import DType
from tests.algorithms.reference import in_order
from tests.fuzz.arrays import FORMS, same
from tests.fuzz.draw import Draw, contents

Check = Callable[[Any], None]
"""Given the result of a call, raises AssertionError if anything is wrong."""


@dataclass
class Call:
    """What one step has on one rank of a communicator; all but `own` is the same on all of them."""

    comm: pycomm.Communicator
    draw: Draw
    own: Draw
    step: int
    kinds: list[Any]

    @classmethod
    def of(cls, comm: pycomm.Communicator, draw: Draw, own: Draw, step: int) -> Call:
        """Draw of what kind the arrays are: everyone's of one, or of any."""
        kinds = [draw.choice(FORMS)] if draw.chance(0.7) else FORMS
        return cls(comm, draw, own, step, kinds)

    def values(self, rank: int, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
        """Return what `rank` brings."""
        return contents(dtype, shape, self.step, rank)

    def everyone(self, dtype: DType, shape: tuple[int, ...]) -> list[np.ndarray]:
        """Return what all ranks bring."""
        return [self.values(rank, dtype, shape) for rank in range(self.comm.size)]

    def lay(self, x: np.ndarray) -> tuple[Any, Check]:
        """Return an array of some kind with these contents, and a check of what it must become."""
        array, intact = self.own.choice(self.kinds)(self.comm, x)

        def check(expected: np.ndarray) -> None:
            same(array, expected, f"step {self.step}, rank {self.comm.rank}")
            assert intact(), f"step {self.step}: memory beside the array was written"

        return array, check

    def into(self, dtype: DType, shape: tuple[int, ...]) -> Any:
        """Return an array for the result, or None."""
        return self.lay(np.ones(shape, numpy_dtype(dtype)))[0] if self.own.chance(0.5) else None

    def root(self) -> int:
        """Return any rank."""
        return self.draw.randrange(self.comm.size)

    def algorithm(self, kind: str, exact: bool) -> str | None:
        """Return, now and then, the name of an algorithm that runs anywhere, in any order."""
        names = [a.name for a in algorithms(kind) if a.name != "direct" and not a.by_host]
        return self.draw.choice(names) if exact and self.draw.chance(0.1) else None

    def result(self, out: Any, expected: np.ndarray) -> Check:
        """Return the check of a result, which is `out` where there is one."""

        def check(result: Any) -> None:
            assert out is None or result is out
            same(result, expected, f"step {self.step}, rank {self.comm.rank}")

        return check


Started = tuple[Any, Check]
"""What a call returned, and its check."""


def barrier(c: Call, **later: Any) -> Started:
    return c.comm.barrier(**later), lambda result: None


def all_reduce(c: Call, **later: Any) -> Started:
    dtype = c.draw.dtype()
    op, shape = c.draw.op(dtype), c.draw.shape(dtype, c.draw.nbytes())
    everyone = c.everyone(dtype, shape)
    x, check = c.lay(everyone[c.comm.rank])
    name = c.algorithm("all_reduce", dtype.family in ("integer", "bool"))
    result = c.comm.all_reduce(x, op, algorithm=name, **later)
    return result, lambda result: check(in_order(everyone, dtype, op).reshape(shape))


def reduce(c: Call, **later: Any) -> Started:
    dtype = c.draw.dtype()
    op, shape, root = c.draw.op(dtype), c.draw.shape(dtype, c.draw.nbytes()), c.root()
    everyone, me = c.everyone(dtype, shape), c.comm.rank
    x, check = c.lay(everyone[me])

    def checked(result: Any) -> None:
        assert result is (x if me == root else None)
        check(in_order(everyone, dtype, op).reshape(shape) if me == root else everyone[me])

    return c.comm.reduce(x, root, op, **later), checked


def broadcast(c: Call, **later: Any) -> Started:
    dtype = c.draw.dtype()
    shape, root = c.draw.shape(dtype, c.draw.nbytes()), c.root()
    x, check = c.lay(c.values(c.comm.rank, dtype, shape))
    name = c.algorithm("broadcast", True)
    result = c.comm.broadcast(x, root, algorithm=name, **later)
    return result, lambda result: check(c.values(root, dtype, shape))


def _rows(c: Call, dtype: DType) -> tuple[tuple[int, ...], list[int] | None, list[np.ndarray]]:
    """Return the shape of a row, counts of rows or None, and everyone's rows."""
    shape, size = c.draw.shape(dtype, c.draw.nbytes() // c.comm.size), c.comm.size
    counts = None
    if shape and c.draw.chance(0.5):
        counts = c.draw.parts(shape[0] * size, size)
    shapes = [shape if counts is None else (counts[r], *shape[1:]) for r in range(size)]
    return shape, counts, [c.values(r, dtype, s) for r, s in enumerate(shapes)]


def all_gather(c: Call, **later: Any) -> Started:
    dtype = c.draw.dtype()
    _, counts, everyone = _rows(c, dtype)
    expected = np.stack(everyone) if counts is None else np.concatenate(everyone)
    x, out = c.lay(everyone[c.comm.rank])[0], c.into(dtype, expected.shape)
    return c.comm.all_gather(x, out, counts, **later), c.result(out, expected)


def reduce_scatter(c: Call, **later: Any) -> Started:
    dtype, size, me = c.draw.dtype(), c.comm.size, c.comm.rank
    op, shape = c.draw.op(dtype), c.draw.shape(dtype, c.draw.nbytes() // size) or (1,)
    whole = (shape[0] * size, *shape[1:])
    counts = c.draw.parts(whole[0], size) if c.draw.chance(0.5) else None
    rows = counts or [shape[0]] * size
    everyone = c.everyone(dtype, whole)
    begin = sum(rows[:me])
    expected = in_order(everyone, dtype, op).reshape(whole)[begin : begin + rows[me]]
    x, out = c.lay(everyone[me])[0], c.into(dtype, expected.shape)
    return c.comm.reduce_scatter(x, op, out, counts, **later), c.result(out, expected)


def gather(c: Call, **later: Any) -> Started:
    dtype, root = c.draw.dtype(), c.root()
    everyone = c.everyone(dtype, c.draw.shape(dtype, c.draw.nbytes() // c.comm.size))
    x, expected = c.lay(everyone[c.comm.rank])[0], np.stack(everyone)
    if c.comm.rank != root:
        result = c.comm.gather(x, root, **later)
        return result, lambda result: _is_none(result)
    out = c.into(dtype, expected.shape)
    return c.comm.gather(x, root, out, **later), c.result(out, expected)


def _is_none(result: Any) -> None:
    assert result is None


def scatter(c: Call, **later: Any) -> Started:
    dtype, root = c.draw.dtype(), c.root()
    shape = c.draw.shape(dtype, c.draw.nbytes() // c.comm.size)
    whole = c.values(root, dtype, (c.comm.size, *shape))
    x = c.lay(whole)[0] if c.comm.rank == root else None
    out = c.into(dtype, shape)
    return c.comm.scatter(x, root, out, **later), c.result(out, whole[c.comm.rank])


def all_to_all(c: Call, **later: Any) -> Started:
    dtype, size, me = c.draw.dtype(), c.comm.size, c.comm.rank
    shape = c.draw.shape(dtype, c.draw.nbytes() // size)
    if not shape or c.draw.chance(0.5):
        everyone = c.everyone(dtype, (size, *shape))
        expected, counts = np.stack([x[me] for x in everyone]), ()
    else:
        sent = [c.draw.parts(shape[0] * size, size) for _ in range(size)]
        wholes = c.everyone(dtype, (shape[0] * size, *shape[1:]))
        rows = [np.split(x, np.cumsum(s)[:-1]) for x, s in zip(wholes, sent)]
        everyone, expected = wholes, np.concatenate([r[me] for r in rows])
        received = [s[me] for s in sent]
        counts = (sent[me], received if c.own.chance(0.5) else None)
    x, out = c.lay(everyone[me])[0], c.into(dtype, expected.shape)
    return c.comm.all_to_all(x, out, *counts, **later), c.result(out, expected)


KINDS = (
    barrier,
    all_reduce,
    all_reduce,
    reduce,
    broadcast,
    all_gather,
    reduce_scatter,
    gather,
    scatter,
    all_to_all,
)


def objects(c: Call) -> None:
    """Broadcast and gather objects of any size."""
    root, length = c.root(), c.draw.nbytes(100_000)
    thing = {"rank": c.comm.rank, "text": "ä" * length}
    assert c.comm.broadcast_object(thing, root) == {"rank": root, "text": "ä" * length}
    lengths = [len(o) for o in c.comm.all_gather_object(b"x" * (length * c.comm.rank))]
    assert lengths == [length * r for r in range(c.comm.size)]
    assert math.isfinite(length)
