"""Where a rank trains: on the CPU, or on the GPU that it is dealt; the model moved there."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pycomm.devices.base import DeviceError
from pycomm.devices.process import known_device, process_device
from pycomm.errors import ArgumentError, CommError, MissingError, UnsupportedError
from pycomm.kernels.cuda_launcher import import_cupy
from pycomm.parallel.replicate import check_equal, on_every_rank, tensors

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

CPU = torch.device("cpu")
_INSTALL = (
    "install a build of torch for CUDA (https://pytorch.org/get-started), or train on the cpu"
)
_logger = logging.getLogger(__name__)


def place(module: nn.Module, comm: Communicator, device: str | torch.device | None) -> torch.device:
    """Return the device that this rank trains on; every rank must call this.

    GPUs are dealt out by `comm.local`: node-mate k takes GPU k modulo their number, makes it
    current, and keeps it; but one that the process uses already stays its own. Several ranks may
    have the same one; that is said once, in a warning of rank 0.

    Args:
        module: where it is decides, if `device` is None.
        comm: the ranks.
        device: "cpu", "cuda", "cuda:" and a number for a GPU of one's own choice, or None.

    Raises:
        ArgumentError: it is none of these, or another GPU than the one that the rank uses.
        MismatchError: some ranks would train on GPUs and others on the CPU; raised on all.
        MissingError: a rank has no GPU; names it, and says what to do. Raised on all.
        DeviceError: a rank's GPU cannot be used. Raised on all.
    """
    wanted = on_every_rank(comm, lambda: _parsed(device, module))
    check_equal(comm, "the devices to train on", wanted.type)
    return wanted if wanted.type == "cpu" else _rank_gpu(comm, wanted.index)


def move(module: nn.Module, comm: Communicator, device: torch.device) -> None:
    """Move parameters and buffers to `device`; every rank must call this.

    Raises:
        CommError: there is no memory for them on some rank; raised on all.
    """

    def to_device() -> None:
        try:
            if any(tensor.device != device for _, tensor in tensors(module)):
                module.to(device)
        except torch.OutOfMemoryError as error:
            needed = sum(t.nbytes for _, t in tensors(module))
            raise CommError(
                f"no room for the {needed} bytes of a model on {device}: {error}"
            ) from None

    on_every_rank(comm, to_device)


def default_device(comm: Communicator) -> str:
    """Return "cuda" if every rank has a GPU that pycomm can use, else "cpu".

    Every rank must call this. If a GPU stays idle, a warning of rank 0 says why.
    """
    missing = comm.all_gather_object(_why_no_gpu())
    reasons = [f"rank {rank}: {why}" for rank, why in enumerate(missing) if why]
    some = comm.all_gather_object(torch.cuda.is_available())
    if any(some) and reasons and comm.rank == 0:
        _say(f"training on the CPU, although there is a GPU: {reasons[0]}")
    return "cpu" if reasons else "cuda"


def common_device(named: Iterable[tuple[str, torch.Tensor]], comm: Communicator) -> torch.device:
    """Return the device that all of some parameters are on: the CPU, or this rank's GPU.

    Raises:
        ArgumentError: one is elsewhere than the others, or on another GPU than the rank's.
        UnsupportedError: one is neither on the CPU nor on a GPU.
    """
    first: torch.device | None = None
    for name, tensor in named:
        what = f"parameter {name!r} is on {tensor.device} (rank {comm.rank})"
        if tensor.device.type not in ("cpu", "cuda"):
            raise UnsupportedError(f"{what}: move the model with .cpu()")
        if first is None and tensor.device.type == "cuda":
            _adopt(tensor.device)
            own = process_device().runtime.device
            if tensor.device.index != own:
                raise ArgumentError(
                    f"{what}, which uses cuda:{own}: move the model with .to('cuda:{own}')"
                )
        first = first or tensor.device
        if tensor.device != first:
            raise ArgumentError(
                f"{what}, but others are on {first}: move the model with .to({str(first)!r})"
            )
    return first or CPU


def _parsed(device: str | torch.device | None, module: nn.Module) -> torch.device:
    """Return what the user wants, with or without a number; CPU or GPU."""
    if device is None:
        device = next((t.device for _, t in tensors(module)), CPU)
    try:
        wanted = torch.device(device)
    except RuntimeError:
        wanted = torch.device("meta")
    if wanted.type not in ("cpu", "cuda"):
        raise ArgumentError(f"device={str(device)!r} is not 'cpu', 'cuda' or 'cuda:' and a number")
    return wanted


def _rank_gpu(comm: Communicator, number: int | None) -> torch.device:
    """Make the rank's GPU the current one, of the process and of pycomm; return it."""
    place = comm.local.rank
    mine = on_every_rank(comm, lambda: _take(place, number))
    _say_who_shares(comm)
    return mine


def _take(place: int, number: int | None) -> torch.device:
    known = known_device()
    if known is None:
        if why := _why_no_gpu():
            raise MissingError(why)
        mine = place % torch.cuda.device_count() if number is None else number
        if mine >= torch.cuda.device_count():
            raise ArgumentError(
                f"device='cuda:{mine}', but there are {torch.cuda.device_count()} GPUs"
            )
    else:
        mine = known.runtime.device
    if number not in (None, mine):
        raise ArgumentError(f"device='cuda:{number}', but this process uses cuda:{mine} already")
    try:
        torch.cuda.set_device(mine)
    except RuntimeError as error:
        raise DeviceError(f"cuda:{mine} cannot be used: {error}") from None
    process_device()
    return torch.device("cuda", mine)


def _adopt(device: torch.device) -> None:
    """Make a GPU pycomm's, if it has none in this process yet."""
    if known_device() is None:
        with torch.cuda.device(device):
            process_device()


def _why_no_gpu() -> str | None:
    """Return why this rank has no GPU for pycomm and what to do, or None if it has one."""
    if known_device() is not None:
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} cannot use CUDA: {_INSTALL}"
    if not torch.cuda.is_available():
        return "torch finds no GPU: see nvidia-smi and CUDA_VISIBLE_DEVICES, or train on the cpu"
    try:
        import_cupy()
    except MissingError as error:
        return str(error)
    return None


def _say_who_shares(comm: Communicator) -> None:
    gpus: list[Any] = comm.all_gather_object(process_device().runtime.identity)
    if len(set(gpus)) < len(gpus) and comm.rank == 0:
        _say(f"{len(gpus)} ranks have {len(set(gpus))} GPU(s): those of one GPU take turns on it")


@cache
def _say(text: str) -> None:
    """Warn, but only once in a process."""
    _logger.warning("rank 0: %s", text)
