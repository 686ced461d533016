"""The flight recorder: what it holds, how it is read from outside, and what errors leave behind."""

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
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import pycomm
from pycomm import _native
from pycomm.cli import main
from pycomm.observe import flight
from pycomm.types import DTYPES
from tests.launch import REPO, run

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


def flights(folder: Path) -> list[flight.Flight]:
    (job,) = folder.iterdir()
    return flight.load(job)


def differences(folder: Path) -> str:
    (job,) = folder.iterdir()
    return CliRunner().invoke(main, ["doctor", "--flight", str(job)]).output


@pytest.mark.mpirun
@pytest.mark.parametrize("shared", ["1", "0"], ids=["shared memory", "wire"])
def test_a_mismatch_leaves_the_flight_of_every_rank(tmp_path, shared):
    program = """
        comm.all_reduce(np.ones(3))
        try:
            comm.all_reduce(np.zeros(4 + (comm.rank == 1)))
        except pycomm.MismatchError as error:
            sys.stdout.write(str(error).splitlines()[-1] + chr(10))
    """
    env = {"PYCOMM_FLIGHT": str(tmp_path), "PYCOMM_SHARED_MEMORY": shared}
    result, _ = run(3, program, env=env)
    (job,) = tmp_path.iterdir()
    assert sorted(result.stdout.splitlines()) == [
        f"what this rank did last is in {job}/rank-{rank}.json" for rank in range(3)
    ]
    for rank, own in enumerate(flights(tmp_path)):
        assert (own["rank"], own["size"]) == (rank, 3)
        assert own["error"].startswith("MismatchError: rank ")
        before, failed = own["operations"][-2:]
        assert (before["state"], failed["state"]) == ("done", "failed")
        assert failed["count"] == 4 + (rank == 1)
        assert failed["site"].startswith("<string>:")
    text = differences(tmp_path)
    assert f"the ranks differ first in collective {failed['sequence']}" in text
    assert re.search(r"rank 1: all_reduce sum 5 × float64 \w+, failed at <string>:", text)


@pytest.mark.mpirun
def test_an_operation_of_several_parts_says_it_once(tmp_path):
    program = """
        try:
            comm.scatter(np.zeros((2, 3)), root=comm.rank)
        except pycomm.MismatchError as error:
            assert str(error).count("what this rank did last") == 1, error
            raise
    """
    result, _ = run(2, program, env={"PYCOMM_FLIGHT": str(tmp_path)})
    assert "MismatchError: rank" in result.stderr and "AssertionError" not in result.stderr


@pytest.mark.mpirun
@pytest.mark.parametrize("how", ["time.sleep(30)", "os.kill(os.getpid(), 19)"])
def test_a_timeout_leaves_also_the_flight_of_the_rank_that_is_late(tmp_path, how):
    program = f"""
        comm.barrier()
        if comm.rank == 1: {how}
        comm.all_reduce(np.ones(3))
    """
    result, _ = run(2, program, comm_timeout=1.0, env={"PYCOMM_FLIGHT": str(tmp_path)})
    assert result.returncode == 86
    waiting, late = flights(tmp_path)
    assert waiting["error"].startswith("CommTimeoutError: rank 0: rank 1 did not come")
    check(waiting["operations"][-1], kind="all_reduce", state="failed")
    check(late["operations"][-1], kind="barrier", state="done")
    text = differences(tmp_path)
    assert "rank 0: all_reduce sum 3 × float64 direct, failed at <string>:" in text
    assert "rank 1: is behind; its last was" in text


@pytest.mark.mpirun
@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("comm.recv(1 - comm.rank)", "DeadlockError"),
        ("sys.exit(0) if comm.rank else comm.recv(1)", "DepartedError"),
        ("comm.rank or {}['key']; comm.barrier()", "KeyError"),
    ],
)
def test_other_errors_leave_a_flight_too(tmp_path, block, error):
    result, _ = run(2, block, env={"PYCOMM_FLIGHT": str(tmp_path)})
    assert flights(tmp_path)[0]["error"].startswith(f"{error}: ")
    assert re.search(rf"what it did last is in {tmp_path}/.*/rank-0.json", result.stderr)


def test_a_folder_that_cannot_be_written_does_not_hide_the_error(tmp_path):
    (tmp_path / "file").touch()
    program = "comm.send(np.ones(1), 0); comm.recv(0, out=np.ones(2))"
    result, _ = run(1, program, env={"PYCOMM_FLIGHT": str(tmp_path / "file")})
    assert "what this rank did last cannot be written" in result.stderr
    assert "MismatchError: rank 0 sent shape" in result.stderr


def test_a_folder_without_flights_is_an_error(tmp_path):
    shown = CliRunner().invoke(main, ["doctor", "--flight", str(tmp_path)])
    assert shown.exit_code == 1 and "has no files rank-*.json" in shown.output
