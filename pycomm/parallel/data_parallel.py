"""DataParallel: a module whose gradients are averaged over the ranks when backward ends."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pycomm.parallel.bucket import GradientBuckets
from pycomm.parallel.checksums import Checksums
from pycomm.parallel.compression import Factory
from pycomm.parallel.replicate import check_same_model, copy_from_rank_0

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class DataParallel(nn.Module):
    """Wrap `module` for a training loop of one's own.

    ::

        model = pycomm.DataParallel(module, comm)
        loss_fn(model(inputs), targets).backward()    # gradients are averages when it returns
        optimizer.step()

    Parameters and buffers are copied from rank 0 once, here. Every backward pass ends by averaging
    the gradients: each rank counts the same, so equal shares of a batch give the gradient of the
    whole batch (`DataParallelTrainer` weighs unequal ones). All ranks must run backward equally
    often. A parameter that no rank used keeps `grad` None; one that only others used gets their
    average with zeros. Gradients are views of buckets that belong to this wrapper.

    Args:
        module: the same model on every rank; it is used, not copied.
        comm: the ranks.
        bucket_bytes: gradients are reduced in buckets of at most this size.
        algorithm: of all_reduce; None lets pycomm choose.
        checksums: every so many backward passes, first compare the parameters of all ranks
            (`backward` raises DivergedError if they differ); 0 does not, None is
            PYCOMM_CHECKSUMS, or 0.
        compression: "bf16", "fp16", "int8", "fp8", "topk" or "powersgd": fewer bytes on the wire,
            see docs/data_parallel.md; None sends gradients as they are.

    Raises:
        MismatchError: the ranks' models differ; names the first difference, on every rank.
        ArgumentError: bucket_bytes is not positive, or compression is not one of these.
        UnsupportedError: a parameter is not in CPU memory.
    """

    def __init__(
        self,
        module: nn.Module,
        comm: Communicator,
        bucket_bytes: int = 25 << 20,
        algorithm: str | None = None,
        checksums: int | None = None,
        *,
        compression: str | Factory | None = None,
    ):
        super().__init__()
        check_same_model(module, comm)
        self.module = module
        self._buckets = GradientBuckets(
            module.named_parameters(),
            comm,
            bucket_bytes=bucket_bytes,
            op="avg",
            algorithm=algorithm,
            compression=compression,
        )
        copy_from_rank_0(module, comm)
        self._checksums = Checksums(module, comm, checksums)
        self._steps = 0
        self._synchronize = True
        self._backward = -1
        self._hook()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the wrapped module returns."""
        return self.module(*args, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Only add up gradients on this rank; the next backward outside averages the sums."""
        before, self._synchronize = self._synchronize, False
        try:
            yield
        finally:
            self._synchronize = before

    def _hook(self) -> None:
        weak = weakref.ref(self)

        def gradient_ready(_: torch.Tensor) -> None:
            if (model := weak()) is not None:
                model._reduce_when_done()

        for slot in self._buckets.slots:
            handle = slot.parameter.register_post_accumulate_grad_hook(gradient_ready)
            weakref.finalize(self, handle.remove)

    def _reduce_when_done(self) -> None:
        # A backward pass has a number of its own: one that raised cannot silence the next.
        current = torch._C._current_graph_task_id()
        if self._synchronize and current != self._backward:
            self._backward = current
            engine = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._finish_backward)

    def _finish_backward(self) -> None:
        self._checksums.after(self._steps)  # before the optimizer makes another one
        self._steps += 1
        self._buckets.reduce()
