"""ModelParallelTrainer: pipeline, tensor and data parallelism, in any product of the three."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pycomm.errors import ArgumentError
from pycomm.mesh import Mesh
from pycomm.parallel.compression import Factory
from pycomm.parallel.deferred_batch_norm import RunningStatistics, convert
from pycomm.parallel.initial_values.fill import Init
from pycomm.parallel.pipeline import Pipeline
from pycomm.parallel.replicate import on_every_rank
from pycomm.parallel.sampler import share as share_of
from pycomm.parallel.schedules.actions import Action, Forward, Schedule
from pycomm.parallel.schedules.registry import find_schedule
from pycomm.parallel.schedules.timeline import count_stages, most_held
from pycomm.parallel.sharded_update import make_update
from pycomm.parallel.splitting.blocks import Leaves
from pycomm.parallel.stages import Cutting, Given, Stages, state_ranks
from pycomm.parallel.tensor import Plan, counted
from pycomm.parallel.ties import TiedWeights
from pycomm.parallel.whole_gradient import WholeGradient
from pycomm.trainers import batches
from pycomm.trainers.arguments import check_divided, one_pipeline
from pycomm.trainers.base import LossFunction, OptimizerFactory, Trainer, Weight
from pycomm.trainers.compressing import check_compression
from pycomm.trainers.divided_state import DividedState
from pycomm.trainers.evaluation import Metrics, batch_sums, no_sums
from pycomm.trainers.idle_report import IdleReport
from pycomm.trainers.microbatches import Microbatches, cut
from pycomm.trainers.progress import BatchLoss
from pycomm.trainers.randomness import Randomness
from pycomm.trainers.rates import Rates
from pycomm.trainers.report import Meter
from pycomm.trainers.stages_here import stages_here
from pycomm.trainers.weighted_loss import WeightedLoss

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class ModelParallelTrainer(DividedState, Trainer):
    """Train a model whose layers, and the neurons in them, are divided over ranks.

    The ranks are dp pipelines of pp stages, each stage on tp ranks: see `Mesh`. With a Communicator
    all ranks are one pipeline. Each rank runs, and updates, a stage of the model, or several, or
    with tp > 1 its part of them; replicas of a stage in other pipelines reduce gradients with it,
    and divide the optimizer's state, as DataParallelTrainer does.

    A batch is cut into microbatches (`torch.tensor_split`; fewer when it has fewer samples), which
    flow through the stages as the schedule says; each one's loss is weighed by its share of the
    batch, so the gradient is that of the whole batch's mean loss. All stages start from the weights
    of rank 0, or if these have no memory yet, with the values that one process would give them. A
    batch norm normalises each microbatch by itself. Weights that several stages use stay equal.

    `step` takes this pipeline's share of the global batch, perhaps None: inputs on the first stage,
    targets on the last, the same on each rank of the stage; every rank may pass None for what it
    does not need. Metrics and losses are the same on every rank.

    Attributes:
        mesh: where each rank is.
        split: what was cut where and why: see `Split.explain`; None for Parts.
        pipeline: this rank's stages; `pipeline.times` says where the time of the last step went.

    Args:
        module: any model, a list of layers, a Part for each stage, or, if it does not fit, a
            factory of a model or one on the meta device, see `source_of`; the same on every rank,
            which keeps its stages only. Parameters have their names in the whole model.
        optimizer: called once with this rank's list of (name, parameter); returns a torch
            optimizer. Not called on a rank without parameters.
        loss_fn: (output, targets) → the mean loss over its inputs, a scalar tensor.
        comm: the ranks, or a Mesh of them.
        microbatches: how many a batch is cut into.
        schedule: the order of forward and backward: "1f1b", "gpipe", "interleaved", "zb-h1" or
            "sequential"; `python -m pycomm trace` draws them.
        stages_per_rank: how many stages each rank has, with "interleaved", by default 2; of n
            ranks, rank r has the stages r, r + n, r + 2n and so on. Other schedules have one.
        recompute: keep only what stages take, and run forward again before backward: less memory
            for a third more computing.
        balance: what parts are balanced by: "params", "time", "memory", or a cost for each layer,
            see `splitting.split`; None: time where there is a sample, else parameters.
        cuts: the full names of modules at which the second, third … stage begins, instead.
        leaves: modules that stay whole when the model is traced: full names, or classes.
        inputs: the parameters of forward that get values; None: those without a default.
        sample: a microbatch of inputs to measure time and activations with, on every rank.
        init, seed: of a model on the meta device, see `fill_by_modules`.
        memory_limit: of each rank, beside the program: bytes, or as "1.5 GiB"; more is refused.
        clip_norm: the largest norm of the whole gradient, over all stages; None does not clip.
        weight: targets → what a microbatch counts for, ≥ 0; by default its number of samples.
        device: "cpu", or "cuda" for the GPU that this rank is dealt, see `placement.place`: the
            module is moved there, batches as they come. None: where the module is.
        precision: "fp32" computes in the dtypes of the parameters, "bf16" and "fp16" by
            torch.autocast; fp16 with a loss scale of its own, see `loss_scale`.
        rates: step → what the optimizer's learning rates are multiplied by, see `rates`.
        check_finite: look at every gradient of every rank; `step` and `fit` raise NonFiniteError
            on all ranks, naming rank and parameter, if one is not finite.
        tensor_plan: with tp > 1, the style in which each layer is divided, by name; see
            `tensor_parallel`. None: what is known of the model.
        sequence: with tp > 1, also divide what lies between divided layers, along the sequence.
        algorithm, bucket_bytes, compression, shard, share: of the replicas of a stage, see
            DataParallelTrainer.
        batch_dims: where the batch is in what modules drop from, see KeyedDropout.
        deferred_batch_norm: running statistics of batch norms are those of the whole batch, over
            all microbatches and replicas, instead of moving with every microbatch of each.

    Raises:
        ArgumentError: there are more stages than layers, the model cannot be traced, a cut goes
            through a tie that cannot be resolved, `memory_limit` is not enough, or a value is out
            of range.
        MismatchError: the ranks' models or arguments differ; raised on all.
        MissingError: a rank has no GPU, for device="cuda"; raised on all.
        CommError: something that was passed, such as a factory, raised on a rank; raised on all.
    """

    def __init__(
        self,
        module: Given,
        optimizer: OptimizerFactory,
        loss_fn: LossFunction,
        comm: Communicator | Mesh,
        microbatches: int = 8,
        schedule: str = "1f1b",
        stages_per_rank: int | None = None,
        recompute: bool = False,
        balance: str | Sequence[float] | None = None,
        clip_norm: float | None = None,
        weight: Weight | None = None,
        device: str | torch.device | None = None,
        precision: str = "fp32",
        rates: Rates | None = None,
        check_finite: bool = False,
        tensor_plan: Plan | None = None,
        sequence: bool = False,
        algorithm: str | None = None,
        bucket_bytes: int = 25 << 20,
        compression: str | Factory | None = None,
        shard: bool | None = None,
        share: bool = False,
        batch_dims: Mapping[str, int | None] | None = None,
        cuts: Sequence[str] | None = None,
        leaves: Leaves = (),
        inputs: Sequence[str] | None = None,
        sample: Any = None,
        init: Init | None = None,
        seed: int = 0,
        memory_limit: int | str | None = None,
        deferred_batch_norm: bool = False,
    ):
        self.mesh = mesh = comm if isinstance(comm, Mesh) else one_pipeline(comm)
        comm, pp, dp, tp = mesh.comm, mesh["pp"], mesh["dp"], mesh["tp"]
        how = Cutting(balance, cuts, leaves, inputs, sample, init, seed)
        given = {
            "microbatches": microbatches,
            "schedule": schedule,
            "stages_per_rank": stages_per_rank,
            "recompute": recompute,
            "sequence": sequence,
            "bucket_bytes": bucket_bytes,
            "check_finite": check_finite,
            "compression": compression,
            "shard": shard,
            "share": share,
            "batch_dims": batch_dims,
            "memory_limit": memory_limit,
            "deferred_batch_norm": deferred_batch_norm,
        }
        check_divided(comm, how, given)
        self._schedule = find_schedule(schedule)
        self._microbatches = microbatches
        self._stages_per_rank = self._schedule.stages_on_a_rank(stages_per_rank)
        plan = self._build(microbatches)
        stages = Stages(module, count_stages(plan), how, comm, most_held(plan), optimizer, device)
        owners = state_ranks(dp, shard)
        here = stages_here(stages, mesh, tensor_plan, sequence, memory_limit, owners)
        check_compression(compression, precision)
        self._compresses = compression is not None
        self.split, self._whole, self._divided = here.split, here.whole, here.divided
        norms = convert(here.module, comm) if deferred_batch_norm else []
        self._statistics = RunningStatistics(norms, dp)
        super().__init__(
            here.module,
            optimizer,
            loss_fn,
            comm,
            accumulate=1,
            clip_norm=clip_norm,
            weight=weight,
            device=here.device,
            precision=precision,
            rates=rates,
            check_finite=check_finite,
        )
        self.meter = Meter(comm, self.device, (dp, pp, tp))
        gpu = self.device.type == "cuda"
        self.pipeline = Pipeline(here.parts, pp, self._context, recompute, copy=gpu, everyone=comm)
        self._idle = IdleReport(f"{schedule} of {microbatches} microbatches", plan, self.split)
        self._randomness = Randomness(self.module, comm, self.device, batch_dims)
        self._tied = TiedWeights(here.ties, self.module, pp, lambda stage: stage % pp.size)
        counts = {id(p) for name, p in counted(self.module, tp) if self._tied.counts(name)}
        make = partial(
            make_update,
            self.optimizer,
            self.module,
            dp,
            shard=shard,
            share=share,
            check_finite=check_finite,
            algorithm=algorithm,
            compression=compression,
            bucket_bytes=bucket_bytes,
            whole=WholeGradient(
                dp, comm, lambda p: id(p) in counts, self._tied.names, self._kind_of
            ),
        )
        self._way = on_every_rank(comm, make, "preparing updates")

    def wanted(self, indices: np.ndarray) -> np.ndarray:
        """Return this pipeline's share of a batch on its first and last stage, else nothing."""
        share = share_of(indices, self.mesh.coords["dp"], self.mesh.shape["dp"])
        return share if self.pipeline.first or self.pipeline.last else share[:0]

    def _backward(self, inputs: Any, targets: Any, group: int) -> BatchLoss:
        batch = self._cut(inputs, targets)
        if not 0 < batch.weight < math.inf:
            raise ArgumentError(
                f"the weights of a batch with {batch.samples} samples on rank {self.comm.rank} add "
                f"up to {batch.weight} over all ranks: they must be ≥ 0, and one of them positive"
            )
        loss = WeightedLoss(self.loss_fn, batch, self._scale, self.device)
        self._statistics.begin()
        self._way.expect(False)
        expect_last = partial(self._way.expect, True)
        self.pipeline.run(self._row_of(batch), self._inputs(batch), loss, expect_last)
        self._tied.sum_gradients()  # these are what the replicas reduce
        self._way.backward_done()
        self._statistics.commit()
        times = self.pipeline.times
        self._idle.add(times)
        self.meter.add(times.transferring_s, times.idle_s)
        return BatchLoss(self._sum(loss.total), batch.weight, batch.samples)

    def _sum(self, value: float) -> float:
        """Return the sum of what the last stages of all pipelines have, on every rank."""
        pp, total = self.mesh["pp"], np.array([value], np.float64)
        if self.pipeline.last:
            self.mesh["dp"].all_reduce(total)
        return float(pp.broadcast(total, root=pp.size - 1)[0])

    def report(self) -> list[dict[str, Any]]:
        """Return a row for each rank, see Trainer; every rank must call this.

        Returns:
            Also where the pipeline's time went, as docs/model_parallel.md says, and `better_cut`:
            {"cuts", "speedup", "stages_s"}, or None, see `idle_report`.
        """
        return self._idle.explained(super().report())

    def _evaluate_batch(self, inputs: Any, targets: Any, metrics: Metrics) -> np.ndarray:
        batch = self._cut(inputs, targets)
        sums = no_sums(metrics)

        def collect(microbatch: int, output: Any) -> None:
            target = batches.moved(batch.targets[microbatch], self.device)
            weight = batch.weights[microbatch]
            sums[:] += batch_sums(output, target, self.loss_fn, weight, metrics, self.comm.rank)

        forwards = [action for action in self._row_of(batch) if isinstance(action, Forward)]
        self.pipeline.run(forwards, self._inputs(batch), collect)
        return sums if self.mesh.coords["tp"] == 0 else no_sums(metrics)

    def _apply_gradients(self) -> None:
        self._way.step(1 / self._scale, self.clip_norm, self._accepts)

    def _row(self) -> dict[str, Any]:
        return {**super()._row(), **self._idle.row()}

    def _remarks(self, rows: list[dict[str, Any]]) -> list[str]:
        return self._idle.remarks(rows)

    def _kind_of(self, name: str) -> tuple[Any, ...]:
        """Return which ranks hold a parameter, such that those who do reduce it alike."""
        return self._tied.holders(name), name in self._divided

    def _row_of(self, batch: Microbatches) -> list[Action]:
        """Return what this rank does for a batch."""
        return self._build(batch.count)[self.mesh.coords["pp"]] if batch.count else []

    def _build(self, microbatches: int) -> Schedule:
        return self._schedule.build(self.mesh.shape["pp"], microbatches, self._stages_per_rank)

    def _cut(self, inputs: Any, targets: Any) -> Microbatches:
        self._batch = cut(inputs, targets, self.mesh, self._microbatches, self._weight)
        return self._batch

    @contextmanager
    def _context(self, microbatch: int) -> Iterator[None]:
        """Be around the forward pass of a microbatch."""
        drops = torch.is_grad_enabled()
        place = self._batch.place(microbatch)
        keyed = self._randomness(self.progress.step, *place) if drops else nullcontext()
        with self._forward_context(), keyed:
            yield

    def _inputs(self, batch: Microbatches) -> list[Any]:
        return [batches.moved(inputs, self.device) for inputs in batch.inputs]
