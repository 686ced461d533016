"""Train a model on several ranks: mpirun -np 2 python train.py --help."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any

import click
import numpy as np
import torch

import pycomm
from pycomm.parallel.compression import METHODS
from pycomm.parallel.placement import default_device
from pycomm.parallel.schedules.registry import SCHEDULES
from pycomm.parallel.splitting.balance import BALANCES
from pycomm.trainers.batches import Plan, fetch
from pycomm.trainers.precision import PRECISIONS
from pycomm.trainers.rates import RATES, Rates, find_rates
from pycomm.workloads import data, models
from pycomm.workloads.task import Task

EXAMPLES = """\b
Examples:
  python train.py                                             one process, no MPI
  mpirun -np 2 python train.py                                digits, data parallel
  mpirun -np 3 python train.py --parallel model               one part of the layers per rank
  mpirun -np 4 python train.py --dp 2 --pp 2                  two pipelines of two parts
  mpirun -np 4 python train.py --model gpt --data text --tp 2 neurons and heads on two ranks each
  mpirun -np 2 python train.py --model gpt --data text        learns to write Python
  mpirun -np 2 python train.py --data mine.npz --epochs 50    your arrays x and y
  mpirun -np 2 python train.py --checkpoint run1              again: goes on where it ended
  mpirun -np 4 python train.py --device cuda --precision bf16 on GPUs, also several ranks on one
