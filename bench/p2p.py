"""Times messages between pairs of ranks: mpirun -np 2 python bench/p2p.py [OPTIONS]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click

from bench import options
from bench.operations import MESSAGES

IMPLEMENTATIONS = {
    "cpu": "pycomm,pycomm-alloc,mpi4py,gloo",
    "cuda": "pycomm,pycomm-symmetric,mpi4py-staged,gloo,copy",
}


@click.command(context_settings=options.SETTINGS)
@options.shared(MESSAGES, "ping_pong,stream", "4:100M:4", IMPLEMENTATIONS)
def main(**chosen: Any) -> None:
    """Time messages of pycomm, MPI and Gloo in turn, each size verified first.

    Ranks 0 and 1 are a pair, 2 and 3, …; all pairs play at once. ping_pong is half a round trip;
    stream is one of 16 messages one way, back to back, with an answer after the last.

    With --device cuda arrays are on the GPU, and the host waits for each message of ping_pong, and
    for those of a stream together; copy is a copy of the size on the GPU of each even rank.
    """
    options.run(MESSAGES, IMPLEMENTATIONS, redop="none", root=-1, place=None, **chosen)


if __name__ == "__main__":
    options.share_cores()
    main()
