"""What users give a trainer, checked before anything is sent or changed."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from pycomm.communicator import Communicator
from pycomm.errors import ArgumentError
from pycomm.mesh import Mesh
from pycomm.parallel.replicate import check_all_equal, on_every_rank
from pycomm.parallel.stages import Cutting
from pycomm.trainers.batches import check_whole


def check_communicator(comm: Any) -> None:
    """Return if `comm` is a Communicator.

    Raises:
        ArgumentError: it is not; raised where it is not.
    """
    if not isinstance(comm, Communicator):
        raise ArgumentError(
            f"comm={comm!r} is no Communicator: pass pycomm.init(), or "
            "pycomm.Communicator.from_mpi(…) of an MPI communicator"
        )


def check_trainable(module: Any, comm: Communicator) -> None:
    """Return if `module` is a model with something to train; every rank must call this.

    Raises:
        ArgumentError: it is not; raised on all.
    """

    def check() -> None:
        if not isinstance(module, nn.Module):
            raise ArgumentError(f"module={module!r} is no torch.nn.Module: pass a model, built")
        parameters = list(module.parameters())
        if not any(p.requires_grad for p in parameters):
            raise ArgumentError(
                f"{type(module).__name__} has nothing to train: none of its {len(parameters)} "
                "parameters requires a gradient"
            )

    on_every_rank(comm, check)


def check_functions(comm: Communicator, optional: Mapping[str, Any], **needed: Any) -> None:
    """Return if all of these are functions, of the optional ones those that are not None.

    Every rank must call this.

    Raises:
        ArgumentError: one is not, or is a class of modules; raised on all.
    """

    def check() -> None:
        given = {name: value for name, value in optional.items() if value is not None}
        for name, value in {**needed, **given}.items():
            if isinstance(value, type) and issubclass(value, nn.Module):
                raise ArgumentError(f"{name}={value.__name__} is a class: pass {value.__name__}()")
            if not callable(value):
                raise ArgumentError(f"{name}={_short(value)} is no function{_HINTS.get(name, '')}")

    on_every_rank(comm, check)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 50 and "\n" not in text else f"{text.split()[0]}…"


_HINTS = {
    "optimizer": " that makes the optimizer: pass lambda named: "
    "torch.optim.SGD([p for _, p in named], lr=0.1)",
    "rates": ": pass step → factor, such as pycomm.trainers.rates.find_rates makes",
}


def check_kinds(comm: Communicator, kinds: Mapping[str, tuple[Any, ...]], **given: Any) -> None:
    """Return if the arguments are of the kinds they must be; every rank must call this.

    Args:
        comm: the ranks.
        kinds: for each, the types or values that it may have.
        given: the arguments.

    Raises:
        ArgumentError: one is not; raised on all.
    """

    def check() -> None:
        for name, value in given.items():
            allowed = kinds.get(name, (value,))
            if not any(value is kind or type(value) is kind for kind in allowed):
                words = " or ".join(k.__name__ if isinstance(k, type) else str(k) for k in allowed)
                raise ArgumentError(f"{name}={value!r} must be {words}")

    on_every_rank(comm, check)


def check_step(
    comm: Communicator, accumulate: Any, clip_norm: Any, precision: str, check_finite: bool
) -> None:
    """Return if these arguments of a trainer have values that they can have, and go together.

    Raises:
        ArgumentError: they do not; raised on all.
    """

    def check() -> None:
        check_whole(accumulate=accumulate)
        real = isinstance(clip_norm, (int, float)) and not isinstance(clip_norm, bool)
        if clip_norm is not None and not (real and clip_norm > 0):
            raise ArgumentError(f"clip_norm={clip_norm!r} must be positive, or None")
        if check_finite and precision == "fp16":
            raise ArgumentError("check_finite=True with precision='fp16', which leaves them out")

    on_every_rank(comm, check)


def check_dataset(dataset: Any) -> None:
    """Return if a dataset is map-style, and not empty.

    Raises:
        ArgumentError: it is not.
    """
    kind = type(dataset).__name__
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        inside = (
            "its .dataset, as batches are made here" if hasattr(dataset, "dataset") else "a list"
        )
        raise ArgumentError(
            f"a dataset must have a length and samples by number, {kind} has not: pass {inside}"
        )
    if len(dataset) == 0:
        raise ArgumentError(f"the dataset ({kind}) is empty")


def check_replica(module: Any, optimizer: Any, comm: Any, **given: Any) -> None:
    """Return if these are arguments for DataParallelTrainer; every rank must call this.

    Raises:
        ArgumentError: one cannot be used; raised on all, unless it is `comm`.
        MismatchError: the ranks' arguments differ; raised on all.
    """
    check_communicator(comm)
    check_trainable(module, comm)
    check_functions(comm, {}, optimizer=optimizer)
    check_kinds(comm, _KINDS, **given)
    check_all_equal(comm, lambda: given)
    on_every_rank(comm, lambda: check_whole(bucket_bytes=given["bucket_bytes"]))
    on_every_rank(comm, lambda: _check_batch_dims(module, given["batch_dims"] or {}))


def one_pipeline(comm: Any) -> Mesh:
    """Return a mesh of all ranks as one pipeline.

    Raises:
        ArgumentError: `comm` is no communicator; raised where it is not.
    """
    check_communicator(comm)
    return Mesh(comm, pp=comm.size)


def check_divided(comm: Communicator, how: Cutting, given: Mapping[str, Any]) -> None:
    """Return if these are arguments for ModelParallelTrainer; every rank must call this.

    Raises:
        ArgumentError: one cannot be used; raised on all.
        MismatchError: the ranks' arguments differ; raised on all.
    """

    def same() -> dict[str, Any]:
        balance, *others = how.told()
        return {"balance": balance, "cuts, leaves, inputs, sample or seed": others, **given}

    check_all_equal(comm, same)
    check_kinds(comm, _KINDS, **given)
    whole = {name: given[name] for name in ("microbatches", "bucket_bytes")}
    on_every_rank(comm, lambda: check_whole(**whole))


def _check_batch_dims(module: nn.Module, batch_dims: Mapping[Any, Any]) -> None:
    names = [name for name, _ in module.named_modules()]
    for pattern, dim in batch_dims.items():
        if not any(fnmatchcase(name, str(pattern)) for name in names):
            raise ArgumentError(f"batch_dims={batch_dims!r}: no module is called {pattern!r}")
        if dim is not None and type(dim) is not int:
            raise ArgumentError(f"batch_dims={batch_dims!r}: {dim!r} is no dimension, nor None")


_KINDS = {
    "bucket_bytes": (int,),
    "check_finite": (True, False),
    "shard": (True, False, None),
    "share": (True, False),
    "recompute": (True, False),
    "sequence": (True, False),
    "deferred_batch_norm": (True, False),
    "checksums": (int, None),
    "batch_dims": (dict, None),
}
