"""Random messages: any tag, any posting order, from a rank or from anyone, also to oneself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import pycomm
from pycomm.types import DTYPES
from tests.fuzz.arrays import flat, same
from tests.fuzz.collectives import Call, Check
from tests.fuzz.draw import contents

Pending = tuple[Any, Check]
"""A Work, and the check of its result."""


@dataclass(frozen=True)
class Message:
    """One of a step's messages; `anyone`: its receiver takes those of its tag from all ranks."""

    step: int
    serial: int
    source: int
    to: int
    tag: int
    anyone: bool
    dtype: str
    shape: tuple[int, ...]

    @property
    def values(self) -> np.ndarray:
        """What is sent."""
        return contents(DTYPES[self.dtype], self.shape, self.step, self.serial)


def plan(c: Call) -> list[Message]:
    """Draw the messages of a step; their tags are the step's own."""
    messages = []
    for serial in range(c.draw.randint(1, 3 * c.comm.size)):
        dtype, tag = c.draw.dtype(), c.draw.randrange(4)
        shape = c.draw.shape(dtype, c.draw.nbytes(1 << 20))
        ends = c.root(), c.root()
        number = (4 * c.step + tag) * (-1) ** tag
        messages.append(Message(c.step, serial, *ends, number, tag == 3, dtype.name, shape))
    return messages


def one_by_one(c: Call) -> None:
    """Send and receive, one message after another."""
    me = c.comm.rank
    for m in plan(c):
        c.own.dawdle()
        if m.source == me:
            c.comm.send(c.lay(m.values)[0], m.to, m.tag)
        if m.to == me:
            out = c.into(DTYPES[m.dtype], m.shape)
            y = c.comm.recv(m.source, m.tag, out, copy=c.own.chance(0.5))
            c.result(out, m.values)(y)


def all_at_once(c: Call) -> list[Pending]:
    """Post all sends and receives in any order that keeps those of one peer and tag in theirs."""
    posts: dict[Any, list[Callable[[], Pending]]] = defaultdict(list)
    from_anyone = defaultdict(list)
    for m in plan(c):
        if m.source == c.comm.rank:
            posts[("to", m.to, m.tag)].append(lambda m=m: _send(c, m))
        if m.to == c.comm.rank:
            key = ("anyone" if m.anyone else m.source, m.tag)
            from_anyone[m.tag] += [m] if m.anyone else []
            posts[key].append(lambda m=m: _receive(c, m, from_anyone[m.tag]))
    order = [key for key, queue in posts.items() for _ in queue]
    c.own.shuffle(order)
    return [posts[key].pop(0)() for key in order]


def _send(c: Call, m: Message) -> Pending:
    x, unchanged = c.lay(m.values)

    def check(result: Any) -> None:
        assert result is None
        unchanged(m.values)

    return c.comm.isend(x, m.to, m.tag), check


def _receive(c: Call, m: Message, expected: list[Message]) -> Pending:
    if m.anyone:
        work = c.comm.irecv(pycomm.ANY, m.tag, copy=c.own.chance(0.5))
        return work, lambda result: _one_of(expected, result)
    out = c.into(DTYPES[m.dtype], m.shape)
    work = c.comm.irecv(m.source, m.tag, out, copy=c.own.chance(0.5))
    return work, c.result(out, m.values)


def _one_of(expected: list[Message], result: Any) -> None:
    """Find the message that `result` is, and expect it no more."""
    for i, m in enumerate(expected):
        if tuple(result.shape) == m.shape and flat(result) == m.values.tobytes():
            same(result, expected.pop(i).values, "from anyone")
            return
    raise AssertionError(f"nobody sent shape {tuple(result.shape)} of {result.dtype}")
