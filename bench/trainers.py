"""Times training steps of pycomm and of others: mpirun -np N python bench/trainers.py [OPTIONS]."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import options

if __name__ == "__main__":
    options.share_cores()  # before torch is imported

import click

from bench import environment, outputs, records
from bench.gpu import described
from bench.peers import UnavailableError
from bench.ranks import Ranks
from bench.runner import opened_gpu
from bench.sampling import Plan
from bench.sizes import Names
from bench.training.jobs import MODELS, OPTIMIZERS, Job
from bench.training.measuring import Measuring
from bench.training.results import Trained, row, titles
from bench.training.variants import VARIANTS, ddp

_ONE_STEP_US = 1.0
"""Every sample is of one step, behind another one and a barrier."""

EPILOG = "\n".join(
    [
        "\b",
        "Variants:",
        *(f"  {v.name:<16}{v.summary}" for v in VARIANTS.values()),
        "",
        "\b",
        "Examples:",
        "  mpirun --bind-to none -np 2 python bench/trainers.py",
        "  mpirun --bind-to none -np 4 python bench/trainers.py --model gpt-51 --optimizer sgd",
        "  mpirun -np 2 python bench/trainers.py --device cuda --json gpu.json --plot gpu.png",
        "A variant more is one decorated function in bench/training/variants/.",
    ]
)


def jobs(ranks: Ranks, chosen: dict[str, Any]) -> Iterator[Job]:
    """Yield every combination that the command line asks for."""
    for model, rule in product(chosen["models"], chosen["optimizers"]):
        batch = chosen["batch"] or MODELS[model].batch
        yield Job(model, rule, ranks, chosen["device"], batch)


def described_run(ranks: Ranks, device: str) -> dict[str, Any]:
    """Return the meta record; collective.

    Raises:
        UnavailableError: a rank has no GPU.
    """
    gpus = None
    if device == "cuda":
        gpus = described(ranks.gathered(opened_gpu(ranks).runtime.identity))
    peers = [v.name for v in VARIANTS.values() if v.competes]
    return environment.describe(ranks, peers, {}, gpus)


def run(ranks: Ranks, meta: dict[str, Any], chosen: dict[str, Any]) -> list[Trained]:
    """Measure and print; return the records."""
    say = partial(print, flush=True) if ranks.rank == 0 else lambda *words: None
    say("\n".join([*environment.header(meta), titles()]))
    plan = Plan(_ONE_STEP_US, chosen["seconds"], chosen["iterations"])
    measuring = Measuring(ranks, chosen["impl"], meta["mpi"], plan, chosen["plant"])
    found = []
    for job in jobs(ranks, chosen):
        for record in measuring.measure(job):
            say(row(record))
            found.append(record)
    meta["missing"] = measuring.missing
    return found


def write(meta: dict[str, Any], found: Sequence[Trained], chosen: dict[str, Any]) -> None:
    """Write the files that are asked for."""
    if chosen["json"]:
        records.write(chosen["json"], meta, found)
    if chosen["plot"] and found:
        from bench.training.drawing import draw

        draw(meta, found, chosen["plot"])


@click.command(context_settings=options.SETTINGS, epilog=EPILOG)
@options.DEVICE
@click.option(
    "--model", "models", type=Names(MODELS), default="all", help=f"Of {', '.join(MODELS)}."
)
@click.option(
    "--optimizer",
    "optimizers",
    type=Names(OPTIMIZERS),
    default="sgd,adamw",
    help=f"Of {', '.join(OPTIMIZERS)}.",
)
@click.option("--impl", type=Names(VARIANTS), default="all", help="Variants, see below.")
@click.option("--batch", type=click.IntRange(1), help="Samples a rank.  [default: the model's]")
@options.seconds(2.0, "variant, model and optimizer; ten samples at least")
@options.ITERATIONS
@outputs.JSON
@outputs.plot("the times")
@click.option("--plant", is_flag=True, help="Falsify a weight of a rank: the run has to fail.")
def main(**chosen: Any) -> None:
    """Time a training step of each variant, in turn, A B A B …, in one process a rank.

    Every rank has the whole model and takes a share of as many samples; a step is forward,
    backward, synchronisation and update. Before it is timed a variant makes three steps, and its
    weights are compared with those of one process that took the samples of all ranks. The time of
    a step is that of the slowest rank.

    Columns: grad, the size of all gradients; over_no_sync, the median over that of training
    without synchronisation (1.01: 1 % more); vs_best_peer, the best peer's median over this one
    (above 1 is ahead); wire, what a rank sends in a step; peak, the memory of the variant on the
    rank that needs most; off, how far weights are from those of one process, over the way they
    went.

    The exit code is not 0 if weights were wrong. bench/README.md says more.
    """
    ranks = Ranks()
    try:
        meta = described_run(ranks, chosen["device"])
    except UnavailableError as error:
        options.leave(error)
    found = run(ranks, meta, chosen)
    if ranks.rank == 0:
        write(meta, found, chosen)
    ddp.leave()
    ranks.rest()
    wrong = sum(r.wrong for r in found)
    if ranks.rank == 0 and (wrong or not found):
        print(f"# FAILED: {f'{wrong} models are wrong' if wrong else 'nothing was measured'}")
    sys.exit(bool(wrong or not found))


if __name__ == "__main__":
    main()
