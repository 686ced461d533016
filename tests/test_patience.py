"""How one waits for a message: until a timeout of one's own, or as long as the communicator's."""

from __future__ import annotations

import logging

import pytest

from pycomm.errors import CommTimeoutError
from pycomm.observe.stats import Stats
from pycomm.transport.wire import Patience


class Watch:
    """Sees nobody leave, and counts how often it is asked where everyone is."""

    def __init__(self):
        self.reports = 0

    def has_left(self, peer):
        return False

    def begin(self):
        pass

    def look(self, peer):
        pass

    def end(self):
        pass

    def failure(self, what):
        return None

    def report(self):
        self.reports += 1
        return "where everyone is"


@pytest.fixture
def watch():
    return Watch()


def patience(watch, timeout):
    return Patience(timeout, Stats(), watch, lambda: None)


@pytest.mark.parametrize("own", [0, 0.05])
def test_a_timeout_of_ones_own_is_told_in_one_line_and_disturbs_nobody(own, watch, caplog):
    caplog.set_level(logging.WARNING, "pycomm")
    with pytest.raises(CommTimeoutError) as error:
        patience(watch, 0.01).until(lambda: False, 1, "rank 0 receives", timeout=own)
    assert str(error.value) == f"rank 0 receives: not complete after {own:g} s; it goes on"
    assert watch.reports == 0 and not caplog.records


def test_a_timeout_of_zero_looks_a_few_times_only(watch):
    looked = []
    with pytest.raises(CommTimeoutError):
        patience(watch, 9).until(lambda: looked.append(1), 1, "rank 0 receives", timeout=0)
    assert 1 <= len(looked) <= 3


def test_the_communicators_timeout_warns_at_half_and_says_where_everyone_is(watch, caplog):
    with pytest.raises(CommTimeoutError, match="no progress for 0.1 s\nwhere everyone is"):
        patience(watch, 0.1).until(lambda: False, 1, "rank 0 receives")
    assert watch.reports == 1 and len(caplog.records) == 1
