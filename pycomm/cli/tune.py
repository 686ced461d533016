"""`pycomm doctor --tune`: measures what messages cost, and keeps it for later runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import click

from pycomm import costs
from pycomm.cli.report import links
from pycomm.communicator import Communicator
from pycomm.measure import Advance, measure, parts


def tune(comm: Communicator) -> None:
    """Measure the links between the ranks and keep them for this machine; collective.

    Raises:
        ClickException: there is one rank, or the file cannot be written.
    """
    if comm.size == 1:
        raise click.ClickException("one rank sends no messages: mpirun -np 2 pycomm doctor --tune")
    world = comm.world
    with _progress(comm.rank, parts(comm)) as advance:
        found = measure(comm, world.tuning.costs, advance)
    if comm.rank > 0:
        return
    try:
        file = costs.save(found, world.config.tuning, world.wire.library)
    except OSError as error:
        raise click.ClickException(f"{error}: name another file by PYCOMM_TUNING") from error
    click.echo("\n".join([*links(found), f"kept in {file}"]))


@contextlib.contextmanager
def _progress(rank: int, length: int) -> Iterator[Advance]:
    if rank > 0:
        yield lambda: None
        return
    with click.progressbar(length=length, label="measuring", file=sys.stderr) as bar:
        yield lambda: bar.update(1)
