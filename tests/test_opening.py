"""Calls that differ, however they lie between hosts, are a MismatchError on every rank."""

from __future__ import annotations

from itertools import product

import pytest

from pycomm.errors import MismatchError
from pycomm.opening import compare
from pycomm.transport.threads import run_threads

LAYOUTS = {
    "one host": [0, 0, 0, 0],
    "two of two": [0, 0, 1, 1],
    "dealt": [0, 1, 0, 1],
    "three of two": [0, 0, 1, 1, 2, 2],
    "uneven": [0, 0, 0, 1],
}
layouts = pytest.mark.parametrize("hosts", LAYOUTS.values(), ids=LAYOUTS.keys())


@layouts
@pytest.mark.parametrize("opens", [False, True])
def test_the_verdict_is_the_same_on_every_rank(hosts, opens):
    """All ways in which some ranks make one call and the others another."""

    def body(transport, rank):
        verdicts = []
        for calls in product([7, 8], repeat=transport.size):
            try:
                compare(transport, None, calls[rank], opens)
                verdicts.append(True)
            except MismatchError:
                verdicts.append(False)
        return verdicts

    expected = [len(set(calls)) == 1 for calls in product([7, 8], repeat=len(hosts))]
    assert run_threads(len(hosts), body, hosts=hosts) == [expected] * len(hosts)


@pytest.mark.parametrize(
    ("hosts", "steps"),
    [([0] * 8, 3), ([0, 1] * 4, 1), ([0, 1, 2, 3] * 2, 2), ([0, 0, 0, 1, 1, 1], 1)],
)
def test_between_hosts_it_takes_the_logarithm_of_their_number(hosts, steps):
    """Shared memory does the rest."""

    class Board:
        fused = frozenset(["barrier"])
        jobs = 0

        def run(self, job):
            Board.jobs += 1

    def body(transport, rank):
        transport.local = transport.local and Board()
        compare(transport, None, 7, opens=False)
        boards = Board.jobs
        compare(transport, None, 7, opens=True)
        return transport.messages, boards

    found = run_threads(len(hosts), body, hosts=hosts)
    assert [messages for messages, _ in found] == [2 * steps] * len(hosts)
    assert Board.jobs == (len(hosts) if len(set(hosts)) > 1 else 0)
