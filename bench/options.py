"""The options that collectives.py and p2p.py share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import click

from bench import outputs
from bench.operations import Operation
from bench.peers import PEERS, UnavailableError
from bench.ranks import Ranks
from bench.runner import Options, Runner
from bench.sizes import Names, Sizes
from pycomm.types import DTYPES

SETTINGS = {"show_default": True, "max_content_width": 100}
_LOCAL_SIZES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")

ITERATIONS = click.option(
    "--iterations", type=click.IntRange(1), help="Samples, instead of --seconds."
)
DEVICE = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    help="Where arrays are; several ranks may share a GPU.",
)


def shared(
    known: Mapping[str, Operation], ops: str, sizes: str, impl: Mapping[str, str]
) -> Callable[[Callable], Callable]:
    """Return a decorator that gives a command these options, with its own defaults.

    Args:
        impl: device → the implementations that are measured where none are named.
    """
    usual = "; ".join(f"on {device} {names}" for device, names in impl.items())
    options = [
        DEVICE,
        click.option("--op", "ops", type=Names(known), default=ops, help=f"Of {_list(known)}."),
        click.option("--sizes", type=Sizes(), default=sizes, help="Bytes; or a list: 4,32K,25M."),
        click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32"),
        click.option("--impl", type=Names(PEERS), help=f"Of {_list(PEERS)}.  [default: {usual}]"),
        seconds(0.5, "implementation and size"),
        ITERATIONS,
        sample_us("operations"),
        click.option("--format", type=click.Choice(["table", "nccl"]), default="table"),
        outputs.JSON,
        outputs.plot("time and bandwidth"),
        click.option(
            "--plant", type=int, help="Falsify this element of a result: the run has to fail."
        ),
    ]

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def seconds(default: float, each: str) -> Callable[[Callable], Callable]:
    """Return the option --seconds: how long each of what is compared is measured."""
    kind = click.FloatRange(0, min_open=True)
    return click.option("--seconds", type=kind, default=default, help=f"For each {each}.")


def sample_us(what: str) -> Callable[[Callable], Callable]:
    """Return the option --sample-us: how long the `what` of one sample take."""
    text = f"A sample is as many {what} back to back as take this long."
    kind = click.FloatRange(0, min_open=True)
    return click.option("--sample-us", type=kind, default=200.0, help=text)


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def run(
    known: Mapping[str, Operation], usual: Mapping[str, str], ops: list[str], **options: Any
) -> None:
    """Run what the command line asks for, and exit: 1 if an element was wrong."""
    options["impl"] = options["impl"] or usual[options["device"]].split(",")
    chosen = Options(ops=[known[name] for name in ops], **options)
    try:
        runner = Runner(chosen)
    except UnavailableError as error:
        leave(error)
    sys.exit(runner.run())


def leave(error: Exception) -> NoReturn:
    """Say on rank 0 what is missing, in one sentence, and exit with 1; collective."""
    ranks = Ranks()
    if ranks.rank == 0:
        print(f"Error: {error}", file=sys.stderr, flush=True)
    ranks.rest()  # the launcher ends all as soon as one has failed
    sys.exit(1)


def share_cores() -> None:
    """Give each rank its share of the cores for OpenMP, before torch reads how many that is."""
    local = next((int(os.environ[name]) for name in _LOCAL_SIZES if name in os.environ), 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // local)))
