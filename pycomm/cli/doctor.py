"""`pycomm doctor`: what a user needs to know when something is wrong or slow."""

from __future__ import annotations

import click

from pycomm.cli.advice import advice
from pycomm.cli.facts import gather
from pycomm.cli.flight import flight_options
from pycomm.cli.report import report
from pycomm.cli.tune import tune as measure_and_keep
from pycomm.errors import CommError
from pycomm.startup import init


@click.command()
@flight_options
@click.option("--tune", is_flag=True, help="Measure what messages cost here, and keep that.")
def doctor(tune: bool) -> None:
    """Say what pycomm runs on here, what is wrong with it, and what to do.

    Run it as your program runs: `mpirun` with the same options, and `python -m pycomm doctor`.
    """
    try:
        comm = init()
        if tune:
            measure_and_keep(comm)
            return
        ranks = gather(comm)
    except CommError as error:
        raise click.ClickException(str(error)) from error
    if comm.rank == 0:
        click.echo(report(ranks, advice(ranks)))
