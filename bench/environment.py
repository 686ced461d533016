"""The header: what was measured with what, on what; and nothing else of the environment."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from datetime import date, datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.ranks import Ranks
from pycomm.transport.mpi import library_name

ROOT = Path(__file__).resolve().parent.parent

_XHC = "OMPI_MCA_coll_xhc_priority"
_DEVICE_PACKAGES = ("cupy-cuda13x", "cupy-cuda12x", "numba-cuda")
_THREADS = ("single", "funneled", "serialized", "multiple")


def describe(
    ranks: Ranks, peers: Iterable[str], missing: dict[str, str], gpu: str | None = None
) -> dict[str, Any]:
    """Return the meta record; collective.

    Args:
        ranks: who takes part.
        peers: names and versions of the implementations.
        missing: implementation → why it is not measured.
        gpu: which GPUs take part; None if arrays are on the host.
    """
    affinity = ranks.gathered(sorted(os.sched_getaffinity(0)))
    local = ranks.comm.local.size
    crowded = ranks.gathered(local > len(os.sched_getaffinity(0)))
    return {
        "record": "meta",
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "argv": sys.argv,
        "versions": versions() if gpu is None else versions() | device_versions(),
        "mpi": mpi_name(ranks.mpi),
        "mpi_threads": _THREADS[ranks.mpi.Query_thread()],
        "transport": ranks.comm.explain("all_reduce", 1 << 20).splitlines()[0],
        "machine": machine(),
        "device": "cpu" if gpu is None else "cuda",
        "gpu": gpu,
        "cores": os.cpu_count(),
        "ranks": ranks.size,
        "hosts": ranks.hosts,
        "affinity": [spans(cores) for cores in affinity],
        "oversubscribed": any(crowded),
        "peers": [p for p in peers if p],
        "missing": missing,
    }


def header(meta: dict[str, Any]) -> list[str]:
    """Return the meta record as lines that begin with #."""
    each = ", ".join(f"{rank}: {cores}" for rank, cores in enumerate(meta["affinity"]))
    pairs = " ".join(f"{name} {number}" for name, number in meta["versions"].items())
    lines = [
        f"argv: {' '.join(meta['argv'])}",
        f"commit: {meta['commit']}, {meta['time']}",
        f"versions: {pairs}",
        f"mpi: {meta['mpi']}, threads {meta['mpi_threads']}",
        f"transport: {meta['transport']}",
        f"machine: {meta['machine']}",
        *([f"gpu: {meta['gpu']}"] if meta["gpu"] else []),
        f"ranks: {meta['ranks']} on {meta['hosts']} host(s), cores: {meta['cores']}, "
        f"oversubscribed: {'yes' if meta['oversubscribed'] else 'no'}",
        f"affinity: {each}",
        f"peers: {', '.join(meta['peers'])}",
        *(f"not measured: {name}: {reason}" for name, reason in meta["missing"].items()),
    ]
    return [f"# {line}" for line in lines]


def versions(
    packages: Iterable[str] = ("pycomm", "numpy", "mpi4py", "torch"),
) -> dict[str, str]:
    """Return those of what takes part; of packages, if they are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def device_versions() -> dict[str, str]:
    """Return the versions of what drives a GPU, as far as it is installed."""
    found = versions(_DEVICE_PACKAGES)
    return {name: number for name, number in found.items() if number != "absent"}


def mpi_name(mpi: Any) -> str:
    """Return the library's name and version, and XHC if this run prefers that component."""
    name = library_name(mpi.Get_library_version())
    return f"{name} XHC" if int(os.environ.get(_XHC, "0")) >= 100 else name


def commit() -> str:
    """Return the commit of this repository, and whether files differ from it."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=10", "--dirty=, modified"]
    try:
        result = subprocess.run(git, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()


def machine() -> str:
    """Return processor, memory and kernel."""
    info = Path("/proc/cpuinfo").read_text()
    match = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    name = match[1] if match else platform.machine()
    return f"{name}, {memory:.0f} GiB, Linux {platform.release()}"


def results_folder(processor: str) -> Path:
    """Return where results of this day on a machine with this processor go."""
    name = re.sub(r"[^a-z0-9]+", "-", processor.lower()).strip("-")
    return ROOT / "bench" / "results" / f"{date.today()}-{name}"


def spans(cores: list[int]) -> str:
    """Return cores as spans, such as 0-3,8."""
    starts = [c for c in cores if c - 1 not in cores]
    ends = [c for c in cores if c + 1 not in cores]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends))
