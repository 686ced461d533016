"""The command line: `python -m pycomm COMMAND`, one file a command."""

from __future__ import annotations

import click

from pycomm.cli.doctor import doctor
from pycomm.cli.trace import trace

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=SETTINGS)
def main() -> None:
    """Collective communication for Python; alone, or on every rank that mpirun starts."""


main.add_command(doctor)
main.add_command(trace)
