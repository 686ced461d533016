"""The flight recorder on errors: what every rank leaves behind, and how that is compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from pycomm.cli import main
from pycomm.observe import flight
from tests.launch import run
from tests.observe.test_flight import check


def flights(folder: Path) -> list[flight.Flight]:
    (job,) = folder.iterdir()
    return flight.load(job)


def differences(folder: Path) -> str:
    (job,) = folder.iterdir()
    return CliRunner().invoke(main, ["doctor", "--flight", str(job)]).output


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
