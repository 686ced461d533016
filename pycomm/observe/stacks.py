"""Where the processes of a host are: state and stacks of all threads, also of one that hangs."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import time
from functools import cache
from pathlib import Path

from pycomm import _native

SIGNAL = signal.SIGRTMIN + 9
"""Makes a process write its stacks; the handler is faulthandler's and needs no interpreter."""

_STATES = {"R": "running", "S": "waiting", "D": "waiting", "T": "stopped", "Z": "dead"}
_PATIENCE_S = 0.2
_DUMP = re.compile(rb"(?:.*\n)*?Current thread .*\n(?:  .*\n)*")
"""All threads; the main one, which handles the signal, is the oldest and comes last."""


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
        before = file.stat().st_size
        _native.signal_main_thread(pid, SIGNAL)
        text = _dump(_grown(file, before), before).decode(errors="replace")
    except OSError as error:
        return f"process {pid} is {state}; its stacks cannot be read: {error}"
    return "\n".join([f"process {pid} is {state}", *text.splitlines()])


def _state(pid: int) -> str:
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "dead"
    return _STATES.get(letter, letter)


def _grown(file: Path, before: int) -> bytes:
    """Return the contents of a file that had `before` bytes, once it has grown and stops to."""
    end, size = time.monotonic() + _PATIENCE_S, -1
    while time.monotonic() < end and (file.stat().st_size == before or size != file.stat().st_size):
        size = file.stat().st_size
        time.sleep(0.01)
    return file.read_bytes()


def _dump(text: bytes, before: int) -> bytes:
    """Return the first dump that ends behind `before` bytes: others may have asked at once."""
    dumps = (dump for dump in _DUMP.finditer(text) if dump.end() > before)
    first = next(dumps, None)
    return first[0] if first else text[before:]
