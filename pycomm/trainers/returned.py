"""What users' functions return to a trainer: optimizers, losses, weights, rates."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.parallel.replicate import check_all_equal, on_every_rank

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


def made_by(
    factory: Callable[[Any], Any], module: nn.Module, comm: Communicator
) -> torch.optim.Optimizer | None:
    """Return the optimizer of a module's parameters; None if it has none.

    Every rank must call this.

    Raises:
        ArgumentError: it is no optimizer, or of other parameters, or the factory raised
            ValueError, as torch's do for values out of range; raised on all.
        UnsupportedError: its `step` needs a closure; raised on all.
    """
    named = list(module.named_parameters())

    def make() -> torch.optim.Optimizer | None:
        try:
            made = factory(list(named)) if named else None
        except ValueError as error:
            raise ArgumentError(f"optimizer(…) refused its values: {error}") from error
        if named and not isinstance(made, torch.optim.Optimizer):
            raise ArgumentError(
                f"optimizer(…) returned {made!r}, which is no torch.optim.Optimizer"
            )
        if made is not None:
            _check_optimizer(made, {id(p) for _, p in named})
        return made

    return on_every_rank(comm, make, "making the optimizer")


def _check_optimizer(optimizer: torch.optim.Optimizer, known: set[int]) -> None:
    kind = type(optimizer).__name__
    foreign = sum(id(p) not in known for group in optimizer.param_groups for p in group["params"])
    if foreign:
        raise ArgumentError(
            f"{foreign} parameters of {kind} are not those of the module: make it of the "
            "parameters that the function is called with"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UnsupportedError(f"{kind} runs the model several times in a step: use another one")


def check_same_optimizer(
    optimizer: torch.optim.Optimizer | None, module: nn.Module, comm: Communicator
) -> None:
    """Return if kind, groups and settings are those of all ranks; every rank must call this.

    Raises:
        MismatchError: on every rank; says what differs, and whose.
    """
    groups = [] if optimizer is None else optimizer.param_groups
    names = {id(p): name for name, p in module.named_parameters()}
    members = [[names.get(id(p)) for p in group["params"]] for group in groups]
    same = {
        "kinds of optimizers": type(optimizer).__name__,
        "settings of optimizers": [_settings(group) for group in groups],
        "numbers of parameters in the optimizers' groups": list(map(len, members)),
        "orders of parameters in the optimizers' groups": members,
    }
    check_all_equal(comm, lambda: same)


def _settings(group: Mapping[str, Any]) -> dict[str, str]:
    hidden = ("params", "param_names")
    return {name: repr(value) for name, value in group.items() if name not in hidden}


def number(value: Any, what: str, rank: int) -> float:
    """Return what a user's function gave as a float ≥ 0 and finite.

    Raises:
        ArgumentError: it is none.
    """
    try:
        found = float(value)
    except (TypeError, ValueError, RuntimeError):
        found = math.nan
    if not 0 <= found < math.inf:
        raise ArgumentError(f"{what} is {value!r} on rank {rank}: must be a finite number ≥ 0")
    return found


def scalar(loss: Any, rank: int) -> torch.Tensor:
    """Return a loss that one can differentiate.

    Raises:
        ArgumentError: it is no tensor of one real number.
    """
    if not isinstance(loss, torch.Tensor):
        _refuse(f"{loss!r} ({type(loss).__name__})", rank)
    if loss.numel() != 1 or not loss.is_floating_point():
        _refuse(f"{loss.dtype} of shape {tuple(loss.shape)}", rank)
    if torch.is_grad_enabled() and not loss.requires_grad:
        _refuse("a tensor that does not depend on the parameters", rank)
    return loss


def _refuse(got: str, rank: int) -> None:
    raise ArgumentError(
        f"loss_fn returned {got} on rank {rank}: it must return the mean loss, a tensor of one "
        "real number that was computed from the output"
    )
