"""What a run tells: the time meter, the table per rank, progress and metrics as it goes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pycomm.devices.process import process_device
from pycomm.errors import ArgumentError
from pycomm.parallel.placement import CPU
from pycomm.trainers.checkpoint import check_path

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class Meter:
    """Adds up the time of training on this rank: `with meter:` around it, `samples` as they come.

    Computing is the time outside pycomm, data loading included; communicating is the time inside
    pycomm less the part in which it waited for other ranks, which is idle.

    Args:
        comm: all ranks.
        device: where this rank computes.
        others: more Communicators that the trainer uses, such as those of a mesh.
    """

    def __init__(
        self,
        comm: Communicator,
        device: torch.device = CPU,
        others: Sequence[Communicator] = (),
    ):
        self.comm, self._device, self._others = comm, device, others
        self.samples = 0
        self.wall_s = self.busy_s = self.idle_s = 0.0
        self.bytes_sent = 0

    def __enter__(self) -> Meter:
        self._start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        wall, busy, idle, sent = (b - a for a, b in zip(self._start, self._now()))
        self.wall_s += wall
        self.busy_s += busy
        self.idle_s += idle
        self.bytes_sent += int(sent)

    def add(self, transferring_s: float, idle_s: float) -> None:
        """Add time inside pycomm that its counters do not have: of messages."""
        self.busy_s += transferring_s + idle_s
        self.idle_s += idle_s

    def row(self) -> dict[str, Any]:
        """Return this rank's line of the report; times in seconds."""
        on_gpu = self._device.type == "cuda"
        return {
            "rank": self.comm.rank,
            "samples_per_s": self.samples / self.wall_s if self.wall_s else 0.0,
            "computing_s": self.wall_s - self.busy_s,
            "communicating_s": self.busy_s - self.idle_s,
            "idle_s": self.idle_s,
            "bytes_sent": self.bytes_sent,
            **({"gpu_bytes": gpu_memory(self._device)} if on_gpu else {}),
        }

    def _now(self) -> tuple[float, float, float, int]:
        stats = [comm.stats for comm in (self.comm, *self._others)]
        busy, idle = sum(s.busy_s for s in stats), sum(s.idle_s for s in stats)
        return time.perf_counter(), busy, idle, sum(s.bytes_sent for s in stats)


def gpu_memory(device: torch.device) -> int:
    """Return the most bytes that torch had in use on a GPU, and those of pycomm's slabs."""
    return torch.cuda.max_memory_allocated(device) + process_device().slabs.nbytes


def state_bytes(optimizer: torch.optim.Optimizer | None) -> int:
    """Return the size of what an optimizer keeps on this rank: a part of all, if it is sharded."""
    if optimizer is None:
        return 0
    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


_COLUMNS = {
    "rank": ("rank", "{}"),
    "samples_per_s": ("samples/s", "{:.1f}"),
    "computing_s": ("computing s", "{:.2f}"),
    "communicating_s": ("communicating s", "{:.2f}"),
    "idle_s": ("idle s", "{:.2f}"),
    "bytes_sent": ("MB sent", "{:.1f}"),
    "state_bytes": ("state MB", "{:.1f}"),
    "copy_bytes": ("copies MB", "{:.1f}"),
    "gpu_bytes": ("GPU MB", "{:.1f}"),
}


def print_rows(
    rows: list[dict[str, Any]], console: Console | None = None, remarks: Sequence[str] = ()
) -> None:
    """Print the rows of `Trainer.report`, one for each rank, as a table, and remarks below it."""
    console = console or Console()
    table = Table(title="per rank")
    shown = [key for key in _COLUMNS if any(key in row for row in rows)]
    for key in shown:
        table.add_column(_COLUMNS[key][0], justify="right")
    for row in rows:
        table.add_row(*(_COLUMNS[key][1].format(_in_unit(key, row[key])) for key in shown))
    console.print(table)
    for remark in remarks:
        console.print(remark, highlight=False, soft_wrap=True)


def _in_unit(key: str, value: float) -> float:
    return value / 1e6 if "bytes" in key else value


class Log:
    """Progress bar and metrics file of one `fit`; on ranks other than 0 it does nothing.

    The file has a JSON record a line: step, epoch, loss, samples_per_s. Steps that come after
    `step` are dropped from it first: a resumed run makes them again.

    Args:
        rank: this rank.
        step: how many steps have been made.
        last_step: how many there will be.
        path: of the metrics file, or None.
        progress: whether to show a bar.

    Raises:
        ArgumentError: the file exists and holds something else.
    """

    def __init__(
        self, rank: int, step: int, last_step: int, path: str | Path | None, progress: bool
    ):
        check_path("metrics", path)
        self._file = _reopen(Path(path), step) if path is not None and rank == 0 else None
        self._bar = tqdm(
            total=last_step, initial=step, unit="step", disable=not progress or rank != 0
        )
        self._time = time.perf_counter()

    def step(self, step: int, epoch: int, loss: float, samples: int) -> None:
        """Report a step: its number, its mean loss and the samples of its global batches."""
        now = time.perf_counter()
        rate = samples / (now - self._time)
        self._time = now
        self._bar.set_postfix(loss=f"{loss:.4f}", samples_per_s=f"{rate:.0f}", refresh=False)
        self._bar.update()
        if self._file is not None:
            record = {"step": step, "epoch": epoch, "loss": loss, "samples_per_s": rate}
            self._file.write(json.dumps(record) + "\n")

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._file is not None:
            self._file.close()


def _reopen(path: Path, step: int) -> Any:
    try:
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        if not all(line.startswith('{"step"') for line in lines):
            raise ValueError(lines[0])
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", buffering=1)
    except OSError as error:
        raise ArgumentError(f"metrics={str(path)!r} cannot be written: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArgumentError(f"metrics={str(path)!r} holds no metrics: name another file") from error
    file.writelines(kept)
    return file
