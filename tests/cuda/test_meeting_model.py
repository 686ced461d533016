"""The protocol of csrc/cuda/meet.h, in every interleaving: nobody goes ahead, nobody is stuck.

Ranks meet again and again. In a round a rank leaves data in its slot, writes the number of the
meeting onto every board, waits until everyone's is on its own, and reads the slots of all. Each of
these is one step; what threads of a block do side by side may happen in any order. Only differences
of numbers matter, so states are the same that differ by an even number (sets go in turn): there
are finitely many, and all that any number of meetings can lead to are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest

_OLD = -2
"""Less than anything that is waited for."""


@dataclass(frozen=True)
class Protocol:
    """What is asked about: meet.h as it is, and what it would be with a mistake.

    Attributes:
        counter_sets: sets of counters, used in turn.
        slot_sets: slots, used in turn.
        missing: how far behind a peer may be whom one goes past.
        exact: whether a counter must be equal, instead of at least so large.
        skipped: how many of its peers a rank does not wait for.
        early: whether a rank tells its peers of its data before it has left it.
    """

    counter_sets: int = 2
    slot_sets: int = 2
    missing: int = 0
    exact: bool = False
    skipped: int = 0
    early: bool = False


class Rank(NamedTuple):
    """Where a rank is: its meeting, and what it has still to do in it."""

    meeting: int
    leaves: bool
    tells: frozenset[int]
    awaits: frozenset[int]
    reads: frozenset[int]


class State(NamedTuple):
    """Where everyone is, counters[owner][set][writer], and slots[owner][set]."""

    ranks: tuple[Rank, ...]
    counters: tuple[tuple[tuple[int, ...], ...], ...]
    slots: tuple[tuple[int, ...], ...]


class WrongError(AssertionError):
    """The protocol does not keep its promise."""


def begun(rank: int, size: int, meeting: int, protocol: Protocol) -> Rank:
    peers = frozenset(range(size)) - {rank}
    awaited = frozenset(sorted(peers)[protocol.skipped :])
    return Rank(meeting, True, peers, awaited, peers)


def put(row: tuple, index: int, value) -> tuple:
    return (*row[:index], value, *row[index + 1 :])


def steps(state: State, rank: int, protocol: Protocol) -> Iterator[State]:
    """Yield every state that one step of a rank leads to."""
    size, me = len(state.ranks), state.ranks[rank]

    def after(**changes) -> State:
        return state._replace(ranks=put(state.ranks, rank, me._replace(**changes)))

    slot, counter = me.meeting % protocol.slot_sets, me.meeting % protocol.counter_sets
    if me.leaves and not (protocol.early and me.tells):
        slots = put(state.slots, rank, put(state.slots[rank], slot, me.meeting))
        yield after(leaves=False)._replace(slots=slots)
    if me.tells and (protocol.early or not me.leaves):
        for peer in me.tells:
            row = put(state.counters[peer][counter], rank, me.meeting)
            counters = put(state.counters, peer, put(state.counters[peer], counter, row))
            yield after(tells=me.tells - {peer})._replace(counters=counters)
    elif me.leaves:
        pass
    elif me.awaits:
        for peer in me.awaits:
            found = state.counters[rank][counter][peer]
            there = (
                found == me.meeting if protocol.exact else found >= me.meeting - protocol.missing
            )
            if there:
                yield after(awaits=me.awaits - {peer})
    elif me.reads:
        for peer in me.reads:
            check(state, rank, peer, slot)
            yield after(reads=me.reads - {peer})
    else:
        following = begun(rank, size, me.meeting + 1, protocol)
        yield state._replace(ranks=put(state.ranks, rank, following))


def check(state: State, rank: int, peer: int, slot: int) -> None:
    """Raise unless the peer has come to the meeting, and its data of it is there."""
    here, there = state.ranks[rank].meeting, state.ranks[peer]
    if there.meeting < here or (there.meeting == here and rank in there.tells):
        raise WrongError(f"rank {rank} is past meeting {here}, to which rank {peer} has not come")
    if there.meeting > here + 1:
        raise WrongError(f"rank {peer} is two meetings ahead of rank {rank}")
    if state.slots[peer][slot] != here:
        raise WrongError(f"rank {rank} reads {state.slots[peer][slot]} of rank {peer}, not {here}")


def shifted(state: State) -> State:
    """Return the state with all numbers lower by the same even one; old ones are all alike."""
    by = min(rank.meeting for rank in state.ranks) // 2 * 2

    def lower(row: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(max(_OLD, x - by) for x in row)

    return State(
        tuple(rank._replace(meeting=rank.meeting - by) for rank in state.ranks),
        tuple(tuple(map(lower, sets)) for sets in state.counters),
        tuple(map(lower, state.slots)),
    )


def explore(size: int, protocol: Protocol) -> tuple[int, int]:
    """Look at everything that can happen; return how many states there are, and ways back to them.

    Raises:
        WrongError: a rank goes past a meeting too early, reads the wrong data, or all are stuck.
    """
    ranks = tuple(begun(rank, size, 1, protocol) for rank in range(size))
    counters = ((((0,) * size,) * protocol.counter_sets),) * size
    first = State(ranks, counters, ((0,) * protocol.slot_sets,) * size)
    seen, waiting, turns = {first}, [first], 0
    while waiting:
        state = waiting.pop()
        found = [s for rank in range(size) for s in steps(state, rank, protocol)]
        if not found:
            raise WrongError(f"all are stuck: {state}")
        for new in found:
            normal = shifted(new)
            turns += normal != new
            if normal not in seen:
                seen.add(normal)
                waiting.append(normal)
    return len(seen), turns


@pytest.mark.parametrize("size", [2, 3])
def test_as_it_is(size: int):
    states, turns = explore(size, Protocol())
    assert states == {2: 105, 3: 6117}[size] and turns > 0


def test_what_would_do_as_well():
    """With two sets counters might be compared for equality; with one they must not be."""
    assert explore(2, Protocol(exact=True))
    assert explore(2, Protocol(counter_sets=1))


BROKEN = {
    "one slot": (Protocol(slot_sets=1), "reads 2 of rank . not 1"),
    "one set, compared for equality": (Protocol(counter_sets=1, exact=True), "all are stuck"),
    "a peer is not waited for": (Protocol(skipped=1), "is past meeting . to which rank . has not"),
    "a peer may be one behind": (Protocol(missing=1), "is past meeting . to which rank . has not"),
    "data come last": (Protocol(early=True), "reads 0 of rank . not 1"),
}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("protocol", "said"), BROKEN.values(), ids=BROKEN)
def test_mistakes_are_found(protocol: Protocol, said: str, size: int):
    with pytest.raises(WrongError, match=said.replace(" . ", r" \d,? ")):
        explore(size, protocol)
