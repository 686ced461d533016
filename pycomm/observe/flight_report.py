"""Flights in words: one as a table, and those of several ranks beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from pycomm.observe.flight import Flight

Operation = dict[str, Any]
_MESSAGES = ("send", "recv")


def table(flight: Flight) -> str:
    """Return a flight as lines of text: what it is, then an operation each, the last one last."""
    operations = flight["operations"]
    head = (
        f"rank {flight['rank']} of {flight['size']}, job {flight['job']}, process {flight['pid']}: "
        f"the last {len(operations)} of {flight['begun']} operations"
    )
    titles = ("start", "took", "communicator", "number", "state", "operation", "at")
    rows = [titles, *map(_row, operations)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    return "\n".join([head, *(line.rstrip() for line in lines)])


def line_up(flights: list[Flight]) -> str:
    """Say of every communicator in which collective its ranks differ first, or that they agree.

    Communicators are told apart by number and first rank. A rank is behind if others have begun a
    collective that it has not.

    Args:
        flights: of ranks of one job, in the order of ranks.
    """
    lines = list(_missing(flights))
    for group in sorted({_group(o) for flight in flights for o in flight["operations"]}):
        ranks = {flight["rank"]: _collectives(flight, group) for flight in flights}
        lines += _compare(group, {rank: own for rank, own in ranks.items() if own})
    return "\n".join(lines)


def _row(operation: Operation) -> tuple[str, ...]:
    took = "" if operation["end"] is None else f"{operation['took_us']:.1f} us"
    start = datetime.fromtimestamp(operation["start"]).strftime("%H:%M:%S.%f")
    where = _name(_group(operation)), str(operation["sequence"])
    return start, took, *where, operation["state"], _call(operation), operation["site"]


def _call(operation: Operation) -> str:
    peer, words = operation["peer"], [operation["kind"], operation["op"]]
    if operation["kind"] in _MESSAGES:
        other = "anyone" if peer == -1 else f"rank {peer}"
        words += [f"{'to' if operation['kind'] == 'send' else 'from'} {other}"]
        words += [f"tag {operation['tag']}"]
    elif peer is not None:
        words += [f"root {peer}"]
    words += [f"{operation['count']} × {operation['dtype']}"] if operation["dtype"] else []
    return " ".join([*filter(None, words), operation["algorithm"]]).rstrip()


def _group(operation: Operation) -> tuple[int, int, int]:
    return operation["world"], operation["communicator"], operation["first_rank"]


def _name(group: tuple[int, int, int]) -> str:
    world, number, first = group
    return f"{number}" + f" of rank {first}" * (first > 0) + f" in world {world}" * (world > 0)


def _missing(flights: list[Flight]) -> Iterator[str]:
    known = {flight["rank"] for flight in flights}
    absent = [str(rank) for rank in range(flights[0]["size"]) if rank not in known]
    if absent:
        yield f"there is nothing of rank {', '.join(absent)}"


def _collectives(flight: Flight, group: tuple[int, int, int]) -> dict[int, Operation]:
    """Return a rank's collectives on a communicator by their numbers."""
    own = [o for o in flight["operations"] if _group(o) == group and o["kind"] not in _MESSAGES]
    return {operation["sequence"]: operation for operation in own}


def _compare(group: tuple[int, int, int], ranks: dict[int, dict[int, Operation]]) -> Iterator[str]:
    if not ranks:
        return
    first, last = max(map(min, ranks.values())), max(map(max, ranks.values()))
    for number in range(first, last + 1):
        operations = {rank: own.get(number) for rank, own in ranks.items()}
        if len({o and _call(o) for o in operations.values()}) > 1:
            yield f"communicator {_name(group)}: the ranks differ first in collective {number}"
            for rank, operation in operations.items():
                yield f"  rank {rank}: {_place(operation, ranks[rank])}"
            return
    yield f"communicator {_name(group)}: {len(ranks)} ranks agree on collectives {first} to {last}"


def _place(operation: Operation | None, own: dict[int, Operation]) -> str:
    if operation is not None:
        return _at(operation)
    return f"is behind; its last was {max(own)}: {_at(own[max(own)])}"


def _at(operation: Operation) -> str:
    site = f" at {operation['site']}" if operation["site"] else ""
    return f"{_call(operation)}, {operation['state']}{site}"
