"""Which values travel from which stage to which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pycomm.errors import ArgumentError
from pycomm.parallel.parts import INPUT, OUTPUT, Part


@dataclass(frozen=True)
class Route:
    """The way of a value from the stage that gives it to one that takes it.

    Attributes:
        number: of the route, from 0, the same on every rank.
        value: its name.
        giver, taker: the stages.
    """

    number: int
    value: str
    giver: int
    taker: int


def routes_of(parts: Sequence[Part]) -> list[Route]:
    """Return every route between the parts of a model, in the order of takers.

    Raises:
        ArgumentError: a value is given twice, or taken without being given before; the first part
            takes something else than INPUT, or the last gives something else than OUTPUT.
    """
    _check_ends(parts)
    givers: dict[str, int] = {}
    routes: list[Route] = []
    for stage, part in enumerate(parts):
        for value in dict.fromkeys(part.takes if stage else ()):
            if value not in givers:
                known = ", ".join(map(repr, givers)) or "none"
                raise ArgumentError(
                    f"stage {stage} takes {value!r}, which no stage before it gives: there are "
                    f"{known}"
                )
            routes.append(Route(len(routes), value, givers[value], stage))
        for value in part.gives:
            if givers.setdefault(value, stage) != stage or part.gives.count(value) > 1:
                raise ArgumentError(
                    f"{value!r} is given by stage {givers[value]} and again by stage {stage}: "
                    f"call one of them something else"
                )
    return routes


def _check_ends(parts: Sequence[Part]) -> None:
    if not parts or parts[0].takes != (INPUT,) or parts[-1].gives != (OUTPUT,):
        ends = (parts[0].takes, parts[-1].gives) if parts else ((), ())
        raise ArgumentError(
            f"the {len(parts)} parts take {ends[0]} and give {ends[1]}: the first must take "
            f"({INPUT!r},), the last give ({OUTPUT!r},)"
        )
