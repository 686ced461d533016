"""`python -m pycomm doctor` alone and on several ranks, and what --tune leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from pycomm.cli import main
from pycomm.costs import LINKS
from tests.hosts.network import hosts, require
from tests.launch import REPO, mpirun

DOCTOR = ("-m", "pycomm", "doctor")


@pytest.fixture
def cache(tmp_path):
    return {"XDG_CACHE_HOME": str(tmp_path)}


def kept(folder):
    """Return the only table of costs that was kept."""
    (file,) = (folder / "pycomm").iterdir()
    return json.loads(file.read_text())


def alone(*arguments):
    command = [sys.executable, *DOCTOR, *arguments]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)


def test_a_process_alone_is_told_that_all_is_well():
    result = alone()
    assert result.returncode == 0, result.stderr
    assert "ranks: 1 rank on 1 host" in result.stdout
    assert result.stdout.endswith("problems: none found\n")


def test_one_rank_has_nothing_to_tune():
    result = alone("--tune")
    assert result.returncode == 1
    assert "one rank sends no messages: mpirun -np 2" in result.stderr


@pytest.mark.mpirun
def test_rank_0_speaks_for_all(cache):
    result = mpirun(3, *DOCTOR, env={**cache, "PYCOMM_ORDER": "rank"})
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("versions: ") == 1
    assert "ranks: 3 ranks on 1 host" in result.stdout
    assert "shared memory: with each other" in result.stdout
    assert "* PYCOMM_ORDER=rank: " in result.stdout


def test_ranks_that_may_not_share_memory_are_seen(cache):
    result = mpirun(2, *DOCTOR, env={**cache, "PYCOMM_SHARED_MEMORY": "0"})
    assert "shared memory: no" in result.stdout
    assert "shared memory is off: unset PYCOMM_SHARED_MEMORY" in result.stdout


@pytest.mark.mpirun
def test_a_wrong_setting_is_an_error_without_a_traceback(cache):
    result = mpirun(2, *DOCTOR, env={**cache, "PYCOMM_ALGORITHM": "rnig"})
    assert result.returncode != 0
    assert "Error: PYCOMM_ALGORITHM='rnig': there is no algorithm 'rnig'" in result.stderr
    assert "Traceback" not in result.stderr


def test_tuning_keeps_a_table_that_the_next_run_chooses_by(cache, tmp_path):
    """And tuning without shared memory keeps what was known of it."""
    result = mpirun(2, *DOCTOR, "--tune", env=cache)
    assert result.returncode == 0, result.stderr
    assert f"kept in {tmp_path}" in result.stdout
    before = kept(tmp_path)
    assert {*LINKS} & {*before} == {"memory", "messages"}
    assert {"messages/all_reduce/ring", "memory/broadcast/direct"} <= {*before["algorithms"]}
    program = "import pycomm; print(pycomm.init().explain('all_reduce', 4096), flush=True)"
    assert "costs: measured" in mpirun(2, "-c", program, env=cache).stdout
    mpirun(2, *DOCTOR, "--tune", env={**cache, "PYCOMM_SHARED_MEMORY": "0"})
    after = kept(tmp_path)
    assert after["memory"] == before["memory"]
    assert after["messages"] != before["messages"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    inside = str(tmp_path / "file" / "costs.json")
    result = mpirun(2, *DOCTOR, "--tune", env={"PYCOMM_TUNING": inside})
    assert result.returncode != 0
    assert "name another file by PYCOMM_TUNING" in result.stderr


@pytest.mark.mpirun
def test_tuning_between_hosts_measures_their_wire(cache, tmp_path):
    """1 Gbit/s is 0.125 GB/s; more than that is seen only as far as bursts reach."""
    require()
    with hosts(2, "1gbit") as network:
        result = network.mpirun(1, *DOCTOR, "--tune", env=cache)
        assert result.returncode == 0, result.stderr
        seen = network.mpirun(1, *DOCTOR, env=cache)
    table = kept(tmp_path)
    assert {*LINKS} & {*table} == {"hosts"}
    assert table["hosts"]["bandwidth_gbps"] < 0.25
    assert "2 ranks on h1, h2" in table["hosts"]["source"]
    assert "problems: none found" in seen.stdout


@pytest.mark.parametrize("text", ['{"rank": 0, "operat', "[]", "{}", "7"])
def test_a_broken_flight_is_named(text, tmp_path):
    file = tmp_path / "rank-0.json"
    file.write_text(text)
    result = CliRunner().invoke(main, ["doctor", "--flight", str(tmp_path)])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert f"Error: {file} cannot be read" in result.output
