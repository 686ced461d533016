"""Samples are long enough for the clock, and implementations take turns."""

import pytest

from bench import sampling
from bench.sampling import Plan, collect


class OneRank:
    """Ranks, without any other rank."""

    size = 1

    def __init__(self, calls):
        self._calls = calls

    def barrier(self):
        self._calls.append("barrier")

    def largest(self, value):
        return value

    def stacked(self, array):
        return array[None]


@pytest.fixture
def clock(monkeypatch):
    """A clock that only passes when a batch says so: a list of one number of nanoseconds."""
    now = [0]
    monkeypatch.setattr(sampling.time, "perf_counter_ns", lambda: now[0])
    return now


def taking(us, calls, name, clock):
    """Return a batch whose operations take so many microseconds each."""

    def batch(times):
        calls.append((name, times))
        clock[0] += int(us * 1e3) * times

    return batch


def test_batches_are_as_long_as_asked_and_times_are_per_operation(clock):
    batches = {"fast": taking(0.2, [], "fast", clock), "slow": taking(1000, [], "slow", clock)}
    found = collect(batches, 2, OneRank([]), Plan(sample_us=400, seconds=1, iterations=7))
    assert 2000 <= found["fast"].batch < 3000
    assert found["slow"].batch == 1
    assert found["slow"].per_rank_us.tolist() == [[500.0] * 7], "two trips of a thousandth"
    assert found["fast"].quantile_us(0.5) == pytest.approx(0.1)


def test_implementations_take_turns_each_after_a_warm_call_and_a_barrier(clock):
    calls = []
    batches = {name: taking(1000, calls, name, clock) for name in ("a", "b")}
    collect(batches, 1, OneRank(calls), Plan(sample_us=10, seconds=1, iterations=3))
    turn = [("a", 1), "barrier", ("a", 1), ("b", 1), "barrier", ("b", 1)]
    assert calls[-18:] == turn * 3


def test_the_seconds_are_kept(clock):
    batches = {"a": taking(1000, [], "a", clock)}
    found = collect(batches, 1, OneRank([]), Plan(sample_us=10, seconds=0.05))
    assert found["a"].slowest_us.size == 50
