"""Trainer: what all trainers share, and what a trainer has to say for itself."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pycomm.errors import ArgumentError, RankFailedError
from pycomm.parallel.replicate import check_all_equal, check_equal, on_every_rank
from pycomm.trainers import batches, loop
from pycomm.trainers.arguments import (
    check_dataset,
    check_functions,
    check_kinds,
    check_step,
)
from pycomm.trainers.checkpoint import exists
from pycomm.trainers.evaluation import Metrics, evaluating, means, no_sums
from pycomm.trainers.loading import Loader
from pycomm.trainers.loss_scale import LossScale
from pycomm.trainers.precision import forward_context
from pycomm.trainers.progress import BatchLoss, Progress
from pycomm.trainers.rates import Rates
from pycomm.trainers.report import Log, Meter
from pycomm.trainers.reported import Reported
from pycomm.trainers.returned import made_by, number
from pycomm.trainers.saved import Saved
from pycomm.trainers.saving import Saving
from pycomm.trainers.threads import share_cores

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

OptimizerFactory = Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
LossFunction = Callable[[Any, Any], torch.Tensor]
Weight = Callable[[Any], float]

_logger = logging.getLogger(__name__)


class Trainer(Saved, Reported):
    """The base of the trainers; a subclass says how a batch runs and how gradients are combined.

    Attributes:
        module: the model, or this rank's part of it.
        device: where it is: the CPU, or this rank's GPU.
        optimizer: what the factory returned; None where this rank has no parameters.
        progress: how far training has come; `fit` goes on from there.
        meter: the time of training on this rank.
        stopped: whether a signal ended the last `fit`.
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
        device: torch.device,
        precision: str,
        rates: Rates | None,
        check_finite: bool,
    ):
        same = {
            "accumulate and clip_norm": (accumulate, clip_norm),
            "precision and check_finite": (precision, check_finite),
            "rates": rates,
        }
        check_all_equal(comm, lambda: same)
        optional = {"weight": weight, "rates": rates}
        check_functions(comm, optional, optimizer=optimizer, loss_fn=loss_fn)
        check_step(comm, accumulate, clip_norm, precision, check_finite)
        share_cores(comm)
        self.module, self.loss_fn, self.comm, self.device = module, loss_fn, comm, device
        self._forward_context = forward_context(precision, device)
        self.accumulate, self.clip_norm = accumulate, clip_norm
        self.optimizer = made_by(optimizer, module, comm)
        self.progress = Progress()
        self._loss_scale, self._rates = LossScale(precision, self.progress), rates
        self.stopped = False
        self.meter = Meter(comm, device)
        self._weight = weight or batches.count_samples
        self._pending = 0  # batches whose gradients have been added since the last update

    @abstractmethod
    def wanted(self, indices: np.ndarray) -> np.ndarray:
        """Return which samples of a global batch this rank needs; perhaps none."""

    @abstractmethod
    def _backward(self, inputs: Any, targets: Any, group: int) -> BatchLoss:
        """Add the gradient of one of the `group` global batches of a step; return its loss."""

    @abstractmethod
    def _apply_gradients(self) -> None:
        """Update the parameters with the gradient of the step's mean loss, clipped.

        Unless `_accepts` refuses its norm, with a loss scale.
        """

    def survive(self, error: RankFailedError) -> None:
        """Go on without the ranks that died, or raise `error`; every survivor must call this."""
        raise error

    @abstractmethod
    def _evaluate_batch(self, inputs: Any, targets: Any, metrics: Metrics) -> np.ndarray:
        """Return this rank's sums over one batch, see `evaluation`."""

    def step(self, inputs: Any, targets: Any) -> float:
        """Train on one global batch; update on every `accumulate`-th call.

        Until the next call `p.grad` stays what it was for the update, or, if the optimizer's state
        is sharded, this rank's part of it.

        Args:
            inputs, targets: this rank's share, anywhere; the trainer says who may pass None.

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
        checkpoint_every: int | None = None,
        keep: int = 1,
        workers: int = 0,
        worker_context: str = "fork",
        metrics: str | Path | None = None,
        progress: bool = True,
    ) -> float | None:
        """Train on a dataset until `epochs` or `steps` are reached, whichever comes first.

        Both count from the trainer's first step, so that a resumed run is the same call. A step is
        one update: `accumulate` global batches, or what an epoch has left of them. The order of
        samples depends on (seed, epoch) only, not on the number of ranks.

        With a `checkpoint`, SIGTERM to a rank or SIGUSR1 to it or to mpirun ends training after
        the step under way: it is saved, `stopped` is set, and the same call later goes on.

        Args:
            dataset: map-style, of pairs (input, target), the same on every rank; one with
                `tensors` (TensorDataset) is indexed a batch at a time.
            epochs: passes over the dataset, in all.
            steps: updates, in all.
            batch_size: samples in a global batch, over all ranks.
            seed: of the order of samples.
            checkpoint: a folder. If it holds a checkpoint, training goes on from there, exactly;
                it is written at the end of each epoch and at the end.
            checkpoint_every: also write it after every so many steps.
            keep: how many of the last checkpoints stay.
            workers: processes that load samples ahead, on each rank; 0 loads when they are needed.
            worker_context: how workers start: "fork", or "spawn" or "forkserver" for a dataset
                that can be pickled.
            metrics: a file for JSON Lines (step, epoch, loss, samples_per_s), written on rank 0.
            progress: whether rank 0 shows a bar.

        Returns:
            The mean loss of the last step, the same on every rank; None if there never was one.

        Raises:
            ArgumentError: a value is out of range, or training stopped inside an epoch over other
                data.
            MismatchError: ranks passed different values; raised on all.
            UnsupportedError: a checkpoint cannot hold what compression leaves.
        """
        on_every_rank(self.comm, lambda: check_dataset(dataset))
        order = {"samples": len(dataset), "batch_size": batch_size, "seed": seed}
        ends: dict[str, Any] = {"epochs": epochs, "steps": steps}
        saving = on_every_rank(self.comm, lambda: Saving(checkpoint, checkpoint_every, keep))
        check_equal(self.comm, "the arguments of fit", {**order, **ends, "save": str(saving)})
        plan = on_every_rank(
            self.comm, lambda: batches.Plan(**order, accumulate=self.accumulate, **ends)
        )
        loader = on_every_rank(self.comm, lambda: Loader(dataset, workers, worker_context, seed))
        if self._pending:
            raise ArgumentError(self._pending_text("fit"))
        if checkpoint is not None:
            self.check_leftovers()
        there = on_every_rank(self.comm, lambda: checkpoint is not None and exists(checkpoint))
        if checkpoint is not None and self.comm.broadcast_object(there, 0):
            self.load(checkpoint)
        loop.check_position(self, plan)
        self.module.train()
        now = self.progress
        if plan.done(now.epoch, now.step):
            _logger.warning("rank %d: nothing to do in fit, %s is reached", self.comm.rank, now)
        last_step = plan.last_step(now.epoch, now.batch, now.step)

        def open_log() -> Log:
            if self.comm.rank == 0:
                saving.check_writable()
            return Log(self.comm.rank, self.progress.step, last_step, metrics, progress)

        self.stopped = loop.run(self, loader, plan, saving, open_log)
        return self.progress.loss

    def evaluate(
        self,
        dataset: Any,
        *,
        batch_size: int = 256,
        workers: int = 0,
        worker_context: str = "fork",
        metrics: Metrics | None = None,
    ) -> dict[str, Any]:
        """Return the mean loss and metrics over a dataset, every sample counted once.

        The module is in evaluation mode meanwhile. Every rank must call this.

        Args:
            dataset: as for `fit`.
            batch_size: samples in a global batch, over all ranks.
            workers, worker_context: as for `fit`.
            metrics: name → function(output, targets) that returns a mean over its inputs.

        Returns:
            {"loss": float, "count": samples, "metrics": {name: float}}, the same on every rank.

        Raises:
            ArgumentError: the dataset is empty or batch_size is not positive.
        """
        metrics = metrics or {}
        check_kinds(self.comm, {"metrics": (dict,)}, metrics=metrics)
        check_functions(self.comm, {}, **metrics)
        on_every_rank(self.comm, lambda: check_dataset(dataset))
        what = {"samples": len(dataset), "batch_size": batch_size, "metrics": [*metrics]}
        check_equal(self.comm, "the arguments of evaluate", what)
        on_every_rank(self.comm, lambda: batches.check_whole(batch_size=batch_size))
        self._share_buffers()
        sums = no_sums(metrics)
        mine = map(self.wanted, batches.in_order(len(dataset), batch_size))
        with evaluating(self.module), self._forward_context():
            for batch in Loader(dataset, workers, worker_context, 0).load(mine):
                sums += self._evaluate_batch(*batch, metrics)
        self.comm.all_reduce(sums)
        return means(sums, metrics)

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
        self._set_rates()
        self._apply_gradients()
        self._pending = 0
        self.progress.step += 1
        self.progress.loss = loss

    def _set_rates(self) -> None:
        if self._rates is None or self.optimizer is None:
            return
        step = self.progress.step
        factor = number(self._rates(step), f"rates({step})", self.comm.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    @property
    def _accepts(self) -> Callable[[float], bool] | None:
        """What decides by the norm of a gradient whether it is used; None if all are."""
        if not self._loss_scale.on:
            return None
        return lambda norm: self._loss_scale.accepts(norm, self.progress)

    @property
    def _scale(self) -> float:
        return self._loss_scale.of(self.progress)
