"""`pycomm doctor --dump` and `--flight`: what ranks did last."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from pycomm.errors import CommError
from pycomm.observe import flight, flight_report


def flight_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options; with one of them it does nothing else."""

    @click.option("--dump", metavar="PID", type=int, help="Show what a rank, a process, did last.")
    @click.option(
        "--json", "file", type=click.File("w"), help="With --dump: write JSON there, - is stdout."
    )
    @click.option(
        "--flight",
        "folder",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Say where the ranks differ whose files rank-*.json an error left in this folder.",
    )
    @wraps(command)
    def with_options(dump: int | None, file: Any, folder: Path | None, **others: Any) -> None:
        try:
            if dump is not None:
                _show(flight.read(dump), file)
            elif folder is not None:
                click.echo(flight_report.line_up(flight.load(folder)))
            else:
                command(**others)
        except CommError as error:
            raise click.ClickException(str(error)) from error

    return with_options


def _show(recorded: flight.Flight, file: Any) -> None:
    click.echo(json.dumps(recorded) if file else flight_report.table(recorded), file=file)
