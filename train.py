"""Train a model on several ranks: mpirun -np 2 python train.py --help."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any

import click
import torch

import pycomm
from pycomm.workloads import data, models
from pycomm.workloads.task import Task

EXAMPLES = """\b
Examples:
  python train.py                                             one process, no MPI
  mpirun -np 2 python train.py                                digits, data parallel
  mpirun -np 3 python train.py --parallel model               one part of the layers per rank
  mpirun -np 2 python train.py --model gpt --data text        learns to write Python
  mpirun -np 2 python train.py --data mine.npz --epochs 50    your arrays x and y
  mpirun -np 2 python train.py --checkpoint run1              again: goes on where it ended
More ranks than cores: mpirun --oversubscribe. Threads per rank: OMP_NUM_THREADS.
"""
PARALLEL = (
    "data: each rank has the whole model and a share of each batch. "
    "model: each rank has some of the layers."
)
DATA = (
    "8×8 images; the source of Python's library; an .npz file with x and y (and x_test, y_test), "
    "a text file or a folder of text files."
)
POSITIVE = click.IntRange(min=1)
FOLDER, FILE = click.Path(file_okay=False), click.Path(dir_okay=False)


FITTING = "[default: fits the data]"


@click.command(epilog=EXAMPLES, context_settings={"show_default": True, "max_content_width": 100})
@click.option("--parallel", type=click.Choice(["data", "model"]), default="data", help=PARALLEL)
@click.option("--model", type=click.Choice(list(models.MODELS)), help=FITTING)
@click.option("--data", "source", default="digits", metavar="digits|text|PATH", help=DATA)
@click.option("--epochs", type=POSITIVE, help=f"Passes over the data.  {FITTING}")
@click.option("--steps", type=POSITIVE, help="Updates, instead of --epochs.")
@click.option("--batch-size", type=POSITIVE, help=f"Of all ranks together.  {FITTING}")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help=f"Of AdamW.  {FITTING}")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Of weights and order.")
@click.option(
    "--accumulate", type=POSITIVE, help="Data parallel: batches per update.  [default: 1]"
)
@click.option(
    "--microbatches", type=POSITIVE, help="Model parallel: parts per batch.  [default: 4]"
)
@click.option(
    "--shard/--no-shard",
    default=None,
    help="Data parallel: ranks divide the optimizer's state.  [default: where that is faster]",
)
@click.option("--share", is_flag=True, help="Data parallel: one copy of the parameters for a host.")
@click.option("--checkpoint", type=FOLDER, help="Save here, and resume from what is here.")
@click.option("--metrics", type=FILE, help="JSON Lines: step, loss, samples_per_s.")
def main(source: str, batch_size: int | None, seed: int, **options: Any) -> None:
    """Train a model by data or model parallelism, on the ranks that mpirun started."""
    if options["epochs"] and options["steps"]:
        raise pycomm.ArgumentError("pass --epochs or --steps, not both")
    comm = pycomm.init()
    task = data.load(source)
    trainer = build_trainer(comm, task, seed, options)
    chosen = options if options["epochs"] or options["steps"] else dataclasses.asdict(task.defaults)
    trainer.fit(
        task.train,
        epochs=chosen["epochs"],
        steps=chosen["steps"],
        batch_size=batch_size or task.defaults.batch_size,
        seed=seed,
        checkpoint=options["checkpoint"],
        metrics=options["metrics"],
    )
    result = trainer.evaluate(task.test, metrics=task.metrics)
    trainer.print_report()
    if comm.rank == 0:
        click.echo(summary(task, result))


def build_trainer(
    comm: pycomm.Communicator, task: Task, seed: int, options: dict[str, Any]
) -> pycomm.DataParallelTrainer | pycomm.ModelParallelTrainer:
    """Return the trainer that the options ask for; the same weights on every rank."""
    torch.manual_seed(seed)
    module = models.build(options["model"] or task.defaults.model, task)

    def optimizer(named: Iterable[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for _, p in named], lr=options["lr"] or task.defaults.lr)

    parts = module, optimizer, task.loss_fn, comm
    if options["parallel"] == "model":
        if options["accumulate"]:
            raise pycomm.ArgumentError("--accumulate is for data parallel; here: --microbatches")
        if options["shard"] is not None or options["share"]:
            raise pycomm.ArgumentError("--shard and --share are for data parallel")
        return pycomm.ModelParallelTrainer(*parts, microbatches=options["microbatches"] or 4)
    if options["microbatches"]:
        raise pycomm.ArgumentError("--microbatches is for --parallel model; here: --accumulate")
    return pycomm.DataParallelTrainer(
        *parts,
        accumulate=options["accumulate"] or 1,
        shard=options["shard"],
        share=options["share"],
    )


def summary(task: Task, result: dict[str, Any]) -> str:
    """Return what was reached on the held-out samples, in one line."""
    if task.bigram_entropy is not None:
        return (
            f"held-out loss {result['loss']:.4f} nats per character; "
            f"bigram entropy of the text {task.bigram_entropy:.4f}"
        )
    accuracy = result["metrics"]["accuracy"]
    return f"test accuracy {accuracy:.2%} of {result['count']} samples, loss {result['loss']:.4f}"


def leave(error: click.ClickException | pycomm.ArgumentError) -> None:
    """Say once what was wrong with the arguments, and end every rank with exit code 2."""
    comm = pycomm.init()
    if comm.rank == 0:
        usage = error if isinstance(error, click.ClickException) else click.UsageError(str(error))
        usage.show()
    comm.barrier()  # nobody ends the job before the message is out
    comm.close()
    sys.exit(2)


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except (click.ClickException, pycomm.ArgumentError) as error:
        leave(error)
    except click.Abort:  # Ctrl-C
        sys.exit(130)
