"""Spans of operations as a Chrome trace file that Perfetto opens, one file a rank."""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Trace:
    """Collects spans in memory and writes `<folder>/rank-<rank>.json` when the process exits."""

    def __init__(self, folder: str, rank: int):
        self._rank = rank
        self._path = Path(folder) / f"rank-{rank}.json"
        self._events: list[dict[str, Any]] = []
        atexit.register(self.write)

    @contextmanager
    def span(self, name: str, **arguments: Any) -> Iterator[None]:
        """Record the body's duration as `name`."""
        start_ns = time.time_ns()
        try:
            yield
        finally:
            self._events.append(
                {
                    "name": name,
                    "ph": "X",
                    "pid": self._rank,
                    "tid": threading.get_native_id(),
                    "ts": start_ns / 1e3,
                    "dur": (time.time_ns() - start_ns) / 1e3,
                    "args": arguments,
                }
            )

    def write(self) -> None:
        """Write all spans so far; a reader never sees half a file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        name = {"name": "process_name", "ph": "M", "pid": self._rank}
        events = [{**name, "args": {"name": f"rank {self._rank}"}}, *self._events]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"traceEvents": events}))
        os.replace(temporary, self._path)
