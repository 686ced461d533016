"""DataParallelTrainer: every rank has the whole model and its own share of each batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pycomm.errors import ArgumentError, RankFailedError, StateLostError
from pycomm.parallel.checksums import Checksums
from pycomm.parallel.compression import Factory
from pycomm.parallel.copies import Copies
from pycomm.parallel.no_samples import empty_inputs, needs_every_rank, run_for_nothing
from pycomm.parallel.placement import move, place
from pycomm.parallel.replicate import check_same_model, copy_from_rank_0, on_every_rank
from pycomm.parallel.sampler import share as share_of
from pycomm.parallel.sharded_update import ShardedUpdate, make_update
from pycomm.parallel.stages import check_replica_memory
from pycomm.parallel.sync_batch_norm import convert
from pycomm.trainers import batches
from pycomm.trainers.arguments import check_replica
from pycomm.trainers.base import LossFunction, OptimizerFactory, Trainer, Weight
from pycomm.trainers.compressing import check_compression
from pycomm.trainers.evaluation import Metrics, batch_sums, no_sums
from pycomm.trainers.named_state import describe
from pycomm.trainers.pause import Pause
from pycomm.trainers.progress import BatchLoss, Progress
from pycomm.trainers.randomness import Randomness
from pycomm.trainers.rates import Rates
from pycomm.trainers.returned import check_same_optimizer, number, scalar

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

_logger = logging.getLogger(__name__)


class DataParallelTrainer(Trainer):
    """Train a model by data parallelism, bitwise as one process would.

    Parameters and buffers are copied from rank 0 once. In a step of k = `accumulate` batches, rank
    r has shares with weights w(r, 1) … w(r, k); W(j) is the sum of w(r, j) over the ranks. Each
    rank runs backward on loss · w(r, j) / (k · W(1)) and adds up its gradients in order of j; the
    sums are added in rank order; if k · W(1) differs from W = W(1) + … + W(k), as it does when
    batches differ in size, they are multiplied by k · W(1) / W. The result is the gradient of the
    mean loss over all k·n shares, and these very operations in one process give the same bits.

    Buffers (a batch norm's running statistics) follow each rank's own shares; `evaluate` and
    `save` first make them those of rank 0.

    Args:
        module: the same model on every rank; it is used, not copied.
        optimizer: called once with a list of (name, parameter); returns a torch optimizer.
        loss_fn: (output, targets) → the mean loss over its inputs, a scalar tensor.
        comm: the ranks.
        accumulate: how many batches make an update.
        clip_norm: the largest norm of the whole gradient; None does not clip.
        weight: targets → what a share counts for, ≥ 0; by default its number of samples.
        algorithm: of all_reduce; None lets pycomm choose.
        checksums: after every so many updates, compare the parameters of all ranks (`step` and
            `fit` raise DivergedError if they differ); 0 does not, None is PYCOMM_CHECKSUMS, or 0.
        device: "cpu", or "cuda" for the GPU that this rank is dealt, see `placement.place`: the
            module is moved there, batches as they come. None: where the module is.
        precision: "fp32" computes in the dtypes of the parameters, "bf16" and "fp16" by
            torch.autocast; fp16 with a loss scale of its own, see `loss_scale`.
        rates: step → what the optimizer's learning rates are multiplied by, see `rates`.
        check_finite: look at every gradient of every rank; `step` and `fit` raise NonFiniteError
            on all ranks, naming rank and parameter, if one is not finite.
        bucket_bytes: gradients are reduced in buckets of at most this size.
        compression: "bf16", "fp16", "int8", "fp8", "topk" or "powersgd": fewer bytes on the wire,
            see docs/data_parallel.md; None sends gradients as they are, with the bits above.
        shard: whether the ranks divide the optimizer's state, see ShardedUpdate: then `p.grad` is
            this rank's own part of the gradient. None: where reduce, update and publish are one
            pass, that is with SGD, Adam or AdamW on CPU ranks that share memory; False: never.
            Where a rank may die, see `survive`, shards are copied after each step, see Copies.
            Adam's square roots are then rounded correctly, which torch's are not always.
        share: whether the ranks, all of one host, also share one copy of the parameters: what one
            writes all see. It is rank 0's, who must keep the module as long as others use it.
        batch_dims: where the batch is in what modules drop from, see KeyedDropout.
        memory_limit: of each rank, beside the program: bytes, or as "1.5 GiB"; more is refused.

    Raises:
        MismatchError: the ranks' models or arguments differ; raised on all.
        ArgumentError: a value is out of range.
        MissingError: a rank has no GPU, for device="cuda"; raised on all.
        CommError: something that was passed, such as a factory, raised on a rank; raised on all.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerFactory,
        loss_fn: LossFunction,
        comm: Communicator,
        accumulate: int = 1,
        clip_norm: float | None = None,
        weight: Weight | None = None,
        algorithm: str | None = None,
        checksums: int | None = None,
        *,
        device: str | torch.device | None = None,
        precision: str = "fp32",
        rates: Rates | None = None,
        check_finite: bool = False,
        bucket_bytes: int = 25 << 20,
        compression: str | Factory | None = None,
        shard: bool | None = None,
        share: bool = False,
        batch_dims: Mapping[str, int | None] | None = None,
        memory_limit: int | str | None = None,
    ):
        self._how: dict[str, Any] = {
            "bucket_bytes": bucket_bytes,
            "algorithm": algorithm,
            "check_finite": check_finite,
            "compression": compression,
            "shard": shard,
            "share": share,
        }
        others = {"checksums": checksums, "batch_dims": batch_dims, "memory_limit": memory_limit}
        check_replica(module, optimizer, comm, **self._how, **others)
        check_replica_memory(module, optimizer, comm, memory_limit, shard)
        place_here = place(module, comm, device)
        move(module, comm, place_here)
        check_same_model(module, comm)
        copy_from_rank_0(module, comm)
        super().__init__(
            module,
            optimizer,
            loss_fn,
            comm,
            accumulate=accumulate,
            clip_norm=clip_norm,
            weight=weight,
            device=place_here,
            precision=precision,
            rates=rates,
            check_finite=check_finite,
        )
        check_same_optimizer(self.optimizer, module, comm)
        check_compression(compression, precision)
        self._checksums_every = checksums
        self._pause = Pause()
        on_every_rank(comm, lambda: self._connect(None), "preparing updates")
        self._together = needs_every_rank(module)
        self._no_samples: Any = None  # inputs of an empty share, where these must run, too
        self._unit = 0.0  # k · W(1)
        self._total = 0.0  # W(1) + … + W(j)
        self._seen = 0  # samples of all ranks in batches 1 … j
        self._randomness = Randomness(module, comm, place_here, batch_dims)

    def wanted(self, indices: np.ndarray) -> np.ndarray:
        """Return this rank's share of a global batch: its contiguous slice of `indices`."""
        return share_of(indices, self.comm.rank, self.comm.size)

    def update(self, loss: float) -> None:
        """Update the parameters as any trainer does; then compare them, if it is time."""
        before = replace(self.progress)
        try:
            super().update(loss)
        except RankFailedError:
            self.progress = before  # the loss scale may have changed already
            raise
        self._pause.over(self.progress.step, self.comm.rank)
        self._checksums.after(self.progress.step)

    def survive(self, error: RankFailedError) -> None:
        """Go on without the ranks that died; the gradients of the step under way are lost.

        Every survivor must call this. The newest state of any of them becomes that of all; with
        shards it is put together from copies, see parallel.copies. If more ranks die meanwhile,
        those that are left begin again.

        Raises:
            RankFailedError: `error`, if the job does not outlive the death of a rank.
            StateLostError: parts of the optimizer's state are lost, as ranks died that had each
                other's copies and share no memory; raised on all.
        """
        if not self.comm.can_shrink:
            raise error
        self._pause.begin()
        start, deaths = time.perf_counter(), [error]
        while not self._gone_on(deaths):
            pass
        if self.comm.rank == 0:
            text = "%s; %d ranks go on from step %d, ready in %.2f s"
            told = "; meanwhile ".join(map(str, deaths))
            seconds = time.perf_counter() - start
            _logger.warning(text, told, self.comm.size, self.progress.step, seconds)

    def _gone_on(self, deaths: list[RankFailedError]) -> bool:
        """Go on without the ranks that died; if others do meanwhile, add that and return False."""
        clear_frames(deaths[-1].__traceback__)  # they hold what the ranks did together until then
        try:
            self.comm = self.comm.shrink()
            self.meter.comm, self._pending = self.comm, 0
            now = self.progress
            self.progress = Progress(**self._way.recover(self.comm, now.far, asdict(now)))
            if self._together:
                convert(self.module, self.comm)
            self._connect(self._copies)
        except StateLostError:
            raise
        except RankFailedError as another:
            deaths.append(another)
            return False
        return True

    def _connect(self, copies: Copies | None) -> None:
        """Make what a communicator's ranks do together; go on with copies of what others did."""
        self._way = make_update(self.optimizer, self.module, self.comm, **self._how, copies=copies)
        self._checksums = Checksums(self.module, self.comm, self._checksums_every)

    def _backward(self, inputs: Any, targets: Any, group: int) -> BatchLoss:
        weight, samples = self._share_weight(inputs, targets), batches.count_samples(inputs)
        everyone = self.comm.all_gather(np.array([weight, samples], np.float64))
        total = sum(everyone[:, 0].tolist())
        if total == 0:
            raise ArgumentError(
                f"the batch weighs nothing on any of the {self.comm.size} ranks "
                f"(this is rank {self.comm.rank}): give at least one of them samples"
            )
        if self._pending == 0:
            self._unit, self._total, self._seen = group * total, 0.0, 0
        self._total += total
        place = self._seen + int(everyone[: self.comm.rank, 1].sum()), samples
        self._seen += int(everyone[:, 1].sum())
        if self._together and self._no_samples is None:
            self._no_samples = empty_inputs(inputs, self.comm)
        value = 0.0
        last = self._pending + 1 == group
        self._way.expect(last)
        if weight:
            x, t = batches.moved((inputs, targets), self.device)
            with self._forward_context(), self._randomness(self.progress.step, *place):
                loss = scalar(self.loss_fn(self.module(x), t), self.comm.rank)
            (loss * (weight / self._unit * self._scale)).backward()
            value = loss.item() * weight
        elif self._together:
            run_for_nothing(self.module, self._no_samples if inputs is None else inputs)
        if last:
            self._way.backward_done()
        return BatchLoss(self._sum(value), total, samples)

    def _apply_gradients(self) -> None:
        scale = self._unit / self._total / self._scale
        self._way.step(scale, self.clip_norm, self._accepts)

    def _evaluate_batch(self, inputs: Any, targets: Any, metrics: Metrics) -> np.ndarray:
        if inputs is None:
            return no_sums(metrics)
        weight = self._weight_of(targets)
        x, t = batches.moved((inputs, targets), self.device)
        return batch_sums(self.module(x), t, self.loss_fn, weight, metrics, self.comm.rank)

    def _memory(self) -> dict[str, int]:
        copies = self._copies
        return super()._memory() | ({} if copies is None else {"copy_bytes": copies.nbytes})

    @property
    def _copies(self) -> Copies | None:
        return self._way.copies if isinstance(self._way, ShardedUpdate) else None

    def _part(self) -> dict[str, Any] | None:
        state = self._way.state()
        if self.comm.rank != 0:
            return None
        return {"model": self.module.state_dict(), "optimizer": state}

    def _restore(self, saved: dict[str, Any]) -> None:
        self._way.restore(saved)

    def _expected(self) -> dict[str, tuple[str, list[int]]]:
        return describe(self.module)

    def _share_buffers(self) -> None:
        copy_from_rank_0(self.module, self.comm, buffers_only=True)

    def _share_weight(self, inputs: Any, targets: Any) -> float:
        if (inputs is None) != (targets is None):
            raise ArgumentError(
                f"rank {self.comm.rank} got only one of inputs and targets: pass both or neither"
            )
        return 0.0 if inputs is None else self._weight_of(targets)

    def _weight_of(self, targets: Any) -> float:
        return number(self._weight(targets), "weight(targets)", self.comm.rank)

    def _sum(self, value: float) -> float:
        return float(self.comm.all_reduce(np.array([value], np.float64))[0])
