"""`pycomm doctor`: what a user needs to know when something is wrong."""

from __future__ import annotations

import click

from pycomm.startup import init


@click.command()
def doctor() -> None:
    """Say what pycomm runs on here."""
    comm = init()
    if comm.rank == 0:
        click.echo(f"{comm.size} ranks")
