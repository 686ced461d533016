"""DataParallelTrainer: every rank has the whole model and its own share of each batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from pycomm.errors import ArgumentError
from pycomm.parallel.checksums import Checksums
from pycomm.parallel.replicate import check_equal, check_same_model, copy_from_rank_0
from pycomm.parallel.sharded_update import make_update
from pycomm.trainers import batches
from pycomm.trainers.base import LossFunction, OptimizerFactory, Trainer, Weight
from pycomm.trainers.evaluation import Metrics, batch_sums, no_sums
from pycomm.trainers.named_state import describe
from pycomm.trainers.progress import BatchLoss

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

BUCKET_BYTES = 25 << 20


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
        shard: whether the ranks divide the optimizer's state, see ShardedUpdate: then `p.grad` is
            this rank's own part of the gradient. None: where reduce, update and publish are one
            pass, that is with SGD, Adam or AdamW on CPU ranks that share memory; False: never.
        share: whether the ranks, all of one host, also share one copy of the parameters: what one
            writes all see. It is rank 0's, who must keep the module as long as others use it.

    Raises:
        MismatchError: the ranks' models or arguments differ; raised on all.
        ArgumentError: a value is out of range.
        UnsupportedError: a parameter is not in CPU memory.
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
        shard: bool | None = None,
        share: bool = False,
    ):
        check_equal(comm, "shard and share", (shard, share))
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
        )
        self._way = make_update(
            self.optimizer,
            module,
            comm,
            shard=shard,
            share=share,
            bucket_bytes=BUCKET_BYTES,
            algorithm=algorithm,
        )
        self._checksums = Checksums(module, comm, checksums)
        self._unit = 0.0  # k · W(1)
        self._total = 0.0  # W(1) + … + W(j)

    def fetch(self, dataset: Any, indices: np.ndarray) -> tuple[Any, Any]:
        """Return this rank's share of a global batch: its contiguous slice of `indices`."""
        return batches.fetch(dataset, batches.share(indices, self.comm.rank, self.comm.size))

    def update(self, loss: float) -> None:
        """Update the parameters as any trainer does; then compare them, if it is time."""
        super().update(loss)
        self._checksums.after(self.progress.step)

    def _backward(self, inputs: Any, targets: Any, group: int) -> BatchLoss:
        weight = self._share_weight(inputs, targets)
        total = self._sum(weight)
        if total == 0:
            raise ArgumentError(
                f"the batch weighs nothing on any of the {self.comm.size} ranks "
                f"(this is rank {self.comm.rank}): give at least one of them samples"
            )
        if self._pending == 0:
            self._unit, self._total = group * total, 0.0
        self._total += total
        value = 0.0
        self._way.expect(self._pending + 1 == group)
        if weight:
            loss = self.loss_fn(self.module(inputs), targets)
            (loss * (weight / self._unit)).backward()
            value = loss.item() * weight
        samples = batches.count_samples(inputs)
        return BatchLoss(self._sum(value), total, samples)

    def _apply_gradients(self) -> None:
        self._way.step(self._unit / self._total, self.clip_norm)

    def _evaluate_batch(self, inputs: Any, targets: Any, metrics: Metrics) -> np.ndarray:
        if inputs is None:
            return no_sums(metrics)
        weight = float(self._weight(targets))
        return batch_sums(self.module(inputs), targets, self.loss_fn, weight, metrics)

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
        weight = 0.0 if inputs is None else float(self._weight(targets))
        if not 0 <= weight < math.inf:
            raise ArgumentError(
                f"weight(targets) is {weight} on rank {self.comm.rank}: must be ≥ 0"
            )
        return weight

    def _sum(self, value: float) -> float:
        return float(self.comm.all_reduce(np.array([value], np.float64))[0])
