"""The watchdog alone: processes that leave, die or are stopped, and what the others know of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from pycomm._native import Watchdog
from tests.launch import REPO

OTHER = """
import sys
from pycomm._native import Watchdog
pid, fd, nonce, process = map(int, sys.argv[1:])
watchdog = Watchdog.open(pid, fd, nonce, process, 3, "here")
watchdog.watch()
print("ready", flush=True)
status = input()
if status == "drop":
    del watchdog
    input()
sys.exit(int(status))
"""


@pytest.fixture
def watchdog() -> Watchdog:
    return Watchdog.create(0, 3, "here")


@pytest.fixture
def others(watchdog: Watchdog) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes 1 and 2; this one is 0, and watches."""
    where = [str(x) for x in (os.getpid(), watchdog.fd, watchdog.nonce)]
    pipe, started = subprocess.PIPE, []
    for process in "12":
        command = [sys.executable, "-c", OTHER, *where, process]
        pipes = {"stdin": pipe, "stdout": pipe, "stderr": pipe}
        started.append(subprocess.Popen(command, **pipes, text=True, cwd=REPO))
    assert [other.stdout.readline() for other in started] == ["ready\n"] * 2
    watchdog.watch()
    yield started
    for other in started:
        other.send_signal(signal.SIGCONT)
        if other.poll() is None:
            other.communicate("0\n", timeout=20)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def say(other: subprocess.Popen[str], what: str) -> None:
    other.stdin.write(what + "\n")
    other.stdin.flush()


def test_the_dead_are_known_in_order_and_named_once(watchdog, others, capfd):
    others[1].kill()
    until(lambda: watchdog.deaths() == 1)
    say(others[0], "5")
    until(lambda: watchdog.deaths() == 2)
    assert watchdog.dead() == [2, 1]
    assert watchdog.fate(2) == "was killed by signal 9 (Killed)"
    assert watchdog.fate(1) == "exited with status 5 in the middle of the job"
    told = others[0].stderr.read()
    assert told.startswith("pycomm: rank 1: rank 2 of 3 (process ") and told.count("\n") == 1
    told = ""
    end = time.monotonic() + 20
    while not told and time.monotonic() < end:
        told = capfd.readouterr().err
    assert told.startswith("pycomm: rank 0: rank 1 of 3 (process ") and told.count("\n") == 1


def test_who_leaves_is_not_dead(watchdog, others, capfd):
    say(others[0], "0")
    say(others[1], "drop")
    assert others[0].wait(timeout=20) == 0
    time.sleep(1.5)
    say(others[1], "5")
    others[1].wait()
    time.sleep(1.5)
    assert watchdog.deaths() == 0 and capfd.readouterr().err == ""


def test_a_death_is_seen_though_the_process_that_should_is_stopped(watchdog, others):
    others[0].send_signal(signal.SIGSTOP)
    others[1].kill()
    until(lambda: watchdog.dead() == [2])


def test_a_death_that_others_found_is_known_to_all(watchdog, others, capfd):
    watchdog.mark(2)
    watchdog.mark(2)
    assert watchdog.deaths() == 1 and watchdog.dead() == [2] and watchdog.fate(2) == "died"
    others[1].kill()
    others[1].wait()
    time.sleep(1.5)
    assert watchdog.deaths() == 1 and capfd.readouterr().err == ""


def test_nobody_is_named_while_the_user_knows(watchdog, others, capfd):
    watchdog.hush()
    others[0].kill()
    until(lambda: watchdog.deaths() == 1)
    assert capfd.readouterr().err == ""
