"""Tests that all ranks of `mpirun -np N python -m pytest tests/mpi` run together, in one order.

A test passes only if it passes on every rank; one that fails anywhere ends the run everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mpi4py import MPI

import pycomm

_verdicts = None


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let rank 0 alone write to the terminal."""
    global _verdicts
    pycomm.init(timeout=60.0)
    _verdicts = MPI.COMM_WORLD.Dup()
    if _verdicts.rank > 0:
        config.pluginmanager.unregister(config.pluginmanager.getplugin("terminalreporter"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what another MPI does not change, but for 3 ranks: what runs on doubles of GPUs.

    All of it runs under Open MPI; together the two would take most of the time of all tests.
    """
    world = pycomm.init()
    if "Open MPI" in MPI.Get_library_version() or (world.size == 3 and world.config.shared_memory):
        return
    same = [item for item in items if item.path.name.startswith("test_device_")]
    config.hook.pytest_deselected(items=same)
    items[:] = [item for item in items if item not in set(same)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Make each verdict that of all ranks."""
    report = yield
    if report.when == "teardown" or _verdicts.size == 1:
        return report
    problems = _verdicts.allgather(report.longreprtext if report.failed else None)
    if any(problems):
        report.outcome = "failed"
        report.longrepr = "\n".join(f"rank {r}:\n{p}" for r, p in enumerate(problems) if p)
        item.session.shouldstop = "a rank failed: the others may be anywhere"
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave together: the launcher ends all as soon as one rank leaves with a failure."""
    if _verdicts is not None:
        _verdicts.barrier()


@pytest.fixture(scope="session")
def comm() -> pycomm.Communicator:
    """The Communicator of all ranks."""
    return pycomm.init()
