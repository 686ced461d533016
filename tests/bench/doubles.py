"""Runs a benchmark on doubles of a GPU: python -m tests.bench.doubles SCRIPT [OPTIONS]."""

from __future__ import annotations

import importlib
import sys

import pycomm
from pycomm.devices import process
from pycomm.devices.process import Device
from tests.cuda.compilers import cxx
from tests.cuda.host import being_built
from tests.devices.host_runtime import HostRuntime


def main(script: str, *arguments: str) -> None:
    """Give this rank a double that all ranks share, and call the command."""
    comm = pycomm.init()
    if comm.rank == 0:
        being_built("reduce.cu", cxx()).result()  # streams would wait for it, and lose patience
    comm.barrier()
    process.use(Device.of(HostRuntime(seed=comm.rank)))
    importlib.import_module(f"bench.{script}").main(arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
