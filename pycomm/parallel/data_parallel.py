"""DataParallel: a module whose gradients are averaged over the ranks when backward ends."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from pycomm.parallel.checksums import Checksums
from pycomm.parallel.compression import Factory
from pycomm.parallel.reducer import Reducer
from pycomm.parallel.replicate import check_same_model, copy_from_rank_0, tensors
from pycomm.parallel.sparse import sparse_parameters

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class DataParallel(nn.Module):
    """Wrap `module` for a training loop of one's own.

    ::

        model = pycomm.DataParallel(module, comm)
        loss_fn(model(inputs), targets).backward()    # gradients are averages when it returns
        optimizer.step()

    Parameters and buffers are copied from rank 0 once, here. Every backward pass averages the
    gradients, a bucket at a time while it still computes the others: each rank counts the same, so
    equal shares of a batch give the gradient of the whole batch (`DataParallelTrainer` weighs
    unequal ones). All ranks must run backward equally often (but see `uneven`), and not use `comm`
    in between. A parameter that no rank used keeps `grad` None; one that only others used gets
    their average with zeros. Gradients are views of buckets that belong to this wrapper; those of
    an nn.Embedding(sparse=True) stay sparse, and only its rows that were used travel.

    Args:
        module: the same model on every rank; it is used, not copied.
        comm: the ranks.
        bucket_bytes: gradients are reduced in buckets of at most this size.
        algorithm: of all_reduce; None lets pycomm choose.
        checksums: every so many backward passes, first compare the parameters of all ranks
            (`backward` raises DivergedError if they differ); 0 does not, None is
            PYCOMM_CHECKSUMS, or 0.
        check_finite: look at every gradient before it is averaged; `backward` raises
            NonFiniteError on all ranks, naming rank and parameter, if one is not finite.
        compression: "bf16", "fp16", "int8", "fp8", "topk" or "powersgd": fewer bytes on the wire,
            see docs/data_parallel.md; None sends gradients as they are.

    Raises:
        MismatchError: the ranks' models differ; names the first difference, on every rank.
        ArgumentError: bucket_bytes is not positive, compression does not exist, or a parameter is
            on another GPU than the rank's, or not where others are.
        UnsupportedError: a parameter is neither in CPU memory nor on a GPU.
    """

    def __init__(
        self,
        module: nn.Module,
        comm: Communicator,
        bucket_bytes: int = 25 << 20,
        algorithm: str | None = None,
        checksums: int | None = None,
        *,
        check_finite: bool = False,
        compression: str | Factory | None = None,
    ):
        super().__init__()
        check_same_model(module, comm)
        self.module = module
        self._reducer = Reducer(
            module.named_parameters(),
            comm,
            sparse=sparse_parameters(module),
            bucket_bytes=bucket_bytes,
            op="avg",
            algorithm=algorithm,
            at_end=_weakly(self, DataParallel._finish_backward),
            check_finite=check_finite,
            compression=compression,
        )
        self._reducer.synchronizing_now = True
        copy_from_rank_0(module, comm)
        self._checksums = Checksums(module, comm, checksums)
        self._comm, self._steps, self._uneven = comm, 0, False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the wrapped module returns."""
        return self.module(*args, **kwargs)

    def no_sync(self) -> AbstractContextManager[None]:
        """Only add up gradients on this rank; the next backward outside averages the sums."""
        return self._reducer.synchronizing(False)

    @contextmanager
    def uneven(self) -> Iterator[None]:
        """Let ranks run backward unequally often inside: around the loop over batches.

        A rank that has no batch left takes part in the averages of the others with zeros; at the
        end it takes over the parameters and buffers of a rank that went on to the end (but not the
        optimizer's state). Every rank must enter and leave it; weights are not compared inside.
        """
        before, self._uneven = self._steps, True
        try:
            yield
            mine = self._steps - before
            while self._follow():
                pass
        finally:
            self._uneven = False
        steps = self._comm.all_gather(np.array([mine])).reshape(-1).tolist()
        if len(set(steps)) > 1:
            for _, tensor in tensors(self.module):
                self._comm.broadcast(tensor, steps.index(max(steps)))

    def _follow(self) -> bool:
        """Average nothing with the others; say whether any of them still has something."""
        self.module.zero_grad(set_to_none=True)
        self._reducer.finish()
        self.module.zero_grad(set_to_none=True)
        return self._still_going(False)

    def _still_going(self, mine: bool) -> bool:
        return bool(self._comm.all_reduce(np.array([mine], np.uint8), op="max")[0])

    @property
    def unused(self) -> list[str]:
        """Names of the parameters that no rank used in the last averaged backward."""
        return self._reducer.unused

    @property
    def hidden(self) -> float:
        """How much of the bytes was averaged before the last gradient was there, 0…1."""
        return self._reducer.hidden

    def _finish_backward(self) -> None:
        self._reducer.start_all()
        if not self._uneven:
            self._checksums.after(self._steps)  # before the optimizer makes another one
        self._steps += 1
        self._reducer.finish()
        if self._uneven:
            self._still_going(True)


def _weakly(model: DataParallel, method: Callable[[DataParallel], None]) -> Callable[[], None]:
    """Return a call of `method` that does not keep the model alive."""
    weak = weakref.ref(model)

    def call() -> None:
        if (alive := weak()) is not None:
            method(alive)

    return call
