"""What each rank knows of its process, its host and its node-mates."""

from __future__ import annotations

import os
import platform
import socket
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pycomm import _native, costs
from pycomm.communicator import Communicator
from pycomm.config import given
from pycomm.costs import Costs
from pycomm.world import LAUNCHERS

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


@dataclass(frozen=True)
class Facts:
    """One rank.

    Attributes:
        versions: by package; those that are not installed are missing.
        mpi: the MPI library.
        threads: its level of thread support.
        launched: how many ranks the launcher says that it started; 1 if there is none.
        host: its name.
        machine: what the host is.
        cores: those that the process may use.
        level: the instructions that loops use: plain, avx2 or avx512.
        huge_pages: the system's policy for shared memory; "" if it has none.
        settings: the PYCOMM_ variables that are set.
        mates: how many ranks share memory with this one, itself included.
        hidden: node-mates whose descriptors this process may not open, and why.
        costs: what choices are made by.
    """

    versions: dict[str, str]
    mpi: str
    threads: str
    launched: int
    host: str
    machine: str
    cores: tuple[int, ...]
    level: str
    huge_pages: str
    settings: dict[str, str]
    mates: int
    hidden: dict[int, str]
    costs: Costs


def gather(comm: Communicator) -> list[Facts]:
    """Return the facts of every rank, in rank order; collective."""
    host = socket.gethostname()
    where = comm.all_gather_object((host, os.getpid()))
    pids = {rank: pid for rank, (name, pid) in enumerate(where) if name == host}
    local = comm.local
    shared = local.size > 1 and "all_reduce" in local.transport.fused
    wire = comm.world.wire
    return comm.all_gather_object(
        Facts(
            versions=versions(),
            mpi=wire.library,
            threads=wire.threads,
            launched=max(int(os.environ.get(name, 1)) for name in LAUNCHERS),
            host=host,
            machine=costs.machine(),
            cores=tuple(sorted(os.sched_getaffinity(0))),
            level=_native.level(),
            huge_pages=_huge_pages(),
            settings={name: os.environ[name] for name in given()},
            mates=local.size if shared else 1,
            hidden={rank: why for rank, pid in pids.items() if (why := _hidden(pid))},
            costs=comm.world.tuning.costs,
        )
    )


def versions() -> dict[str, str]:
    """Return the versions of what takes part, if installed."""
    found = {"Python": platform.python_version()}
    for package in ("pycomm", "numpy", "mpi4py", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _huge_pages() -> str:
    """Return the policy in brackets, as in `always within_size [advise] never`."""
    try:
        return _HUGE_PAGES.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return ""


def _hidden(pid: int) -> str:
    try:
        os.listdir(f"/proc/{pid}/fd")
    except OSError as error:
        return str(error)
    return ""
