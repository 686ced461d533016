"""Times collectives of pycomm and of others: mpirun -np N python bench/collectives.py [OPTIONS]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click

from bench import options
from bench.operations import COLLECTIVES
from pycomm import Communicator
from pycomm.types import OPS

KNOWN = {name: op for name, op in COLLECTIVES.items() if hasattr(Communicator, name)}
IMPLEMENTATIONS = {
    "cpu": "pycomm,pycomm-symmetric,mpi4py,gloo,deepspeed,limit",
    "cuda": "pycomm,pycomm-symmetric,mpi4py-staged,gloo,n_in_n_out",
}


@click.command(context_settings=options.SETTINGS)
@options.shared(KNOWN, "all_reduce", "4:100M:4", IMPLEMENTATIONS)
@click.option("--redop", type=click.Choice([op for op in OPS if op != "premul_sum"]), default="sum")
@click.option("--root", type=click.IntRange(0), default=0)
@click.option(
    "--place",
    type=click.Choice(["in", "out", "both"]),
    help="Output where the input is, or elsewhere.  [default: the operation's own]",
)
def main(**chosen: Any) -> None:
    """Time collectives of pycomm, MPI, Gloo and DeepSpeed in turn, each size verified first.

    With --device cuda arrays are on the GPU, and an operation takes as long as the host waits for
    it; n_in_n_out is the kernel of an all_reduce in one process that has all buffers to itself.

    The exit code is not 0 if an element was wrong. bench/README.md says what the columns are.
    """
    options.run(KNOWN, IMPLEMENTATIONS, **chosen)


if __name__ == "__main__":
    options.share_cores()
    main()
