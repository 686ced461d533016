"""The flight recorder: what a rank did last, as JSON on errors, and read from outside at any time.

The recorder itself is in csrc/flight.h: a ring of the last 1 000 operations in a memory file.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from pycomm import _native
from pycomm.errors import UNUSABLE, CommError, CommTimeoutError, MismatchError
from pycomm.types import DTYPES

_logger = logging.getLogger("pycomm")
_WRITTEN_ON = (MismatchError, *UNUSABLE)

Flight = dict[str, Any]
"""pid, rank, size, job, begun (how many operations in all) and operations, oldest first: dicts."""

_file: Path | None = None
_neighbours: dict[int, int] = {}


def describe(rank: int, size: int, job: str, neighbours: dict[int, int], folder: str) -> None:
    """Say whose flight this process records; the first call counts.

    Args:
        rank: its rank in the job.
        size: the job's number of ranks.
        job: the job's name, the same on all ranks.
        neighbours: the process numbers of the job's other ranks on this host.
        folder: where to write on errors; "" is a folder of the user's in the temporary one.
    """
    global _file, _neighbours
    if _file is None:
        _native.describe_flight(rank, size, job)
        parent = folder or f"{tempfile.gettempdir()}/pycomm-flight-{os.getuid()}"
        _file = Path(parent).absolute() / job / f"rank-{rank}.json"
        _neighbours = neighbours


def note_flight(error: BaseException) -> None:
    """Write this rank's flight if the error is one between ranks, and say so in its message.

    At a timeout, those of neighbours, too, which may be stuck and never write their own.
    """
    said = f"\nwhat this rank did last is in {_file}"
    if isinstance(error, _WRITTEN_ON) and said not in str(error) and (file := write(error)):
        if isinstance(error, CommTimeoutError):
            _write_neighbours(file.parent)
        error.args = (f"{error}{said}", *error.args[1:])


def write(error: BaseException) -> Path | None:
    """Write this rank's flight because of an error; return the file, None if there is none.

    A reader never sees half a file.
    """
    if _file is None:
        return None
    flight = {**_counted(_native.read_flight()), "error": f"{type(error).__name__}: {error}"}
    try:
        _save(flight, _file)
    except OSError as failure:
        _logger.warning("what this rank did last cannot be written: %s", failure)
        return None
    return _file


def read(pid: int) -> Flight:
    """Return the flight of a process of this host, also of one that hangs or is stopped.

    Raises:
        CommError: the process has no flight recorder, or it cannot be read.
    """
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if _target(entry).startswith(f"/memfd:{_native.FLIGHT_FILE}"):
                return _counted(_native.read_flight_of(str(entry)))
    except (OSError, RuntimeError) as error:
        raise CommError(f"process {pid} cannot be looked into: {error}") from None
    raise CommError(f"process {pid} has no flight recorder: give the PID of a rank")


def load(folder: Path) -> list[Flight]:
    """Return the flights that the ranks of one job wrote into a folder, by rank.

    Raises:
        CommError: there are none, or one is broken.
    """
    flights = [_loaded(file) for file in folder.glob("rank-*.json")]
    if not flights:
        raise CommError(f"{folder} has no files rank-*.json: an error names the folder to give")
    return sorted(flights, key=lambda flight: flight["rank"])


def _loaded(file: Path) -> Flight:
    try:
        flight = json.loads(file.read_text())
        if not {"rank", "size", "operations"} <= set(flight):
            raise ValueError("it is no record of a rank")
    except (OSError, TypeError, ValueError) as error:
        raise CommError(f"{file} cannot be read ({error}): move it elsewhere") from None
    return flight


def _save(flight: Flight, file: Path) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent)
    with open(descriptor, "w") as opened:
        json.dump(flight, opened)
    os.replace(temporary, file)


def _write_neighbours(folder: Path) -> None:
    for rank, pid in _neighbours.items():
        file = folder / f"rank-{rank}.json"
        if not file.exists():
            with contextlib.suppress(CommError, OSError):
                _save(read(pid), file)


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed meanwhile
        return ""


def _counted(flight: Flight) -> Flight:
    for operation in flight["operations"]:
        dtype = DTYPES.get(operation["dtype"])  # unknown while nothing was received
        operation["count"] = operation["bytes"] // dtype.itemsize if dtype else 0
    return flight
