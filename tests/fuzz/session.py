"""A run of random steps on all ranks: collectives, messages, groups that come and go."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import pycomm
from tests.fuzz import collectives, messages
from tests.fuzz.collectives import Call, Check
from tests.fuzz.draw import Draw

MOST_GROUPS = 6
MOST_PENDING = 20


@dataclass(eq=False)
class Group:
    """A communicator that all ranks know of; `ranks` are the world's, in its order."""

    ranks: list[int]
    comm: pycomm.Communicator | None
    pending: list[tuple[Any, Check]] = field(default_factory=list)

    def finish(self, most: int = 0) -> None:
        """Wait for the oldest operations, so that at most so many are left."""
        while len(self.pending) > most:
            work, check = self.pending.pop(0)
            check(work.wait())


class Session:
    """Runs the steps that `seed` determines; every rank must run as many.

    Args:
        comm: the world.
        seed: what all random choices come from.
    """

    def __init__(self, comm: pycomm.Communicator, seed: int):
        self._world = comm
        self._seed = seed
        self._groups = [Group(list(range(comm.size)), comm)]
        if comm.local is not comm:
            self._groups.append(Group(self._ranks_of(comm.local), comm.local))
        self._kept = len(self._groups)

    def run(self, steps: int | None, seconds: float = 0.0) -> int:
        """Run so many steps, or for about so many seconds; return how many.

        Raises:
            AssertionError: a result was wrong; says with which seed and step. Other exceptions of
                a step get a note that does.
        """
        end, step = time.monotonic() + seconds, 0
        try:
            for step in itertools.count():
                if step == steps or (steps is None and step % 50 == 0 and self._over(end)):
                    break
                self._step(step)
            self._close(self._groups[self._kept :])
            for group in self._groups:
                group.finish()
        except BaseException as error:
            where = f"rank {self._world.rank} of {self._world.size}, seed {self._seed}, step {step}"
            raise AssertionError(f"{where}: {error}") from error
        return step

    def _over(self, end: float) -> bool:
        return bool(self._world.broadcast_object(time.monotonic() > end))

    def _step(self, step: int) -> None:
        draw = Draw(self._seed, step)
        own = Draw(self._seed, step, self._world.rank)
        own.dawdle()
        group = draw.choice(self._groups)
        if draw.chance(0.03):
            self._split(group, draw)
        elif draw.chance(0.02):
            self._close([g for g in self._groups[self._kept :] if draw.chance(0.5)])
        elif group.comm is not None:
            self._on(group, Call.of(group.comm, draw, own, step))
            group.finish(own.randrange(MOST_PENDING))

    def _on(self, group: Group, call: Call) -> None:
        what = call.draw.random()
        if what < 0.02:
            collectives.objects(call)
        elif what < 0.1:
            messages.one_by_one(call)
        elif what < 0.25:
            group.pending += messages.all_at_once(call)
        else:
            later = {"async_op": True} if call.draw.chance(0.3) else {}
            result, check = call.draw.choice(collectives.KINDS)(call, **later)
            if later:
                group.pending.append((result, check))
            else:
                check(result)

    def _split(self, parent: Group, draw: Draw) -> None:
        """Split a group by color and key; some take no part."""
        if len(self._groups) >= MOST_GROUPS:
            return
        colors = [draw.choice([0, 0, 1, None]) for _ in parent.ranks]
        keys = [draw.randrange(3) for _ in parent.ranks]
        mine = None
        if parent.comm is not None:
            me = parent.ranks.index(self._world.rank)
            mine = parent.comm.split(colors[me], keys[me])
        for color in (0, 1):
            members = [r for r, c in zip(parent.ranks, colors) if c == color]
            members.sort(key=lambda r: (keys[parent.ranks.index(r)], parent.ranks.index(r)))
            if members:
                comm = mine if self._world.rank in members else None
                assert comm is None or comm.rank == members.index(self._world.rank)
                self._groups.append(Group(members, comm))

    def _close(self, groups: list[Group]) -> None:
        for group in groups:
            self._groups.remove(group)
            if group.comm is not None:
                group.finish()
                group.comm.close()

    def _ranks_of(self, comm: pycomm.Communicator) -> list[int]:
        return comm.all_gather_object(self._world.rank)
