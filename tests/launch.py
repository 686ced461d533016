"""Launches a program on several ranks, with a time limit that leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parent.parent

SETTINGS = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_ALLOW_RUN_AS_ROOT": "1",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PYTHONUNBUFFERED": "1",
}


def find_mpirun() -> str | None:
    """Return the mpirun beside the running Python, or else the one on PATH, or None."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun")


def mpirun(
    ranks: int,
    *args: str | Path,
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
    cwd: str | Path = REPO,
    options: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run `mpirun -np ranks python *args` and return its exit code, stdout and stderr.

    Args:
        ranks: how many ranks to launch; more than there are cores is fine.
        args: the script and its arguments, or "-c" and a program.
        timeout: seconds after which the whole process group is ended and the test fails.
        env: variables to set on top of the environment.
        cwd: where the program runs; the repository's root unless told.
        options: further ones for mpirun.
    """
    launcher = find_mpirun()
    if launcher is None:
        pytest.skip(f"there is no mpirun beside {sys.executable}")
    command = [launcher, *options, "-np", str(ranks), sys.executable, *map(str, args)]
    return run_group(command, timeout, {**SETTINGS, **(env or {})}, cwd)


START = """
import sys, os, time, threading
import numpy as np
import pycomm
comm = pycomm.init(timeout={timeout})
comm.barrier()
start = time.perf_counter()
"""


def run(
    ranks: int,
    program: str,
    timeout: float = 60.0,
    comm_timeout: float = 60.0,
    setup: str = "",
    **options: Any,
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a program on ranks that have `comm`; return its result and the seconds it took."""
    start = time.perf_counter()
    code = START.format(timeout=comm_timeout) + setup + textwrap.dedent(program)
    result = mpirun(ranks, "-c", code, timeout=timeout, **options)
    return result, time.perf_counter() - start


def run_group(
    command: list[str], timeout: float, env: Mapping[str, str] = SETTINGS, cwd: str | Path = REPO
) -> subprocess.CompletedProcess[str]:
    """Run a command with variables on top of the environment; end all of it when time is up."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, **env},
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        out, err = _end_group(process)
        pytest.fail(f"{' '.join(command)}: still running after {timeout} s\n{out}\n{err}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _end_group(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Ask the launcher to end its ranks; end whatever of its session is left 5 s later."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        return process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        for pid in _session(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return process.communicate(timeout=5)


def _session(leader: int) -> list[int]:
    """Return the processes of a session: launchers put each rank in a process group of its own."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == leader:
                found.append(pid)
    return found
