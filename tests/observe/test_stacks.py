"""Where another process is: its stacks, once, also when several ask at a time."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from pycomm.observe import stacks

PROGRAM = """
import time
from pycomm.observe import stacks
def linger():
    print(stacks.write_on_signal(), flush=True)
    time.sleep(60)
linger()
"""


@pytest.fixture
def lingering():
    """The number of a process that lingers, and its descriptor for stacks."""
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process.pid, int(process.stdout.readline())
        process.kill()


def test_readers_at_the_same_time_get_the_stacks_once_each(lingering):
    with ThreadPoolExecutor(4) as readers:
        texts = list(readers.map(lambda _: stacks.look_at(*lingering), range(4)))
    assert [text.count("in linger") for text in texts] == [1] * 4
