"""The hosts that the tests make: nothing of them stays, however their maker ends."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.hosts.network import hosts, require
from tests.launch import REPO

pytestmark = pytest.mark.mpirun


def test_hosts_leave_nothing_behind():
    require()
    names = Path("/etc/hosts").read_bytes()
    with hosts(2) as network:
        network.mpirun(1, "-c", "pass")
        assert exists(network.first_process)
    assert not exists(network.first_process)
    assert Path("/etc/hosts").read_bytes() == names
    assert not Path("/run/netns/h1").exists()


def test_hosts_end_when_their_maker_is_killed():
    require()
    program = """
        from tests.hosts.network import hosts
        with hosts(2) as network:
            print(network.first_process, flush=True)
            network.mpirun(1, "-c", "import time; time.sleep(60)")
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    maker = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
    first = int(maker.stdout.readline())
    time.sleep(0.5)
    assert exists(first)
    maker.kill()
    maker.communicate()
    deadline = time.monotonic() + 10
    while exists(first) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not exists(first)


def exists(process: int) -> bool:
    return Path(f"/proc/{process}").exists()
