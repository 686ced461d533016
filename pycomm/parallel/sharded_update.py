"""ShardedUpdate: the step of an optimizer whose state, and perhaps parameters, ranks divide."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import nn

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.parallel.compression import Factory
from pycomm.parallel.copies import Copies
from pycomm.parallel.finite import is_finite
from pycomm.parallel.flat_parameters import FlatParameters
from pycomm.parallel.fused_update import FusedUpdate
from pycomm.parallel.rules import is_elementwise, rule_of
from pycomm.parallel.scattered_update import ScatteredUpdate
from pycomm.parallel.sharded_state import ShardedState
from pycomm.parallel.sparse import sparse_parameters
from pycomm.parallel.whole_gradient import WholeGradient
from pycomm.parallel.whole_update import WholeUpdate

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

_logger = logging.getLogger(__name__)

Said = TypeVar("Said")


class Update(Protocol):
    """How the gradients of all ranks become new parameters on all ranks."""

    def expect(self, last: bool) -> None:
        """Say whether the next backward pass is the last before `step`, which may begin in it."""

    def backward_done(self) -> None:
        """Say that the last backward pass is over, or that there was none; on every rank."""

    def step(
        self, scale: float, clip_norm: float | None, accepts: Callable[[float], bool] | None
    ) -> float | None:
        """Update with the sum of all ranks' gradients times `scale`; every rank must call this.

        Args:
            scale: what sums are multiplied by.
            clip_norm: the largest norm of that; None does not clip.
            accepts: decides by the norm, the same on all ranks, whether there is an update.

        Returns:
            The norm before clipping, if `clip_norm` or `accepts` needs it.

        Raises:
            NonFiniteError: with `check_finite`, a gradient of some rank is not; raised on all.
            UnsupportedError: a parameter was moved or converted, or its gradient is sparse.
        """

    def state(self) -> dict[str, Any] | None:
        """Return the optimizer's state by full names on rank 0, perhaps elsewhere; collective."""

    def restore(self, saved: dict[str, Any]) -> None:
        """Take what `state` returned on any number of ranks; every rank must call this."""

    def recover(self, comm: Communicator, far: tuple[int, ...], said: Said) -> Said:
        """Give all survivors what the farthest of them has, after ranks died; each must call this.

        Until it has returned nothing has changed: if others die meanwhile, it is called again.

        Args:
            comm: the survivors, in their order.
            far: how far this one has come: updates first, then whatever tells equal ones apart.
            said: what goes with that; small.

        Returns:
            What the farthest said.

        Raises:
            RankFailedError: another rank died.
            StateLostError: what a dead rank owned is lost, see Copies; raised on all.
        """


class ShardedUpdate:
    """An optimizer whose state is divided among the ranks (ZeRO-1, arXiv:1910.02054).

    Each rank owns a part of every parameter and keeps the optimizer's state for that part alone.
    SGD, Adam and AdamW on CPU ranks that share memory reduce, update and publish in one pass,
    see FusedUpdate; other elementwise optimizers go by collectives, see ScatteredUpdate. If the
    job goes on when a rank dies, the others have copies of what it owned, see Copies.

    The optimizer stays the same object, but its groups hold this rank's parts of the parameters.
    `p.grad` stays this rank's own gradient. The parameters' data lie in symmetric buffers.

    Args:
        optimizer: an elementwise one of the parameters.
        parameters: (name, parameter) pairs, those that are trained.
        comm: the ranks.
        share: whether all ranks, of one host, share one copy of the parameters; what one writes
            to them all see. It is rank 0's, who must keep them as long as others use them.
        check_finite: look at every gradient of every rank.
        whole: the gradient that this is a part of; None: all of it.
        copies: of what this was before ranks died; None makes new ones.

    Attributes:
        copies: what survives a rank; None if the job does not, or there is only one.

    Raises:
        UnsupportedError: `share` on ranks that share no memory.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: list[tuple[str, nn.Parameter]],
        comm: Communicator,
        *,
        share: bool = False,
        check_finite: bool = False,
        whole: WholeGradient | None = None,
        copies: Copies | None = None,
    ):
        rule = rule_of(optimizer) if can_fuse(optimizer, parameters, comm) else None
        self._comm, self._check_finite = comm, check_finite
        self._named, self._whole = parameters, whole or WholeGradient(comm)
        self.parameters = FlatParameters(parameters, comm, share=share)
        self._state = ShardedState(optimizer, self.parameters)
        self.fused = rule is not None
        self._way: FusedUpdate | ScatteredUpdate
        if rule is not None:
            groups = self._state.groups
            self._way = FusedUpdate(optimizer, rule, self.parameters, groups, comm, self._whole)
        else:
            self._way = ScatteredUpdate(optimizer, self.parameters, comm, self._whole)
        self.copies = self._continued(copies)

    def expect(self, last: bool) -> None:
        """Say whether gradients are final once the next backward pass has added to them."""
        if isinstance(self._way, FusedUpdate):
            self._way.expect(last)

    def backward_done(self) -> None:
        """Nothing was begun that has to go on."""

    def step(
        self,
        scale: float = 1.0,
        clip_norm: float | None = None,
        accepts: Callable[[float], bool] | None = None,
    ) -> float | None:
        """Update with the sum of all ranks' gradients times `scale`; see Update.step."""
        if self._check_finite:
            self._raise_not_finite()
        norm = self._way.step(scale, clip_norm, accepts)
        if self.copies is not None:
            self.copies.take()
        return norm

    def state(self) -> dict[str, Any] | None:
        """Return the whole state by full names on rank 0, None elsewhere; collective."""
        return self._state.gather(self._comm)

    def restore(self, saved: dict[str, Any]) -> None:
        """Take this rank's part of what `state` returned, on any number of ranks; collective."""
        self._state.restore(saved)
        if self.copies is not None:
            self.copies.take()

    def recover(self, comm: Communicator, far: tuple[int, ...], said: Said) -> Said:
        """Give parameters and optimizer what they were after the newest step; see Update.recover.

        Then the optimizer is that of whole parameters, as it was before this object was made, and
        this object can but recover once more.

        Raises:
            UnsupportedError: the ranks that this object was made for cannot do without any.
        """
        if self.copies is None:
            raise UnsupportedError(
                f"rank {self._comm.rank}: there are no copies of what other ranks own, as the job "
                "ends when a rank dies: start it with Open MPI 5 and mpirun --with-ft ulfm"
            )
        whole, farthest = self.copies.recover(comm, far, said)
        for name, p in self._named:
            p.data = whole.parameters[name]
        self._state.put_back(whole.state)
        return farthest

    def _continued(self, copies: Copies | None) -> Copies | None:
        if not self._comm.can_shrink:
            return None
        if copies is None:
            return Copies(self._state, self._comm)
        copies.move(self._state, self._comm)
        return copies

    def _raise_not_finite(self) -> None:
        found = [n for n, p in self._named if p.grad is not None and not is_finite(p.grad)]
        self._whole.raise_not_finite(found)


