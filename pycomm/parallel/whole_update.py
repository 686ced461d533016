"""The update without shards: every rank reduces all gradients and updates all parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pycomm.parallel.bucket import GradientBuckets
from pycomm.parallel.gradient_norm import clip_gradients
from pycomm.parallel.optimizer_state import optimizer_state, restore_optimizer

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class WholeUpdate:
    """all_reduce in buckets, then the optimizer's own step; for any optimizer.

    Args:
        optimizer: of the module's parameters; None if it has none.
        module: on every rank the same.
        comm: the ranks.
        bucket_bytes, algorithm: of the reduction, see GradientBuckets.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None,
        module: nn.Module,
        comm: Communicator,
        *,
        bucket_bytes: int,
        algorithm: str | None,
    ):
        self._optimizer, self._module = optimizer, module
        self._buckets = GradientBuckets(
            module.named_parameters(),
            comm,
            bucket_bytes=bucket_bytes,
            op="sum",
            algorithm=algorithm,
        )

    def expect(self, last: bool) -> None:
        """Say whether the next backward pass is the last before `step`."""

    def step(self, scale: float, clip_norm: float | None) -> float | None:
        """Update with the sum of all ranks' gradients times `scale`; return the norm if it clips.

        Afterwards `p.grad` is what it was updated with. Every rank must call this.
        """
        self._buckets.reduce(scale)
        norm = None
        if clip_norm is not None:
            slots = self._buckets.slots
            gradients = [s.parameter.grad for s in slots if s.parameter.grad is not None]
            norm = clip_gradients(gradients, clip_norm)
        if self._optimizer is not None:
            self._optimizer.step()
        return norm

    def state(self) -> dict[str, Any]:
        """Return the optimizer's state by full names, see `optimizer_state`."""
        return optimizer_state(self._optimizer, self._module)

    def restore(self, saved: dict[str, Any]) -> None:
        """Take what `state` returned on any number of ranks."""
        restore_optimizer(self._optimizer, self._module, saved)
