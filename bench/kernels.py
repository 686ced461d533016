"""Times the CUDA kernels of one GPU: python bench/kernels.py [OPTIONS]."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click
import numpy as np

from bench import environment, options, outputs, records, report
from bench.device import Device
from bench.device_kernels import Kernel, copy_use
from bench.device_sampling import collect, overhead_us
from bench.device_table import kernels
from bench.peers import UnavailableError
from bench.records import Record
from bench.rotation import Sets
from bench.sampling import Plan
from bench.sizes import Names, Sizes
from pycomm.kernels.device import device_view
from pycomm.types import DTYPES, SUM

_PEERS = {"torch", "torch-foreach", "cupy"}


@dataclasses.dataclass(frozen=True)
class Moved:
    """What a record needs of an operation: its name, and bytes moved for each byte of size."""

    name: str
    bytes_per_byte: float

    def bus(self, ranks: int) -> float:
        """Return the factor of busbw: bytes that are read and written."""
        return self.bytes_per_byte


@dataclasses.dataclass(frozen=True)
class Case:
    """A kernel on one size, with the fields that records.record reads."""

    op: Moved
    dtype: str
    redop: str
    count: int
    size_bytes: int
    root: int = -1
    place: str = "out"
    ranks: int = 1


def measured(device: Device, kernel: Kernel, size: int, plan: Plan, plant: bool) -> list[Record]:
    """Verify a kernel on a size, then time it, its competitors and a copy in turn."""
    moved = kernel.moved_bytes(size)
    sets = Sets(device, kernel.layout(size), moved, kernel.most_sets)
    kernel.prepare(sets)
    uses = kernel.uses(sets)
    wrong = kernel.wrong(sets, uses["pycomm"], plant)
    uses["copy"] = copy_use(device, moved, sets.count)
    samples = collect(device, uses, sets.count, plan)
    op = Moved(kernel.name, moved / size)
    case = Case(op, kernel.dtype, kernel.redop, size // DTYPES[kernel.dtype].itemsize, size)
    found = [
        records.record(case, name, "none", samples[name], wrong if name == "pycomm" else None)  # type: ignore[arg-type]
        for name in uses
    ]
    return records.compared(found, _PEERS & set(uses))


def overheads(device: Device) -> dict[str, float]:
    """Return how long Python takes to launch a reduction of two arrays of 4 KiB, by their kind."""
    arrays = [device.xp.zeros(1024, "float32") for _ in range(3)]
    kinds: dict[str, list[Any]] = {
        "DeviceView": [device_view(a) for a in arrays],
        "CuPy array": arrays,
    }
    if device.torch is not None:
        kinds["torch tensor"] = [device.tensor(a.view(np.uint8), "float32") for a in arrays]
    dtype = DTYPES["float32"]

    def call(given: list[Any]) -> float:
        return overhead_us(device, lambda: device.kernels.reduce(given[:2], given[2], dtype, SUM))

    found = {kind: call(given) for kind, given in kinds.items()}
    found["CuPy's add"] = overhead_us(device, lambda: device.xp.add(*arrays[:2], out=arrays[2]))
    if device.torch is not None:
        a, b, out = kinds["torch tensor"]
        found["torch's add"] = overhead_us(device, lambda: device.torch.add(a, b, out=out))
    return found


def share_of_copy(found: Iterable[Record]) -> list[str]:
    """Return a table: how near each kernel comes to a copy of the same bytes, and to others."""
    lines = [
        f"{'#op':<14}{'type':<15}{'redop':<15}{'size(B)':>11}"
        f"{'GB/s':>9}{'of copy':>9}{'vs best peer':>14}"
    ]
    cases: dict[tuple, dict[str, Record]] = {}
    for r in found:
        cases.setdefault((r.op, r.dtype, r.redop, r.size_bytes), {})[r.impl] = r
    for (op, dtype, redop, size), by_impl in cases.items():
        own, copy = by_impl["pycomm"], by_impl["copy"]
        peer = "-" if own.vs_best_peer is None else f"{own.vs_best_peer:.2f}"
        share = f"{100 * copy.t_med_us / own.t_med_us:.0f} %"
        lines.append(
            f" {op:<13}{dtype:<15}{redop:<15}{size:>11}{own.busbw_gbps:>9.0f}{share:>9}{peer:>14}"
        )
    return lines


def meta_of(device: Device) -> dict[str, Any]:
    """Return the meta record."""
    return {
        "record": "meta",
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": environment.commit(),
        "argv": sys.argv,
        "versions": environment.versions() | environment.device_versions(),
        "machine": f"{device.name()}; {environment.machine()}",
        "cores": os.cpu_count(),
        "ranks": 1,
        "oversubscribed": False,
        "overhead_us": overheads(device),
    }


def header(meta: dict[str, Any]) -> list[str]:
    """Return the meta record as lines that begin with #."""
    pairs = " ".join(f"{name} {number}" for name, number in meta["versions"].items())
    calls = ", ".join(f"{kind} {us:.1f} µs" for kind, us in meta["overhead_us"].items())
    return [
        f"# argv: {' '.join(meta['argv'])}",
        f"# commit: {meta['commit']}, {meta['time']}",
        f"# versions: {pairs}",
        f"# machine: {meta['machine']}",
        f"# a launch from Python: {calls}",
        "# busbw: bytes read and written over the median time; copy: as many by one device copy",
    ]


def run(
    device: Device, names: list[str], sizes: list[int], plan: Plan, plant: bool
) -> tuple[dict[str, Any], list[Record]]:
    """Measure and print; return the meta record and the results."""
    meta = meta_of(device)
    print("\n".join([*header(meta), report.titles()]), flush=True)
    known, found = kernels(), []
    for name in names:
        for size in sizes:
            new = measured(device, known[name], size, plan, plant)
            device.release()
            print("\n".join(map(report.row, new)), flush=True)
            found += new
    print("\n".join(["#", *share_of_copy(found)]), flush=True)
    return meta, found


@click.command(context_settings=options.SETTINGS)
@click.option(
    "--kernel", "names", type=Names(kernels()), default="all", help=f"Of {', '.join(kernels())}."
)
@click.option("--sizes", type=Sizes(), default="4K:1G:4", help="Bytes of one input.")
@options.seconds(0.05, "implementation and size")
@options.ITERATIONS
@options.sample_us("launches")
@outputs.JSON
@outputs.plot("time and bandwidth")
@click.option("--plant", is_flag=True, help="Falsify a byte of every result: the run has to fail.")
def main(
    names: list[str],
    sizes: list[int],
    seconds: float,
    iterations: int | None,
    sample_us: float,
    json: Path | None,
    plot: Path | None,
    plant: bool,
) -> None:
    """Time each kernel beside a device copy of the same bytes, CuPy and torch, verified first."""
    try:
        device = Device.opened()
    except UnavailableError as error:
        raise click.ClickException(str(error)) from None
    meta, found = run(device, names, sizes, Plan(sample_us, seconds, iterations), plant)
    if json:
        records.write(json, meta, found)
    if plot:
        from bench.drawing import draw

        draw([(meta, found)], plot)
    wrong = sum(record.wrong or 0 for record in found)
    if wrong:
        raise click.ClickException(f"FAILED: {wrong} wrong bytes")


if __name__ == "__main__":
    main()
