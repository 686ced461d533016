"""`mpirun -np N python -m tests.fuzz`: random operations until something is wrong or time is up."""

from __future__ import annotations

import secrets

import click

import pycomm
from tests.fuzz.session import Session


@click.command()
@click.option("--seed", type=int, help="Repeats a run; a new one unless told.")
@click.option("--steps", type=int, help="How many steps; by time unless told.")
@click.option("--seconds", default=60.0, show_default=True, help="For how long.")
def main(seed: int | None, steps: int | None, seconds: float) -> None:
    """Draw operations of every kind from a seed that all ranks share, and check all results."""
    comm = pycomm.init(timeout=60.0)
    seed = comm.broadcast_object(secrets.randbits(32) if seed is None else seed)
    if comm.rank == 0:
        click.echo(f"{comm.size} ranks: --seed {seed}")
    done = Session(comm, seed).run(steps, seconds)
    if comm.rank == 0:
        click.echo(f"{done} steps, all as they should be")


if __name__ == "__main__":
    main()
