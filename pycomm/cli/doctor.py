"""`pycomm doctor`: what a user needs to know when something is wrong."""

from __future__ import annotations

import click

from pycomm.cli.flight import flight_options
from pycomm.startup import init


@click.command()
@flight_options
def doctor() -> None:
    """Say what pycomm runs on here."""
    comm = init()
    if comm.rank == 0:
        click.echo(f"{comm.size} ranks")
