"""Trainer: what all trainers share, and what a trainer has to say for itself."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pycomm.errors import ArgumentError
from pycomm.parallel.replicate import check_equal, on_every_rank, raise_together
from pycomm.trainers import batches, loop
from pycomm.trainers.checkpoint import Checkpoint, check_writable, exists, save
from pycomm.trainers.evaluation import Metrics, evaluating, means, no_sums
from pycomm.trainers.named_state import random_state, restore_random
from pycomm.trainers.progress import BatchLoss, Progress
from pycomm.trainers.report import Log, Meter, print_rows
from pycomm.trainers.threads import share_cores

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

OptimizerFactory = Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
LossFunction = Callable[[Any, Any], torch.Tensor]
Weight = Callable[[Any], float]

_logger = logging.getLogger(__name__)


class Trainer(ABC):
    """The base of the trainers; a subclass says how a batch runs and how gradients are combined.

    Attributes:
        module: the model, or this rank's part of it.
        optimizer: what the factory returned; None where this rank has no parameters.
        progress: how far training has come; `fit` goes on from there.
        meter: the time of training on this rank.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerFactory,
        loss_fn: LossFunction,
        comm: Communicator,
        *,
        accumulate: int,
        clip_norm: float | None,
        weight: Weight | None,
    ):
        check_equal(comm, "accumulate and clip_norm", (accumulate, clip_norm))
        if not isinstance(accumulate, int) or accumulate < 1:
            raise ArgumentError(f"accumulate={accumulate!r} must be an integer ≥ 1")
        if clip_norm is not None and not clip_norm > 0:
            raise ArgumentError(f"clip_norm={clip_norm} must be positive, or None")
        share_cores(comm)
        named = list(module.named_parameters())
        self.module, self.loss_fn, self.comm = module, loss_fn, comm
        self.accumulate, self.clip_norm = accumulate, clip_norm
        self.optimizer = optimizer(named) if named else None
        self.progress = Progress()
        self.meter = Meter(comm)
        self._weight = weight or batches.count_samples
        self._pending = 0  # batches whose gradients have been added since the last update

    @abstractmethod
    def fetch(self, dataset: Any, indices: np.ndarray) -> tuple[Any, Any]:
        """Return what this rank needs of a global batch: (inputs, targets), each perhaps None."""

    @abstractmethod
    def _backward(self, inputs: Any, targets: Any, group: int) -> BatchLoss:
        """Add the gradient of one of the `group` global batches of a step; return its loss."""

    @abstractmethod
    def _apply_gradients(self) -> None:
        """Update the parameters with the gradient of the step's mean loss, clipped."""

    @abstractmethod
    def _evaluate_batch(self, inputs: Any, targets: Any, metrics: Metrics) -> np.ndarray:
        """Return this rank's sums over one batch, see `evaluation`."""

    @abstractmethod
    def _part(self) -> dict[str, Any] | None:
        """Return what this rank writes into a checkpoint, see `checkpoint.save`."""

    @abstractmethod
    def _restore(self, saved: dict[str, Any]) -> None:
        """Give the optimizer its saved state, by full names and perhaps of more parameters."""

    @abstractmethod
    def _expected(self) -> dict[str, tuple[str, list[int]]]:
        """Return (dtype, shape) of every tensor of the whole model by full name."""

    @abstractmethod
    def _share_buffers(self) -> None:
        """Make buffers equal where ranks hold copies of them."""

    def step(self, inputs: Any, targets: Any) -> float:
        """Train on one global batch; update on every `accumulate`-th call.

        Until the next call `p.grad` stays what it was for the update, or, if the optimizer's state
        is sharded, this rank's part of it.

        Args:
            inputs, targets: this rank's share; the trainer says who may pass None.

        Returns:
            The global mean loss of this batch, the same float on every rank.

        Raises:
            ArgumentError: the batch is empty on all ranks, or weighs nothing (raised on all).
        """
        with self.meter:
            loss = self.add(inputs, targets, self.accumulate)
            if self._pending == self.accumulate:
                self.update(loss.mean)
        return loss.mean

    def fit(
        self,
        dataset: Any,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        batch_size: int,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        metrics: str | Path | None = None,
        progress: bool = True,
    ) -> float | None:
        """Train on a dataset until `epochs` or `steps` are reached, whichever comes first.

        Both count from the trainer's first step, so that a resumed run is the same call. A step is
        one update: `accumulate` global batches, or what an epoch has left of them. The order of
        samples depends on (seed, epoch) only, not on the number of ranks.

        Args:
            dataset: map-style, of pairs (input, target), the same on every rank; one with
                `tensors` (TensorDataset) is indexed a batch at a time.
            epochs: passes over the dataset, in all.
            steps: updates, in all.
            batch_size: samples in a global batch, over all ranks.
            seed: of the order of samples.
            checkpoint: a folder. If it holds a checkpoint, training goes on from there, exactly;
                it is written at the end of each epoch and at the end.
            metrics: a file for JSON Lines (step, epoch, loss, samples_per_s), written on rank 0.
            progress: whether rank 0 shows a bar.

        Returns:
            The mean loss of the last step, the same on every rank; None if there never was one.

        Raises:
            ArgumentError: a value is out of range, or training stopped inside an epoch over other
                data.
            MismatchError: ranks passed different values; raised on all.
        """
        order = {"samples": len(dataset), "batch_size": batch_size, "seed": seed}
        until = {"epochs": epochs, "steps": steps, "checkpoint": checkpoint and str(checkpoint)}
        check_equal(self.comm, "the arguments of fit", {**order, **until})
        plan = batches.Plan(**order, accumulate=self.accumulate, epochs=epochs, steps=steps)
        if self._pending:
            raise ArgumentError(self._pending_text("fit"))
        if checkpoint is not None and self.comm.broadcast_object(exists(checkpoint), 0):
            self.load(checkpoint)
        loop.check_position(self, plan)
        self.module.train()
        now = self.progress
        if plan.done(now.epoch, now.step):
            _logger.warning("rank %d: nothing to do in fit, %s is reached", self.comm.rank, now)
        last_step = plan.last_step(now.epoch, now.batch, now.step)
        rank = self.comm.rank

        def open_log() -> Log:
            if checkpoint is not None and rank == 0:
                check_writable(checkpoint)
            return Log(rank, now.step, last_step, metrics, progress)

        with on_every_rank(self.comm, open_log) as log:
            loop.run(self, dataset, plan, checkpoint, log)
        return now.loss

    def evaluate(
        self, dataset: Any, *, batch_size: int = 256, metrics: Metrics | None = None
    ) -> dict[str, Any]:
        """Return the mean loss and metrics over a dataset, every sample counted once.

        The module is in evaluation mode meanwhile. Every rank must call this.

        Args:
            dataset: as for `fit`.
            batch_size: samples in a global batch, over all ranks.
            metrics: name → function(output, targets) that returns a mean over its inputs.

        Returns:
            {"loss": float, "count": samples, "metrics": {name: float}}, the same on every rank.

        Raises:
            ArgumentError: the dataset is empty or batch_size is not positive.
        """
        if batch_size < 1 or len(dataset) == 0:
            raise ArgumentError(
                f"batch_size={batch_size}, {len(dataset)} samples: both must be ≥ 1"
            )
        metrics = metrics or {}
        self._share_buffers()
        sums = no_sums(metrics)
        with evaluating(self.module):
            for indices in batches.in_order(len(dataset), batch_size):
                sums += self._evaluate_batch(*self.fetch(dataset, indices), metrics)
        self.comm.all_reduce(sums)
        return means(sums, metrics)

    def save(self, directory: str | Path) -> None:
        """Write model, optimizer, progress and random generators into a folder, atomically.

        Every rank must call this; it returns when everything is on disk.

        Raises:
            ArgumentError: gradients are pending inside a group of `accumulate` batches.
            CommError: a rank could not write; raised on all, what was there before is kept.
        """
        if self._pending:
            raise ArgumentError(self._pending_text("save"))
        self._share_buffers()
        save(directory, self.comm, self._part(), random_state(), asdict(self.progress))

    def load(self, directory: str | Path) -> None:
        """Restore what `save` wrote, on any number of ranks and from any trainer.

        Every rank must call this and see the folder. Random generators are restored on the ranks
        that existed when it was saved.

        Raises:
            ArgumentError: there is no checkpoint, it is damaged, or of another model; names the
                first parameter that does not fit. Raised on every rank; nothing has changed.
        """
        saved = self._read(directory)  # nobody changes before everybody has read
        state, random = saved["part"], saved["random"]
        self.module.load_state_dict(state["model"])
        self._restore(state["optimizer"])
        self.progress, self._pending = Progress(**saved["progress"]), 0
        if random is not None:
            restore_random(random)

    def report(self) -> list[dict[str, Any]]:
        """Return a row for each rank; every rank must call this.

        Returns:
            rank, samples_per_s, computing_s, communicating_s, idle_s, bytes_sent: of all `step`
            and `fit` calls so far.
        """
        return self.comm.all_gather_object(self.meter.row())

    def print_report(self) -> None:
        """Print `report` as a table on rank 0; every rank must call this."""
        rows = self.report()
        if self.comm.rank == 0:
            print_rows(rows)

    def add(self, inputs: Any, targets: Any, group: int) -> BatchLoss:
        """Add the gradient of a global batch, one of `group` that make a step; return its loss."""
        if self._pending == 0:
            self.module.zero_grad(set_to_none=True)
        loss = self._backward(inputs, targets, group)
        self._pending += 1
        self.meter.samples += loss.samples
        return loss

    def update(self, loss: float) -> None:
        """Update the parameters with the gradients added so far; `loss` is the step's mean."""
        self._apply_gradients()
        self._pending = 0
        self.progress.step += 1
        self.progress.loss = loss

    def _read(self, directory: str | Path) -> dict[str, Any]:
        state: dict[str, Any] = {}
        error = None
        try:
            saved = Checkpoint(directory)
            saved.check(self._expected())
            state["part"] = saved.read(self.module.state_dict())
            state["random"] = saved.random(self.comm.rank)
            state["progress"] = saved.progress
        except ArgumentError as caught:
            error = caught
        raise_together(self.comm, error)
        return state

    def _pending_text(self, operation: str) -> str:
        return (
            f"{operation} after {self._pending} of accumulate={self.accumulate} batches would lose "
            f"their gradients: call it after the last"
        )
