"""Runs of benchmarks, one after the other in one job: a launch costs more than most of them."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pycomm
from pycomm.devices import process
from pycomm.devices.process import Device
from tests.cuda.compilers import cxx
from tests.cuda.host import being_built
from tests.devices.host_runtime import HostRuntime
from tests.launch import mpirun

_END = "# exit code "
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Run:
    """What one run of a benchmark left."""

    returncode: int
    stdout: str

    @property
    def rows(self) -> list[list[str]]:
        """The cells of the lines that are no comments."""
        return [line.split() for line in self.stdout.splitlines() if not line.startswith("#")]


def launched(
    ranks: int, runs: Mapping[K, Sequence[object]], doubles: bool = False, timeout: float = 180.0
) -> dict[K, Run]:
    """Run benchmarks on so many ranks; return what they left, by the same names.

    Args:
        runs: the script, such as "collectives", and its arguments.
        doubles: whether all ranks share a double of a GPU.
        timeout: seconds for all of them together.
    """
    asked = json.dumps([[str(word) for word in run] for run in runs.values()])
    result = mpirun(ranks, "-m", __name__, *["--doubles"] * doubles, asked, timeout=timeout)
    assert result.returncode == 0, result.stdout + result.stderr
    found, lines = [], []
    for line in result.stdout.splitlines():
        if line.startswith(_END):
            found.append(Run(int(line.removeprefix(_END)), "\n".join(lines)))
            lines = []
        else:
            lines.append(line)
    return dict(zip(runs, found, strict=True))


def main(*arguments: str) -> None:
    """Do the runs of one job, on this rank."""
    comm = pycomm.init()
    if "--doubles" in arguments:
        if comm.rank == 0:
            being_built("reduce.cu", cxx()).result()  # streams would wait for it, lose patience
        comm.barrier()
    for script, *options in json.loads(arguments[-1]):
        if "--doubles" in arguments:
            process.use(Device.of(HostRuntime(seed=comm.rank)))
        codes = comm.all_gather_object(_code_of(script, options))
        if comm.rank == 0:
            print(f"{_END}{max(codes)}", flush=True)


def _code_of(script: str, options: list[str]) -> int:
    sys.argv = [f"bench/{script}.py", *options]
    try:
        importlib.import_module(f"bench.{script}").main(options)
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


if __name__ == "__main__":
    main(*sys.argv[1:])
