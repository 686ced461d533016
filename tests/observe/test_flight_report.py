"""Flights in words: tables, and the first collective in which ranks differ."""

from __future__ import annotations

from typing import Any

from pycomm.observe.flight_report import line_up, table


def operation(sequence: int, **changed: Any) -> dict[str, Any]:
    return {
        "world": 0,
        "communicator": 0,
        "first_rank": 0,
        "sequence": sequence,
        "kind": "all_reduce",
        "op": "sum",
        "dtype": "float32",
        "bytes": 12,
        "count": 3,
        "peer": None,
        "tag": 0,
        "algorithm": "direct",
        "site": "run.py:7",
        "start": 1e9 + sequence,
        "end": 1e9 + sequence + 0.5,
        "took_us": 5e5,
        "state": "done",
        **changed,
    }


def flight(rank: int, *operations: dict[str, Any], size: int = 2) -> dict[str, Any]:
    about = {"pid": 70 + rank, "rank": rank, "size": size, "job": "job", "begun": 12}
    return {**about, "operations": list(operations)}


def test_ranks_that_agree():
    first = flight(0, operation(1), operation(2))
    second = flight(1, operation(1), operation(2, state="running", site="other.py:1"))
    assert line_up([first, second]) == "communicator 0: 2 ranks agree on collectives 1 to 2"


def test_a_rank_that_is_behind():
    first = flight(0, operation(1), operation(2, state="running", end=None, site=""))
    assert line_up([first, flight(1, operation(1))]).splitlines() == [
        "communicator 0: the ranks differ first in collective 2",
        "  rank 0: all_reduce sum 3 × float32 direct, running",
        "  rank 1: is behind; its last was 1: all_reduce sum 3 × float32 direct, done at run.py:7",
    ]


def test_another_call_and_only_the_first():
    other = operation(1, kind="broadcast", op="", peer=1), operation(2, count=5)
    assert line_up([flight(0, operation(1), operation(2)), flight(1, *other)]).splitlines() == [
        "communicator 0: the ranks differ first in collective 1",
        "  rank 0: all_reduce sum 3 × float32 direct, done at run.py:7",
        "  rank 1: broadcast root 1 3 × float32 direct, done at run.py:7",
    ]


def test_what_only_some_still_have_is_not_compared():
    first, second = flight(0, operation(1), operation(2)), flight(1, operation(2), operation(3))
    assert "differ first in collective 3" in line_up([first, second])


def test_messages_are_not_compared_and_groups_are_told_apart():
    message = operation(1, kind="send", op="", peer=1, algorithm="")
    first = flight(0, operation(1, communicator=2), message)
    second = flight(1, operation(4, communicator=2, first_rank=1, world=1))
    assert line_up([first, second]).splitlines() == [
        "communicator 2: 1 ranks agree on collectives 1 to 1",
        "communicator 2 of rank 1 in world 1: 1 ranks agree on collectives 4 to 4",
    ]


def test_ranks_without_a_flight_are_named():
    assert line_up([flight(1, size=3)]) == "there is nothing of rank 0, 2"


def test_a_table_has_a_line_for_each_operation():
    received = operation(
        4, kind="recv", op="", peer=-1, tag=9, algorithm="", end=None, took_us=None, state="running"
    )
    head, titles, first, second = table(flight(0, operation(3), received)).splitlines()
    assert head == "rank 0 of 2, job job, process 70: the last 2 of 12 operations"
    assert titles.split() == "start took communicator number state operation at".split()
    assert first.split()[1:] == (
        "500000.0 us 0 3 done all_reduce sum 3 × float32 direct run.py:7".split()
    )
    assert second.split()[1:] == "0 4 running recv from anyone tag 9 3 × float32 run.py:7".split()
