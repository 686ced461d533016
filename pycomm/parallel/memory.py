"""Memory: what training a part of a model needs on a rank, and whether it may have that."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from pycomm.errors import ArgumentError
from pycomm.parallel.partition import partition
from pycomm.parallel.replicate import gather_from_every_rank

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

Optimizer = Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
Named = Iterable[tuple[str, nn.Parameter]]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?|)B?\s*")


def parse_bytes(size: int | str) -> int:
    """Return a number of bytes, given as such or like "512 MiB", "1.5GB".

    Raises:
        ArgumentError: it is neither, or not positive.
    """
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is not None:
        size = int(float(found[1]) * {**_UNITS, **_BINARY}[found[2]])
    if isinstance(size, str) or size <= 0:
        raise ArgumentError(f"{size!r} is no number of bytes: use an int > 0, or like '1.5 GiB'")
    return size


@dataclass(frozen=True)
class Need:
    """The bytes that training needs on a rank, beside the program itself."""

    parameters: int
    gradients: int
    state: int
    activations: int

    @property
    def total(self) -> int:
        """All together."""
        return self.parameters + self.gradients + self.state + self.activations

    def __str__(self) -> str:
        return (
            f"{_mib(self.total)} (parameters {_mib(self.parameters)}, gradients "
            f"{_mib(self.gradients)}, optimizer state {_mib(self.state)}, activations "
            f"{_mib(self.activations)})"
        )


def need_of(
    module: nn.Module, optimizer: Optimizer, activation_bytes: int = 0, state_ranks: int = 1
) -> Need:
    """Return what training a module needs.

    Args:
        module: on any device, also "meta".
        optimizer: the factory; it is called once on tiny parameters.
        activation_bytes: of all microbatches that are under way at once.
        state_ranks: how many ranks divide the optimizer's state.
    """
    named = list(module.named_parameters())
    trained = [(name, p) for name, p in named if p.requires_grad]
    return Need(
        sum(p.nbytes for _, p in named) + sum(b.nbytes for b in module.buffers()),
        sum(p.nbytes for _, p in trained),
        -(-sum(state_bytes(optimizer, named).values()) // state_ranks),
        activation_bytes,
    )


def state_bytes(optimizer: Optimizer, named: Named) -> dict[str, int]:
    """Return the bytes of state that an optimizer will have for each trained parameter.

    It takes a step with tiny parameters of the same names and dtypes; state as large as the
    parameter grows with it, what is of another size is counted as it is.

    Raises:
        ArgumentError: the optimizer cannot take a step with them.
    """
    real = {name: p for name, p in named if p.requires_grad}
    if not real:
        return {}
    tiny = {name: _tiny(p) for name, p in real.items()}
    try:
        made = optimizer(list(tiny.items()))
        made.step(lambda: 0.0)
    except Exception as error:
        raise ArgumentError(
            f"the optimizer's state cannot be measured on tiny parameters: {error}; leave out "
            f"memory_limit= and balance='memory'"
        ) from error
    return {name: _grown(made.state.get(tiny[name], {}), tiny[name], p) for name, p in real.items()}


def check_memory(
    comm: Communicator,
    limit: int | str,
    need: Callable[[], Need],
    ranks_that_do: Callable[[int], int | None] = lambda limit: None,
) -> None:
    """Return if every rank's need is within the limit; every rank must call this.

    Args:
        comm: the ranks.
        limit: bytes, see `parse_bytes`.
        need: returns that of this rank.
        ranks_that_do: limit → how many ranks of model parallelism would do, or None.

    Raises:
        ArgumentError: on every rank; names the need of every rank above the limit.
    """
    limit = parse_bytes(limit)
    needs = gather_from_every_rank(comm, need, "measuring the optimizer's state")
    above = [f"rank {rank} needs {n}" for rank, n in enumerate(needs) if n.total > limit]
    if not above:
        return
    ranks = ranks_that_do(limit)
    enough = (
        f"split over {ranks} ranks by ModelParallelTrainer it fits"
        if ranks is not None
        else "no number of ranks is enough: split layers, or give each rank more"
    )
    raise ArgumentError(
        f"memory_limit={_mib(limit)} is not enough on {len(above)} of {comm.size} ranks: "
        f"{'; '.join(above)} (this is rank {comm.rank}): {enough}"
    )


def ranks_within(costs: Sequence[float], limit: int) -> int | None:
    """Return the least number of parts that each cost at most `limit`, or None.

    Args:
        costs: bytes of each layer.
        limit: bytes of each part.
    """
    for parts in range(1, len(costs) + 1):
        ranges = partition(costs, parts)
        if max(sum(costs[r.start : r.stop]) for r in ranges) <= limit:
            return parts
    return None


def _tiny(parameter: nn.Parameter) -> nn.Parameter:
    tiny = nn.Parameter(torch.zeros([min(n, 2) for n in parameter.shape], dtype=parameter.dtype))
    tiny.grad = torch.zeros_like(tiny)
    return tiny


def _grown(state: dict[str, object], tiny: nn.Parameter, real: nn.Parameter) -> int:
    tensors = [t for t in state.values() if isinstance(t, torch.Tensor)]
    return sum(t.itemsize * real.numel() if t.shape == tiny.shape else t.nbytes for t in tensors)


def _mib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"
