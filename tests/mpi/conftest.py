"""Tests that all ranks of `mpirun -np N python -m pytest tests/mpi` run together, in one order.

A test passes only if it passes on every rank; one that fails anywhere ends the run everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mpi4py import MPI

import pycomm

_verdicts = None

MODELS = frozenset(
    """
    better_cut checkpoints_of_layouts compression compression_training deferred_batch_norm hybrid
    leftovers mesh_leftovers model_parallel_page models_without_memory numbers precision resume
    schedules splitting sync_batch_norm tensor_layers tensor_parallel tensor_plan ties
    """.split()
)
"""Files, without test_, of models and optimizers: above collectives and messages, which they use as
test_data_parallel.py, test_layouts.py, test_model_parallel.py, test_pipeline.py, test_trainers.py
do, which run everywhere."""


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let rank 0 alone write to the terminal."""
    global _verdicts
    pycomm.init(timeout=60.0)
    _verdicts = MPI.COMM_WORLD.Dup()
    if _verdicts.rank > 0:
        config.pluginmanager.unregister(config.pluginmanager.getplugin("terminalreporter"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the ranks of other runs show as well.

    Open MPI on shared memory runs everything on every number of ranks, MPICH on 3 ranks. What other
    runs change is how calls and messages reach the others, so they leave out what is made of these
    alone: MODELS, and under MPICH also what runs on doubles of GPUs.
    """
    world = pycomm.init()
    open_mpi = "Open MPI" in MPI.Get_library_version()
    if world.config.shared_memory and (open_mpi or world.size == 3):
        return
    same = {
        item
        for item in items
        if item.path.stem.removeprefix("test_") in MODELS
        or (not open_mpi and item.path.stem.startswith("test_device_"))
    }
    config.hook.pytest_deselected(items=list(same))
    items[:] = [item for item in items if item not in same]


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
