"""What is wrong with a job, judged by the facts of its ranks, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pycomm.cli.facts import Facts
from pycomm.cli.report import counted
from pycomm.config import SETTINGS, unknown


def advice(ranks: Sequence[Facts]) -> list[str]:
    """Return a sentence for everything that is wrong; none if all is well."""
    return [*_launch(ranks), *_differences(ranks), *_settings(ranks), *_hosts(ranks)]


def _launch(ranks: Sequence[Facts]) -> Iterator[str]:
    first = ranks[0]
    if first.launched > len(ranks):
        yield (
            f"mpirun started {first.launched} processes, but {first.mpi} knows of {len(ranks)}: "
            "this mpirun belongs to another MPI than mpi4py uses; launch with that one's"
        )
    if first.threads in ("single", "funneled"):
        yield (
            f"MPI was initialised with thread level {first.threads}: asynchronous operations need "
            "serialized; import pycomm before mpi4py.MPI, or set mpi4py.rc.thread_level"
        )


def _differences(ranks: Sequence[Facts]) -> Iterator[str]:
    first = ranks[0]
    for rank, other in enumerate(ranks):
        for package in sorted({*first.versions, *other.versions}):
            mine, theirs = (f.versions.get(package, "missing") for f in (first, other))
            if mine != theirs:
                yield (
                    f"{package} is {mine} on rank 0 and {theirs} on rank {rank} ({other.host}): "
                    "install the same everywhere"
                )
        if first.mpi != other.mpi:
            yield f"MPI is {first.mpi} on rank 0 and {other.mpi} on rank {rank}: use one"


def _settings(ranks: Sequence[Facts]) -> Iterator[str]:
    names = sorted({name for facts in ranks for name in facts.settings})
    for name in names:
        values = [repr(f.settings[name]) if name in f.settings else "not set" for f in ranks]
        if name not in SETTINGS:
            yield unknown(name)
        elif len(set(values)) > 1:
            other = next(rank for rank, value in enumerate(values) if value != values[0])
            yield (
                f"{name} is {values[0]} on rank 0 and {values[other]} on rank {other}: give it to "
                "all hosts, with mpirun -x (Open MPI) or -genv (MPICH)"
            )
    if any(map(_memory_off, ranks)):
        yield "shared memory is off: unset PYCOMM_SHARED_MEMORY, or everything goes through MPI"


def _hosts(ranks: Sequence[Facts]) -> Iterator[str]:
    hosts = {facts.host: [f for f in ranks if f.host == facts.host] for facts in ranks}
    for host, mates in hosts.items():
        cores = {core for facts in mates for core in facts.cores}
        if len(mates) > len(cores):
            many = f"{counted(len(mates), 'rank')} on {counted(len(cores), 'core')}"
            yield (
                f"{host} has {many}: they take turns, which is slow; start fewer, or let them use "
                "more (mpirun --bind-to none)"
            )
        alone = len(mates) > min(facts.mates for facts in mates)
        if alone and not any(map(_memory_off, mates)):
            hidden = [why for facts in mates for why in facts.hidden.values()]
            yield (
                f"the ranks on {host} do not share memory ({(hidden or ['see the warnings'])[0]}): "
                "run them as one user, and in one container or with a common PID namespace"
            )
    if len(hosts) > 1 and ranks[0].costs.hosts.source == "guessed":
        yield (
            "what messages between these hosts cost is a guess, and so is which algorithm is best: "
            "run python -m pycomm doctor --tune on them once"
        )


def _memory_off(facts: Facts) -> bool:
    return facts.settings.get("PYCOMM_SHARED_MEMORY", "").lower() in ("0", "false")
