"""The update without shards: every rank reduces all gradients and updates all parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from pycomm.parallel.gradient_norm import clip_gradients, squares_of
from pycomm.parallel.optimizer_state import optimizer_state, restore_optimizer
from pycomm.parallel.reducer import Reducer
from pycomm.parallel.replicate import tensors
from pycomm.parallel.sparse import sparse_parameters
from pycomm.parallel.whole_gradient import WholeGradient

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

Said = TypeVar("Said")


class WholeUpdate:
    """all_reduce in buckets during backward, then the optimizer's own step; for any optimizer.

    Args:
        optimizer: of the module's parameters; None if it has none.
        module: on every rank the same.
        comm: the ranks.
        whole: the gradient that this is a part of.
        how: bucket_bytes, algorithm, compression and check_finite of the Reducer.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None,
        module: nn.Module,
        comm: Communicator,
        whole: WholeGradient,
        **how: Any,
    ):
        self._optimizer, self._module, self._whole = optimizer, module, whole
        sparse = sparse_parameters(module)
        self.reducer = Reducer(
            module.named_parameters(), comm, sparse=sparse, op="sum", whole=whole, **how
        )

    def expect(self, last: bool) -> None:
        """Say whether the next backward pass is the last before `step`."""
        self.reducer.expect(last)

    def backward_done(self) -> None:
        """Start to reduce what the last backward pass did not, or all if there was none."""
        self.reducer.start_all()

    def step(
        self, scale: float, clip_norm: float | None, accepts: Callable[[float], bool] | None = None
    ) -> float | None:
        """Update with the sum of all ranks' gradients times `scale`; see Update.step.

        Afterwards `p.grad` is what it was updated with.
        """
        self.reducer.finish(scale)
        norm = None
        if clip_norm is not None or accepts is not None:
            norm = self._clip(clip_norm)
            if accepts is not None and not accepts(norm):
                return norm
        if self._optimizer is not None:
            self._optimizer.step()
        return norm

    def _clip(self, clip_norm: float | None) -> float:
        there = [p for p in self._module.parameters() if p.grad is not None]
        squares = [
            squares_of(p.grad) for p in there if p.grad is not None and self._whole.counts(p)
        ]
        norm = self._whole.norm_of_replicas(squares)
        clip_gradients([p.grad for p in there if p.grad is not None], norm, clip_norm)
        return norm

    def state(self) -> dict[str, Any]:
        """Return the optimizer's state by full names, see `optimizer_state`."""
        return optimizer_state(self._optimizer, self._module)

    def restore(self, saved: dict[str, Any]) -> None:
        """Take what `state` returned on any number of ranks."""
        restore_optimizer(self._optimizer, self._module, saved)

    def recover(self, comm: Communicator, far: tuple[int, ...], said: Said) -> Said:
        """Take over the model and the optimizer of the farthest survivor; see Update.recover."""
        rows = comm.all_gather_object((far, said))
        root = max(range(comm.size), key=lambda rank: rows[rank][0])
        if len({far[0] for far, _ in rows}) > 1:
            mine = [tensor for _, tensor in tensors(self._module)]
            its = [comm.broadcast(tensor.clone(), root) for tensor in mine]
            state = comm.broadcast_object(self.state() if comm.rank == root else None, root)
            for tensor, other in zip(mine, its):
                tensor.copy_(other)
            self.restore(state)
        return rows[root][1]
