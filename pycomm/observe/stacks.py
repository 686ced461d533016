"""Where the processes of a host are: state and stacks of all threads, also of one that hangs."""

from __future__ import annotations

import faulthandler
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from pycomm import _native

SIGNAL = signal.SIGRTMIN + 9
"""Makes a process write its stacks; the handler is faulthandler's and needs no interpreter."""

_STATES = {"R": "running", "S": "waiting", "D": "waiting", "T": "stopped", "Z": "dead"}
_PATIENCE_S = 0.2
_TURN_S = 2.0
"""So long others may read a process's stacks; one that was stopped meanwhile is not waited for."""


@cache
def write_on_signal() -> int:
    """Have this process write its stacks to a memory file at SIGNAL; return the descriptor."""
    descriptor = os.memfd_create("pycomm-stacks")
    faulthandler.register(SIGNAL, file=descriptor, all_threads=True)
    return descriptor


def look_at(pid: int, descriptor: int) -> str:
    """Return state and stacks of a process of this host, as lines of text.

    Args:
        pid: a process that called `write_on_signal`, perhaps dead since.
        descriptor: what it returned there.
    """
    state = _state(pid)
    if state in ("stopped", "dead"):
        return f"process {pid} is {state}"
    file = Path(f"/proc/{pid}/fd/{descriptor}")
    try:
        with _one_at_a_time(file):
            before = file.stat().st_size
            _native.signal_main_thread(pid, SIGNAL)
            text = _grown(file, before)
    except OSError as error:
        return f"process {pid} is {state}; its stacks cannot be read: {error}"
    return "\n".join([f"process {pid} is {state}", *text.splitlines()])


def _state(pid: int) -> str:
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "dead"
    return _STATES.get(letter, letter)


@contextmanager
def _one_at_a_time(file: Path) -> Iterator[None]:
    """Keep other readers away, whose stacks would be written behind those of this one."""
    end = time.monotonic() + _TURN_S
    with file.open("rb") as opened:
        while time.monotonic() < end:
            with suppress(BlockingIOError):
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
        yield


def _grown(file: Path, before: int) -> str:
    """Return what was written to a file after `before` bytes, once it stops growing."""
    end, size = time.monotonic() + _PATIENCE_S, -1
    while time.monotonic() < end and (file.stat().st_size == before or size != file.stat().st_size):
        size = file.stat().st_size
        time.sleep(0.01)
    with file.open("rb") as opened:
        opened.seek(before)
        return opened.read().decode(errors="replace")