def can_fuse(
    optimizer: torch.optim.Optimizer | None,
    parameters: list[tuple[str, nn.Parameter]],
    comm: Communicator,
) -> bool:
    """Say whether reduce, update and publish can be one pass."""
    together = comm.size == 1 or comm.shares_memory
    floats = all(p.dtype.is_floating_point and p.dtype.itemsize > 1 for _, p in parameters)
    host = all(p.device.type == "cpu" for _, p in parameters)
    fits = optimizer is not None and rule_of(optimizer) is not None
    return together and floats and host and fits


def make_update(
    optimizer: torch.optim.Optimizer | None,
    module: nn.Module,
    comm: Communicator,
    *,
    shard: bool | None,
    share: bool,
    check_finite: bool,
    algorithm: str | None,
    compression: str | Factory | None,
    bucket_bytes: int,
    whole: WholeGradient | None = None,
    copies: Copies | None = None,
) -> Update:
    """Return how a module's parameters are updated.

    Args:
        optimizer: of its parameters; None if it has none.
        shard: whether ranks divide the optimizer's state; None: where that takes one pass.
        share: whether ranks share one copy of the parameters.
        check_finite: look at every gradient of every rank.
        algorithm, compression, bucket_bytes: of the reduction without shards.
        whole: the gradient that this is a part of; None: all of it.
        copies: see ShardedUpdate.

    Raises:
        ArgumentError: `share` with `shard=False`, or `compression` or `algorithm` with shards.
        UnsupportedError: `share` on ranks that share no memory, or with an optimizer that cannot
            be given parts of parameters.
    """
    _check_shards(comm.rank, shard, share, algorithm, compression)
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    divisible = optimizer is not None and _is_divisible(optimizer, trained)
    if share and not divisible:
        raise UnsupportedError(
            f"rank {comm.rank}: share=True needs an optimizer that updates each element on its "
            f"own, {type(optimizer).__name__} may not: pass share=False"
        )
    if shard and not divisible and comm.rank == 0:
        kind = type(optimizer).__name__
        _logger.warning("%s is not sharded: every rank updates everything", kind)
    plain = shard is None and algorithm is None and compression is None
    dense = not sparse_parameters(module)
    unasked = plain and dense and can_fuse(optimizer, trained, comm)
    if optimizer is not None and divisible and (share or shard or unasked):
        return ShardedUpdate(
            optimizer,
            trained,
            comm,
            share=share,
            check_finite=check_finite,
            whole=whole,
            copies=copies,
        )
    return WholeUpdate(
        optimizer,
        module,
        comm,
        whole or WholeGradient(comm),
        check_finite=check_finite,
        algorithm=algorithm,
        compression=compression,
        bucket_bytes=bucket_bytes,
    )


def _check_shards(
    rank: int,
    shard: bool | None,
    share: bool,
    algorithm: str | None,
    compression: str | Factory | None,
) -> None:
    if share and shard is False:
        raise ArgumentError(f"rank {rank}: share=True needs shards: leave out shard=False")
    for name, value in {"compression": compression, "algorithm": algorithm}.items():
        if value is not None and (share or shard):
            raise ArgumentError(
                f"rank {rank}: {name}={value!r} is for whole gradients: leave out shard and share"
            )


def _is_divisible(
    optimizer: torch.optim.Optimizer, trained: list[tuple[str, nn.Parameter]]
) -> bool:
    known = {id(p) for _, p in trained}
    members = [p for group in optimizer.param_groups for p in group["params"]]
    return (
        is_elementwise(optimizer)
        and bool(trained)
        and all(id(p) in known or not p.requires_grad for p in members)
    )