More ranks than cores: mpirun --oversubscribe. Threads per rank: OMP_NUM_THREADS.
"""
PARALLEL = (
    "data: each rank has the whole model and a share of each batch: all ranks in --dp. "
    "model: each rank has some of the layers: all ranks in --pp.  [default: data]"
)
DP = "Shares of each batch.  [default: as many as --pp and --tp leave ranks]"
PP = "Parts of the layers, one after the other.  [default: 1]"
TP = "Ranks among which the neurons of each layer are divided.  [default: 1]"
SEQUENCE = "With --tp: divide what is between divided layers, too, along the sequence."
BALANCE = "Model parallel: what parts of the layers are to have alike.  [default: time]"
MEMORY = "Of each rank, such as 2GiB: refuse a model that needs more, with the figures."
DATA = (
    "8×8 images; the source of Python's library; an .npz file with x and y (and x_test, y_test), "
    "a text file or a folder of text files."
)
SCHEDULE = (
    "Model parallel: the order of forward and backward; python -m pycomm trace draws it.  "
    "[default: 1f1b]"
)
STAGES = "Model parallel, interleaved: stages of each rank.  [default: 2]"
RECOMPUTE = "Model parallel: run forward again before backward, to keep less."
DEFERRED = "Model parallel: running statistics of batch norms over whole batches, not microbatches."
DEVICE = (
    "cuda: each rank on a GPU of its host, dealt out in turn; with more ranks than GPUs some share "
    "one.  [default: cuda if every rank has one]"
)
PRECISION = (
    "bf16, fp16: narrow floats where torch.autocast finds that they do; weights stay float32. fp16 "
    "scales the loss."
)
EVERY = (
    "Save also after so many steps.  [default: after each epoch, and when SIGTERM or SIGUSR1 ends "
    "the run]"
)
WORKERS = "Processes that load samples ahead, on each rank."
RATE = "From --lr down to 0 at the last step, unless constant."
WARMUP = "Steps in which the learning rate rises to --lr."
CLIP = "Largest norm of the gradient of all parameters.  [default: no clipping]"
CHECK_FINITE = "Look at every gradient; name rank and parameter of one that is not finite."
DETERMINISTIC = "The same bits on every run: refuse torch's operations that may give others."
COMPRESSION = (
    f"Data parallel: fewer bytes between ranks: {', '.join(METHODS)}; topk:RATIO, powersgd:RANK."
)
POSITIVE = click.IntRange(min=1)
FOLDER, FILE = click.Path(file_okay=False), click.Path(dir_okay=False)


FITTED = ("checkpoint", "checkpoint_every", "keep", "workers", "metrics")
"""The options that `fit` takes as they are."""
BOTH = ("precision", "clip_norm", "check_finite", "compression", "shard", "share", "memory_limit")
"""The options that both trainers take as they are."""
MODEL_ONLY = (
    "microbatches",
    "schedule",
    "stages_per_rank",
    "recompute",
    "deferred_batch_norm",
    "balance",
    "sequence",
)
"""Those that only ModelParallelTrainer takes."""
FITTING = "[default: fits the data]"


@click.command(epilog=EXAMPLES, context_settings={"show_default": True, "max_content_width": 100})
@click.option("--parallel", type=click.Choice(["data", "model"]), help=PARALLEL)
@click.option("--dp", type=POSITIVE, help=DP)
@click.option("--pp", type=POSITIVE, help=PP)
@click.option("--tp", type=POSITIVE, help=TP)
@click.option("--model", type=click.Choice(list(models.MODELS)), help=FITTING)
@click.option("--data", "source", default="digits", metavar="digits|text|PATH", help=DATA)
@click.option("--epochs", type=POSITIVE, help=f"Passes over the data.  {FITTING}")
@click.option("--steps", type=POSITIVE, help="Updates, instead of --epochs.")
@click.option("--batch-size", type=POSITIVE, help=f"Of all ranks together.  {FITTING}")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help=f"Of AdamW.  {FITTING}")
@click.option("--lr-schedule", type=click.Choice(list(RATES)), default="constant", help=RATE)
@click.option("--warmup", type=click.IntRange(0), default=0, metavar="STEPS", help=WARMUP)
@click.option("--clip-norm", type=click.FloatRange(0, min_open=True), help=CLIP)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Of weights and order.")
@click.option(
    "--accumulate", type=POSITIVE, help="Data parallel: batches per update.  [default: 1]"
)
@click.option("--compression", metavar="NAME", help=COMPRESSION)
@click.option(
    "--microbatches", type=POSITIVE, help="Model parallel: parts per batch.  [default: 8]"
)
@click.option("--schedule", type=click.Choice(list(SCHEDULES)), help=SCHEDULE)
@click.option("--stages-per-rank", type=POSITIVE, help=STAGES)
@click.option("--recompute", is_flag=True, help=RECOMPUTE)
@click.option("--deferred-batch-norm", is_flag=True, help=DEFERRED)
@click.option("--balance", type=click.Choice(BALANCES), help=BALANCE)
@click.option("--sequence", is_flag=True, help=SEQUENCE)
@click.option("--memory-limit", metavar="SIZE", help=MEMORY)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help=DEVICE)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", help=PRECISION)
@click.option("--check-finite", is_flag=True, help=CHECK_FINITE)
@click.option("--deterministic", is_flag=True, help=DETERMINISTIC)
@click.option(
    "--shard/--no-shard",
    default=None,
    help="Data parallel: ranks divide the optimizer's state.  [default: where that is faster]",
)
@click.option("--share", is_flag=True, help="Data parallel: one copy of the parameters for a host.")
@click.option("--checkpoint", type=FOLDER, help="Save here, and resume from what is here.")
@click.option("--checkpoint-every", type=POSITIVE, metavar="STEPS", help=EVERY)
@click.option("--keep", type=POSITIVE, default=1, help="How many checkpoints stay.")
@click.option("--workers", type=click.IntRange(0), default=0, help=WORKERS)
@click.option("--metrics", type=FILE, help="JSON Lines: step, loss, samples_per_s.")
def main(source: str, batch_size: int | None, seed: int, **options: Any) -> None:
    """Train a model by data parallelism, model parallelism or both, on the ranks of mpirun."""
    if options["epochs"] and options["steps"]:
        raise pycomm.ArgumentError("pass --epochs or --steps, not both")
    comm = pycomm.init()
    torch.use_deterministic_algorithms(options["deterministic"])
    task = data.load(source)
    chosen = options if options["epochs"] or options["steps"] else dataclasses.asdict(task.defaults)
    until = {"epochs": chosen["epochs"], "steps": chosen["steps"]}
    size = batch_size or task.defaults.batch_size
    plan = Plan(len(task.train), size, options["accumulate"] or 1, seed, **until)
    rates = find_rates(options["lr_schedule"], options["warmup"], plan.last_step(0, 0, 0))
    trainer = build_trainer(comm, task, seed, rates, options)
    trainer.fit(
        task.train,
        **until,
        batch_size=size,
        seed=seed,
        **{name: options[name] for name in FITTED},
    )
    if trainer.stopped:
        text = f"stopped after step {trainer.progress.step}: the same command goes on from there"
    else:
        text = summary(task, trainer.evaluate(task.test, metrics=task.metrics))
    trainer.print_report()
    if comm.rank == 0:
        click.echo(text)


def build_trainer(
    comm: pycomm.Communicator, task: Task, seed: int, rates: Rates, options: dict[str, Any]
) -> pycomm.DataParallelTrainer | pycomm.ModelParallelTrainer:
    """Return the trainer that the options ask for; the same weights on every rank."""
    torch.manual_seed(seed)
    module = models.build(options["model"] or task.defaults.model, task)

    def optimizer(named: Iterable[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for _, p in named], lr=options["lr"] or task.defaults.lr)

    mesh = mesh_of(comm, options)
    both = {
        "device": options["device"] or default_device(comm),
        "rates": rates,
        **{name: options[name] for name in BOTH},
    }
    if options["parallel"] != "model" and mesh.shape["pp"] == mesh.shape["tp"] == 1:
        refuse(options, MODEL_ONLY, "for --pp or --tp above 1, or --parallel model")
        accumulate = options["accumulate"] or 1
        return pycomm.DataParallelTrainer(module, optimizer, task.loss_fn, comm, accumulate, **both)
    refuse(options, ("accumulate",), "for data parallelism alone; here: --microbatches")
    if comm.rank == 0:
        click.echo(mesh.describe())
    chosen = {name: options[name] for name in MODEL_ONLY if options[name] is not None}
    first, _ = fetch(task.train, np.arange(min(4, len(task.train))))
    return pycomm.ModelParallelTrainer(
        module, optimizer, task.loss_fn, mesh, sample=first, **chosen, **both
    )


def mesh_of(comm: pycomm.Communicator, options: dict[str, Any]) -> pycomm.Mesh:
    """Return where each rank is, by --dp, --pp and --tp, or --parallel, which stands for them."""
    sizes = {name: options[name] for name in ("dp", "pp", "tp")}
    if options["parallel"] and any(sizes.values()):
        raise pycomm.ArgumentError("pass --parallel, or --dp, --pp and --tp")
    if options["parallel"] == "model":
        return pycomm.Mesh(comm, pp=comm.size)
    return pycomm.Mesh(comm, dp=sizes["dp"], pp=sizes["pp"] or 1, tp=sizes["tp"] or 1)


def refuse(options: dict[str, Any], names: Iterable[str], reason: str) -> None:
    """Refuse options that were given and would do nothing."""
    given = [f"--{name.replace('_', '-')}" for name in names if options[name]]
    if given:
        raise pycomm.ArgumentError(f"{', '.join(given)}: {reason}")


def summary(task: Task, result: dict[str, Any]) -> str:
    """Return what was reached on the held-out samples, in one line."""
    if task.bigram_entropy is not None:
        return (
            f"held-out loss {result['loss']:.4f} nats per character; "
            f"bigram entropy of the text {task.bigram_entropy:.4f}"
        )
    accuracy = result["metrics"]["accuracy"]
    return f"test accuracy {accuracy:.2%} of {result['count']} samples, loss {result['loss']:.4f}"


REFUSALS = (click.ClickException, pycomm.ArgumentError, pycomm.MissingError)
"""What a wrong command line raises."""


def tell(error: Exception) -> None:
    """Say what was wrong with the arguments, as click does."""
    usage = error if isinstance(error, click.ClickException) else click.UsageError(str(error))
    usage.show()


def leave(error: Exception) -> None:
    """Say once what was wrong with the arguments, and end every rank with exit code 2."""
    comm = pycomm.init()
    if comm.rank == 0:
        tell(error)
    comm.barrier()  # nobody ends the job before the message is out
    comm.close()
    sys.exit(2)


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except REFUSALS as error:
        leave(error)
    except click.Abort:  # Ctrl-C
        sys.exit(130)
