"""What a step of communication costs: measured once a machine and kept as JSON, or guessed."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

_logger = logging.getLogger("pycomm")
_FORMAT = "pycomm costs 1"


@dataclass(frozen=True)
class Link:
    """One way for bytes: a step takes latency_us + bytes / bandwidth_gbps.

    Attributes:
        latency_us: of a step without data, in microseconds.
        bandwidth_gbps: of the bytes that the busiest rank sends, in gigabytes per second.
        source: "guessed", or when and where it was measured.
    """

    latency_us: float
    bandwidth_gbps: float
    source: str = "guessed"

    def us(self, steps: float, nbytes: float) -> float:
        """Return the microseconds of so many steps that send so many bytes in all."""
        return self.latency_us * steps + nbytes / (self.bandwidth_gbps * 1e3)

    def __str__(self) -> str:
        return (
            f"{self.latency_us:.3g} us a step + bytes / {self.bandwidth_gbps:.3g} GB/s, "
            f"{self.source}"
        )


@dataclass(frozen=True)
class Costs:
    """The costs of every link of a machine.

    Attributes:
        memory: a collective in the shared memory of a host.
        messages: messages of MPI within a host.
        hosts: messages between hosts.
        algorithms: what single algorithms have made of a link where they were measured, by
            "link/kind/name", for instance "hosts/all_reduce/ring".
    """

    memory: Link = Link(0.5, 10.0)
    messages: Link = Link(5.0, 5.0)
    hosts: Link = Link(5.0, 5.0)
    algorithms: Mapping[str, Link] = field(default_factory=dict)

    def of(self, link: str, kind: str, name: str) -> Link:
        """Return what an algorithm makes of a link, or else the link itself."""
        return self.algorithms.get(f"{link}/{kind}/{name}") or getattr(self, link)

    def updated(self, links: Mapping[str, Link], algorithms: Mapping[str, Link]) -> Costs:
        """Return these costs with newer ones, by their names here."""
        return replace(self, **links, algorithms={**self.algorithms, **algorithms})


LINKS = ("memory", "messages", "hosts")


def cache_file(mpi: str) -> Path:
    """Return where this machine's costs with an MPI library are kept, below XDG_CACHE_HOME."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    key = crc32(f"{machine()} {mpi}".encode())
    return Path(cache) / "pycomm" / f"costs-{socket.gethostname()}-{key:08x}.json"


@cache
def machine() -> str:
    """Return what stays the same from boot to boot: the name, the cores and the processor."""
    try:
        with open("/proc/cpuinfo") as file:
            model = next((m[1] for m in map(_MODEL.match, file) if m), platform.machine())
    except OSError:
        model = platform.machine()
    return f"{socket.gethostname()}, {os.cpu_count()} × {model}"


_MODEL = re.compile(r"model name\s*: (.*)")


def load(path: str, mpi: str) -> Costs:
    """Return the costs in a file, with guesses for what it does not have.

    A file that cannot be used is warned about and ignored.

    Args:
        path: PYCOMM_TUNING, whose file may come from another machine; "" is this machine's own.
        mpi: the MPI library in use; costs that were measured with another are not used.
    """
    file = Path(path) if path else cache_file(mpi)
    try:
        return _parse(json.loads(file.read_text(encoding="utf-8")), mpi, "" if path else machine())
    except FileNotFoundError:
        if path:
            _logger.warning("PYCOMM_TUNING=%s does not exist: choosing by guesses", path)
    except (OSError, ValueError, RecursionError) as error:
        _logger.warning("%s is not used, choosing by guesses: %s", file, error)
    return Costs()


def _parse(content: Any, mpi: str, here: str) -> Costs:
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"its format is not {_FORMAT!r}")
    if content.get("mpi") != mpi:
        raise ValueError(f"it was measured with {content.get('mpi')}, this is {mpi}")
    if here and content.get("machine") != here:
        raise ValueError(f"it was measured on {content.get('machine')}, this is {here}")
    algorithms = content.get("algorithms", {})
    if not isinstance(algorithms, dict):
        raise ValueError(f"{algorithms} is not a table of algorithms")
    links = {name: _link(content[name]) for name in LINKS if name in content}
    return Costs().updated(links, {name: _link(entry) for name, entry in algorithms.items()})


def _link(entry: Any) -> Link:
    try:
        link = Link(**entry)
        latency_us, bandwidth_gbps = float(link.latency_us), float(link.bandwidth_gbps)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{entry} is not a link: {error}") from None
    if not all(math.isfinite(number) and number > 0 for number in (latency_us, bandwidth_gbps)):
        raise ValueError(f"{entry} is not a link: it needs a latency and a bandwidth above 0")
    return Link(latency_us, bandwidth_gbps, str(link.source))


def save(costs: Costs, path: str, mpi: str) -> Path:
    """Write what was measured of `costs`, at once or not at all; return the file.

    Args:
        costs: guesses among them are left out.
        path: as for `load`.
        mpi: as for `load`.

    Raises:
        OSError: the file cannot be written.
    """
    file = Path(path) if path else cache_file(mpi)
    entries = asdict(costs)
    for name in LINKS:
        if entries[name]["source"] == "guessed":
            del entries[name]
    content = {"format": _FORMAT, "machine": machine(), "mpi": mpi, **entries}
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        new = Path(folder) / file.name
        new.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(new, file)
    return file
