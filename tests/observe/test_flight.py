"""The flight recorder: what it holds, and how it is read from outside."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import numpy as np
import pytest
from click.testing import CliRunner

import pycomm
from pycomm import _native
from pycomm.cli import main
from pycomm.observe import flight
from pycomm.types import DTYPES
from tests.launch import REPO

PROGRAM = """
import sys, time, numpy as np, pycomm
comm = pycomm.init()
comm.all_reduce(np.ones(7, np.int16), "max")
sys.stdout.write("ready\\n")
sys.stdout.flush()
time.sleep(60)
"""


def last(count: int) -> list[dict]:
    return flight.read(os.getpid())["operations"][-count:]


def check(operation: dict, **expected: object) -> None:
    assert {name: operation[name] for name in expected} == expected


def gather_in(file: str, comm: pycomm.Communicator) -> None:
    """Call gather from a file of that name."""
    exec(compile("comm.gather(x)", file, "exec"), {"comm": comm, "x": np.ones(1)})


def in_a_process_of_its_own(program: str) -> None:
    start = """
import os, pycomm
from pycomm import _native
from pycomm.observe import flight
comm = pycomm.init()
"""
    command = [sys.executable, "-c", start + textwrap.dedent(program)]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def alone() -> Iterator[pycomm.Communicator]:
    """A new communicator of this process alone; closed afterwards."""
    comm = pycomm.init().split(0)
    yield comm
    comm.close()


@pytest.fixture
def rank() -> Iterator[int]:
    """The process number of a rank that has done a few operations and sleeps."""
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPO, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.kill()


def test_collectives_of_both_ways_have_everything_about_the_call(alone):
    alone.all_reduce(np.ones(5, np.float32), "max")
    line = inspect.currentframe().f_lineno + 1
    alone.reduce(np.ones(3), 0, "prod", algorithm="direct")
    quick, long = last(2)
    assert long["site"] == f"{__file__}:{line}"
    check(quick, kind="all_reduce", op="max", dtype="float32", count=5)
    check(quick, bytes=20, peer=None, algorithm="direct", state="done")
    check(long, kind="reduce", op="prod", dtype="float64", count=3)
    check(long, bytes=24, peer=0, algorithm="direct", state="done")
    assert long["sequence"] == quick["sequence"] + 1
    assert long["communicator"] == quick["communicator"] > 0
    assert quick["start"] <= quick["end"] <= long["start"] + 1e-6 <= long["end"] + 1e-6


def test_both_ways_write_the_same(alone):
    out = np.ones(4)
    for quick, long in [
        (alone.barrier, lambda: alone.barrier(async_op=True).wait()),
        (lambda: alone.broadcast(out, 0), lambda: alone.broadcast(out, 0, algorithm="direct")),
        (
            lambda: alone.all_gather(out, out.reshape(1, 4)),
            lambda: alone.all_gather(out, algorithm="direct"),
        ),
        (
            lambda: alone.reduce_scatter(out, "min", out.copy()),
            lambda: alone.reduce_scatter(out, "min", algorithm="direct"),
        ),
    ]:
        alone.all_reduce(out)  # the quick way is open again
        quick()
        long()
        first, second = last(2)
        times = {"sequence", "start", "end", "took_us", "site"}
        assert {k: v for k, v in first.items() if k not in times} == {
            k: v for k, v in second.items() if k not in times
        }


@pytest.mark.parametrize("name", ["bool", "int64", "uint8", "float16", "float64", "complex128"])
def test_the_quick_way_knows_the_names_of_dtypes(alone, name):
    alone.broadcast(np.zeros(3, name))
    assert last(1)[0]["dtype"] == name
    assert last(1)[0]["bytes"] == 3 * DTYPES[name].itemsize


def test_messages_have_their_peer_and_tag_and_what_was_received(alone):
    request = alone.irecv(0, tag=9)
    check(last(1)[0], kind="recv", state="running", end=None, count=0)
    alone.send(np.ones(6, np.int32), 0, tag=9)
    request.wait()
    received, sent = last(2)
    for operation, kind in ((sent, "send"), (received, "recv")):
        check(operation, kind=kind, peer=0, tag=9, dtype="int32", count=6, bytes=24, state="done")
    assert received["site"].startswith(__file__)


def test_an_operation_that_raises_has_failed(alone):
    alone.isend(np.ones(2), 0, tag=1).wait()
    with pytest.raises(pycomm.MismatchError):
        alone.recv(0, tag=1, out=np.ones(3))
    assert last(1)[0]["state"] == "failed"


def test_the_last_thousand_are_kept(alone):
    for _ in range(1500):
        alone.barrier()
    operations = last(2000)
    assert len(operations) == 1000 == _native.FLIGHT_RECORDS
    numbers = [operation["sequence"] for operation in operations]
    assert numbers == list(range(numbers[0], numbers[0] + 1000))


def test_a_long_path_keeps_its_end(alone):
    gather_in("/".join(["folder"] * 40) + "/last.py", alone)
    assert last(1)[0]["site"].endswith("/folder/last.py:1")
    assert len(last(1)[0]["site"]) == 95
    gather_in("é" * 60, alone)
    assert last(1)[0]["site"].endswith("éé:1")


def test_more_call_sites_than_there_is_room_for():
    in_a_process_of_its_own("""
        from tests.observe.test_flight import check, gather_in, last
        for i in range(2500):
            gather_in(f"file-{i}", comm)
        check(last(1)[0], kind="gather", site="", dtype="float64")
    """)


def test_a_forked_child_has_no_recorder_and_does_not_touch_its_parents():
    in_a_process_of_its_own("""
        before = flight.read(os.getpid())["begun"]
        child = os.fork()
        if child == 0:
            try:
                _native.Flight(0, 7, 0).message("send", "int8", 1, 0, 0)
                flight.read(os.getpid())
            except pycomm.CommError as error:
                os._exit(7 * ("has no flight recorder" in str(error)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert flight.read(os.getpid())["begun"] == before
    """)


@pytest.mark.parametrize("stopped", [False, True], ids=["alive", "stopped"])
def test_a_process_is_read_from_outside(rank, stopped, tmp_path):
    if stopped:
        os.kill(rank, signal.SIGSTOP)
    shown = CliRunner().invoke(main, ["doctor", "--dump", str(rank)])
    assert shown.exit_code == 0, shown.output
    assert f"rank 0 of 1, job {flight.read(rank)['job']}, process {rank}" in shown.output
    assert re.search(r"done +all_reduce max 7 × int16 direct", shown.output.splitlines()[-1])
    CliRunner().invoke(main, ["doctor", "--dump", str(rank), "--json", str(tmp_path / "f")])
    operation = json.loads((tmp_path / "f").read_text())["operations"][-1]
    check(operation, kind="all_reduce", op="max", count=7, state="done")


def test_a_process_without_a_recorder_is_an_error():
    with subprocess.Popen(["sleep", "60"]) as process:
        shown = CliRunner().invoke(main, ["doctor", "--dump", str(process.pid)])
        process.kill()
    assert shown.exit_code == 1
    assert "has no flight recorder: give the PID of a rank" in shown.output
