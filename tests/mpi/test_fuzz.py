"""Random operations of every kind, the same ones each time; `make fuzz` draws others."""

from __future__ import annotations

from tests.fuzz.session import Session


def test_random_operations_give_what_numpy_does(comm):
    assert Session(comm, seed=3).run(steps=300) == 300
