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
from bench.training import timed
from bench.training.jobs import MODELS, OPTIMIZERS, Job
from bench.training.modes import MODES, Mode
from bench.training.variants import VARIANTS, Variant, ddp, variants_of

_ONE_STEP_US = 1.0
"""Every sample is of one step, behind another one and a barrier."""


def _listed(parallel: str) -> list[str]:
    names = [f"  {v.name:<20}{v.summary}" for v in variants_of(parallel).values()]
    return ["\b", f"Variants of --parallel {parallel}:", *names, ""]


EPILOG = "\n".join(
    [
        *_listed("data"),
        *_listed("model"),
        "\b",
        "Examples:",
        "  mpirun --bind-to none -np 2 python bench/trainers.py",
        "  mpirun --bind-to none -np 4 python bench/trainers.py --model gpt-51 --optimizer sgd",
        "  mpirun --bind-to none -np 2 python bench/trainers.py --parallel model",
        "  mpirun -np 2 python bench/trainers.py --device cuda --json gpu.json --plot gpu.png",
        "A variant more is one decorated function in bench/training/variants/.",
    ]
)


def jobs(ranks: Ranks, mode: Mode, chosen: dict[str, Any]) -> Iterator[Job]:
    """Yield every combination that the command line asks for."""
    models, rules = chosen["models"] or mode.models, chosen["optimizers"] or mode.optimizers
    for model, rule in product(models, rules):
        yield mode.job(model, rule, ranks, chosen)


def chosen_variants(parallel: str, names: Sequence[str]) -> list[Variant]:
    """Return the variants that are named; of all that there are those of the mode.

    Raises:
        click.UsageError: one belongs to another mode.
    """
    known = variants_of(parallel)
    if len(names) == len(VARIANTS):
        return list(known.values())
    for name in names:
        if name not in known:
            raise click.UsageError(
                f"--impl {name} is not one of --parallel {parallel}: {', '.join(known)}"
            )
    return [known[name] for name in names]


def described_run(
    ranks: Ranks, device: str, parallel: str, variants: Sequence[Variant]
) -> dict[str, Any]:
    """Return the meta record; collective.

    Raises:
        UnavailableError: a rank has no GPU.
    """
    gpus = None
    if device == "cuda":
        gpus = described(ranks.gathered(opened_gpu(ranks).runtime.identity))
    peers = [v.name for v in variants if v.competes]
    return environment.describe(ranks, peers, {}, gpus) | {"parallel": parallel}


def run(
    ranks: Ranks, meta: dict[str, Any], variants: Sequence[Variant], chosen: dict[str, Any]
) -> list[Any]:
    """Measure and print; return the records."""
    mode = MODES[chosen["parallel"]]
    say = partial(print, flush=True) if ranks.rank == 0 else lambda *words: None
    say("\n".join([*environment.header(meta), timed.titles(mode.widths)]))
    plan = Plan(_ONE_STEP_US, chosen["seconds"], chosen["iterations"], trials=1)
    measuring = mode.measuring(ranks, variants, meta["mpi"], plan, chosen["plant"])
    found = []
    for job in jobs(ranks, mode, chosen):
        for record in measuring.measure(job):
            say(mode.row(record))
            found.append(record)
    meta["missing"] = measuring.missing
    return found


def write(meta: dict[str, Any], found: Sequence[Any], chosen: dict[str, Any]) -> None:
    """Write the files that are asked for."""
    if chosen["json"]:
        records.write(chosen["json"], meta, found)
    if chosen["plot"] and found:
        MODES[chosen["parallel"]].drawing()(meta, found, chosen["plot"])


@click.command(context_settings=options.SETTINGS, epilog=EPILOG)
@options.DEVICE
@click.option(
    "--parallel",
    type=click.Choice(list(MODES)),
    default="data",
    help="Every rank has the model and a share of the samples, or a part of the model.",
)
@click.option(
    "--model",
    "models",
    type=Names(MODELS),
    help=f"Of {', '.join(MODELS)}.  [default: "
    + "; ".join(f"{name}: {','.join(mode.models)}" for name, mode in MODES.items())
    + "]",
)
@click.option(
    "--optimizer",
    "optimizers",
    type=Names(OPTIMIZERS),
    help=f"Of {', '.join(OPTIMIZERS)}.  [default: "
    + "; ".join(f"{name}: {','.join(mode.optimizers)}" for name, mode in MODES.items())
    + "]",
)
@click.option("--impl", type=Names(VARIANTS), default="all", help="Variants, see below.")
@click.option(
    "--batch",
    type=click.IntRange(1),
    help="Samples a rank, or a microbatch.  [default: the model's]",
)
@click.option(
    "--microbatches",
    type=click.IntRange(1),
    default=8,
    help="What a batch is cut into, with --parallel model.",
)
@options.seconds(2.0, "variant, model and optimizer; ten samples at least")
@options.ITERATIONS
@outputs.JSON
@outputs.plot("the times")
@click.option("--plant", is_flag=True, help="Falsify a weight of rank 0: the run has to fail.")
def main(**chosen: Any) -> None:
    """Time a training step of each variant, in turn, A B A B …, in one process a rank.

    A step is forward, backward, synchronisation and update. With --parallel data every rank has
    the whole model and takes a share of as many samples; with --parallel model it has a part of
    the model, and all samples go through it in microbatches. Before it is timed a variant makes
    three steps, and its weights are compared with those of one process that took all samples. The
    time of a step is that of the slowest rank.

    Columns of --parallel data: grad, the size of all gradients; over_no_sync, the median over that
    of training without synchronisation (1.01: 1 % more); wire, what a rank sends in a step; peak,
    the memory of the variant on the rank that needs most.

    Columns of --parallel model: batch, microbatches × samples; over_one_process, the median over
    that of one process (0.6: 40 % less); over_bound, over m + p − 1 microbatches of the slowest of
    p stages; bubble%, what the schedule leaves idle on paper; idle%, how much of a step each rank
    does not compute; parts, each rank's parameters; activations, what it keeps at most between
    forward and backward.

    Of both: vs_best_peer, the best peer's median over this one (above 1 is ahead); off, how far
    weights are from those of one process, over the way they went.

    The exit code is not 0 if weights were wrong. bench/README.md says more.
    """
    variants = chosen_variants(chosen["parallel"], chosen["impl"])
    ranks = Ranks()
    try:
        meta = described_run(ranks, chosen["device"], chosen["parallel"], variants)
    except UnavailableError as error:
        options.leave(error)
    found = run(ranks, meta, variants, chosen)
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
