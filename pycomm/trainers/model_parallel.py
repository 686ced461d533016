"""ModelParallelTrainer: the layers of a model are split over the ranks, batches flow through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pycomm.errors import ArgumentError
from pycomm.parallel.finite import is_finite, raise_if_any
from pycomm.parallel.idle import Times
from pycomm.parallel.joined import joined
from pycomm.parallel.optimizer_state import optimizer_state, restore_optimizer
from pycomm.parallel.partition import parts_of
from pycomm.parallel.parts import Part
from pycomm.parallel.pipeline import Pipeline
from pycomm.parallel.placement import move, place
from pycomm.parallel.replicate import check_equal, check_same_model, tensors
from pycomm.parallel.schedules.actions import Forward, Schedule
from pycomm.parallel.schedules.registry import find_schedule
from pycomm.parallel.schedules.timeline import idle_share
from pycomm.trainers import batches
from pycomm.trainers.base import LossFunction, OptimizerFactory, Trainer, Weight
from pycomm.trainers.evaluation import Metrics, batch_sums, no_sums
from pycomm.trainers.idle_report import idle_remarks, pipeline_row
from pycomm.trainers.named_state import describe
from pycomm.trainers.progress import BatchLoss
from pycomm.trainers.rates import Rates

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class ModelParallelTrainer(Trainer):
    """Train a model by model parallelism: each rank runs, and updates, a stage of it, or several.

    A batch is cut into microbatches (`torch.tensor_split`; fewer when it has fewer samples), which
    flow through the stages as the schedule says; each one's loss is weighed by its share of the
    batch, so the gradient is that of the whole batch's mean loss. All stages start from the weights
    of rank 0. A batch norm sees microbatches.

    `step` takes the whole global batch: inputs on the first rank, targets on the last; every rank
    may pass None for what it does not need. Metrics and losses are the same on every rank.

    Attributes:
        pipeline: this rank's stages; `pipeline.times` says where the time of the last step went.

    Args:
        module: an nn.Sequential, a list of layers, or a Part for each stage; the same on every
            rank, which keeps its stages only. Parameters have their names in the whole model.
        optimizer: called once with this rank's list of (name, parameter); returns a torch
            optimizer. Not called on a rank without parameters.
        loss_fn: (output, targets) → the mean loss over its inputs, a scalar tensor.
        comm: the ranks.
        microbatches: how many a batch is cut into.
        schedule: the order of forward and backward: "1f1b", "gpipe", "interleaved", "zb-h1" or
            "sequential"; `python -m pycomm trace` draws them.
        stages_per_rank: how many stages each rank has, with "interleaved", by default 2; of n
            ranks, rank r has the stages r, r + n, r + 2n and so on. Other schedules have one.
        recompute: keep only what stages take, and run forward again before backward: less memory
            for a third more computing.
        balance: what parts are balanced by: "params", or a cost for each layer.
        clip_norm: the largest norm of the whole gradient, over all stages; None does not clip.
        weight: targets → what a microbatch counts for, ≥ 0; by default its number of samples.
        device: "cpu", or "cuda" for the GPU that this rank is dealt, see `placement.place`: the
            module is moved there, batches as they come. None: where the module is.
        precision: "fp32" computes in the dtypes of the parameters, "bf16" and "fp16" by
            torch.autocast; fp16 with a loss scale of its own, see `loss_scale`.
        rates: step → what the optimizer's learning rates are multiplied by, see `rates`.
        check_finite: look at every gradient of every rank; `step` and `fit` raise NonFiniteError
            on all ranks, naming rank and parameter, if one is not finite.

    Raises:
        ArgumentError: there are more stages than layers, stages share a parameter, or a value
            is out of range.
        MismatchError: the ranks' models or arguments differ; raised on all.
        MissingError: a rank has no GPU, for device="cuda"; raised on all.
    """

    def __init__(
        self,
        module: nn.Module | Sequence[nn.Module] | Sequence[Part],
        optimizer: OptimizerFactory,
        loss_fn: LossFunction,
        comm: Communicator,
        microbatches: int = 8,
        schedule: str = "1f1b",
        stages_per_rank: int | None = None,
        recompute: bool = False,
        balance: str | Sequence[float] = "params",
        clip_norm: float | None = None,
        weight: Weight | None = None,
        device: str | torch.device | None = None,
        precision: str = "fp32",
        rates: Rates | None = None,
        check_finite: bool = False,
    ):
        given = (microbatches, schedule, balance if isinstance(balance, str) else list(balance))
        check_equal(comm, "microbatches, schedule or balance", given)
        check_equal(comm, "stages_per_rank or recompute", (stages_per_rank, recompute))
        if not isinstance(microbatches, int) or microbatches < 1:
            raise ArgumentError(f"microbatches={microbatches!r} must be an integer ≥ 1")
        self._schedule = find_schedule(schedule)
        self._microbatches = microbatches
        self._stages_per_rank = self._schedule.stages_on_a_rank(stages_per_rank)
        parts = parts_of(module, comm.size * self._stages_per_rank, balance)
        whole = joined([part.module for part in parts])
        place_here = place(whole, comm, device)
        check_same_model(whole, comm)
        self._whole = describe(whole)
        mine = [part.module for part in parts[comm.rank :: comm.size]]
        _deliver(parts, comm)
        for part in mine:
            move(part, comm, place_here)
        super().__init__(
            joined(mine),
            optimizer,
            loss_fn,
            comm,
            accumulate=1,
            clip_norm=clip_norm,
            weight=weight,
            device=place_here,
            precision=precision,
            rates=rates,
            check_finite=check_finite,
        )
        self._check_finite = check_finite
        on_gpu = place_here.type == "cuda"
        self.pipeline = Pipeline(parts, comm, self._forward_context, recompute, copy=on_gpu)
        self._times = Times()

    def wanted(self, indices: np.ndarray) -> np.ndarray:
        """Return the whole global batch on the first and last rank, nothing of it elsewhere."""
        return indices if self.pipeline.first or self.pipeline.last else indices[:0]

    def _backward(self, inputs: Any, targets: Any, group: int) -> BatchLoss:
        batch = self._cut(inputs, targets)
        if not 0 < batch.weight < math.inf:
            raise ArgumentError(
                f"the weights of a batch of {batch.samples} samples add up to {batch.weight} "
                f"(this is rank {self.comm.rank}): they must be ≥ 0, and one of them positive"
            )
        losses: list[tuple[torch.Tensor, float]] = []

        def loss(microbatch: int, output: Any) -> torch.Tensor | None:
            weight = batch.weights[microbatch]
            if weight == 0:
                return None
            mean = self.loss_fn(output, batch.targets[microbatch])
            losses.append((mean.detach(), weight))
            return mean * (weight / batch.weight * self._scale)

        self.pipeline.run(self._plan(batch)[self.comm.rank], batch.inputs, loss)
        times = self.pipeline.times
        self._times.add(times)
        self.meter.add(times.transferring_s, times.idle_s)
        value = np.array([sum(mean.item() * weight for mean, weight in losses)], np.float64)
        self.comm.broadcast(value, root=self.comm.size - 1)
        return BatchLoss(float(value[0]), batch.weight, batch.samples)

    def _evaluate_batch(self, inputs: Any, targets: Any, metrics: Metrics) -> np.ndarray:
        batch = self._cut(inputs, targets)
        sums = no_sums(metrics)

        def collect(microbatch: int, output: Any) -> None:
            target, weight = batch.targets[microbatch], batch.weights[microbatch]
            sums[:] += batch_sums(output, target, self.loss_fn, weight, metrics)

        row = self._plan(batch)[self.comm.rank]
        forwards = [action for action in row if isinstance(action, Forward)]
        self.pipeline.run(forwards, batch.inputs, collect)
        return sums

    def _apply_gradients(self) -> None:
        named = [(n, p.grad) for n, p in self.module.named_parameters() if p.grad is not None]
        if self._check_finite:
            raise_if_any(self.comm, [name for name, grad in named if not is_finite(grad)])
        grads = [grad for _, grad in named]
        if self._scale != 1.0 and grads:
            torch._foreach_div_(grads, self._scale)
        if self._clip(grads) and self.optimizer is not None:
            self.optimizer.step()

    def _clip(self, grads: list[torch.Tensor]) -> bool:
        """Clip if it is asked for; say whether the gradients are good."""
        accepts = self._accepts
        if self.clip_norm is None and accepts is None:
            return True
        norm = float(torch.nn.utils.get_total_norm(grads))
        square = self.comm.all_reduce(np.array([norm**2]))
        whole = torch.tensor(math.sqrt(square[0]), dtype=torch.float64)
        if accepts is not None and not accepts(float(whole)):
            return False
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.module.parameters(), self.clip_norm, whole)
        return True

    def _part(self) -> dict[str, Any] | None:
        state = optimizer_state(self.optimizer, self.module)
        return {"model": self.module.state_dict(), "optimizer": state}

    def _restore(self, saved: dict[str, Any]) -> None:
        restore_optimizer(self.optimizer, self.module, saved)

    def _expected(self) -> dict[str, tuple[str, list[int]]]:
        return self._whole

    def _share_buffers(self) -> None:
        """Every part is on one rank only."""

    def _row(self) -> dict[str, Any]:
        ideal = idle_share(self._build(self._microbatches))
        return {**super()._row(), **pipeline_row(self._times, ideal)}

    def _remarks(self, rows: list[dict[str, Any]]) -> list[str]:
        plan = f"{self._schedule.name} of {self._microbatches} microbatches"
        return idle_remarks(rows, plan)

    def _plan(self, batch: _Batch) -> Schedule:
        return self._build(min(self._microbatches, batch.samples))

    def _build(self, microbatches: int) -> Schedule:
        return self._schedule.build(self.comm.size, microbatches, self._stages_per_rank)

    def _cut(self, inputs: Any, targets: Any) -> _Batch:
        """Cut what this rank has of a batch into microbatches, and tell the others its size.

        Raises:
            ArgumentError: on every rank, if the first has no inputs or the last no targets, if
                their numbers differ, or if there are none.
        """
        xs = self._microbatches_of(self._moved(inputs)) if self.pipeline.first else []
        ts = self._microbatches_of(targets) if self.pipeline.last else []
        weights = [float(self._weight(t)) for t in ts]
        total = sum(weights) if all(w >= 0 for w in weights) else math.nan
        mine = np.array([sum(map(len, xs)), sum(map(len, ts)), total], np.float64)
        sizes = self.comm.all_gather(mine)
        samples, others, total = int(sizes[0][0]), int(sizes[-1][1]), float(sizes[-1][2])
        if samples != others or samples == 0:
            raise ArgumentError(
                f"rank 0 got inputs with {samples} samples, rank {self.comm.size - 1} targets with "
                f"{others} (this is rank {self.comm.rank}): pass tensors of equal length ≥ 1 there"
            )
        ts = self._microbatches_of(self._moved(targets)) if self.pipeline.last else []
        return _Batch(samples, total, xs, ts, weights)

    def _moved(self, batch: Any) -> Any:
        return batches.moved(batch, self.device)

    def _microbatches_of(self, batch: Any) -> list[torch.Tensor]:
        if not isinstance(batch, torch.Tensor) or batch.dim() == 0 or len(batch) == 0:
            return []
        return list(torch.tensor_split(batch, min(self._microbatches, len(batch))))


@dataclass(frozen=True)
class _Batch:
    """A global batch: its size and weight, and the microbatches that this rank needs."""

    samples: int
    weight: float
    inputs: list[torch.Tensor]
    targets: list[torch.Tensor]
    weights: list[float]


def _deliver(parts: Sequence[Part], comm: Communicator) -> None:
    """Send each stage's parameters and buffers from rank 0 to the rank that runs it."""
    for stage, part in enumerate(parts):
        rank = stage % comm.size
        for _, tensor in tensors(part.module) if rank > 0 else ():
            if comm.rank == 0:
                comm.send(tensor, rank)
            elif comm.rank == rank:
                comm.recv(0, out=tensor)
