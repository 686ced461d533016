"""Microbatches: a global batch, cut up, and what all ranks of a mesh have to know of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from pycomm.errors import ArgumentError
from pycomm.mesh import Mesh
from pycomm.trainers.batches import count_samples


@dataclass(frozen=True)
class Microbatches:
    """This pipeline's share of a global batch, in microbatches.

    Attributes:
        samples: of the share, on every rank of the pipeline.
        first_sample: of the share, its number in the global batch.
        count: of microbatches, none of them empty.
        weight: of the whole global batch; not a number if that of a microbatch is none or < 0.
        inputs: of each microbatch, on the first stage; elsewhere none.
        targets: of each microbatch, on the last stage; elsewhere none.
        weights: of each microbatch, on the last stage.
    """

    samples: int
    first_sample: int
    count: int
    weight: float
    inputs: list[Any]
    targets: list[Any]
    weights: list[float]

    def place(self, microbatch: int) -> tuple[int, int]:
        """Return the number of a microbatch's first sample, and how many it has."""
        least, more = divmod(self.samples, self.count)
        begin = microbatch * least + min(microbatch, more)
        return self.first_sample + begin, least + (microbatch < more)


def cut(
    inputs: Any, targets: Any, mesh: Mesh, count: int, weight: Callable[[Any], float]
) -> Microbatches:
    """Cut this pipeline's share of a global batch; collective on the mesh.

    Args:
        inputs: looked at on the first stage; None where the pipeline has no samples.
        targets: looked at on the last stage; None where the pipeline has no samples.
        mesh: dp pipelines of pp stages.
        count: how many microbatches; as many as there are samples, if these are fewer.
        weight: targets → what a microbatch counts for.

    Raises:
        ArgumentError: on every rank, if the first and last stage of a pipeline have different
            numbers of samples, or on some rank the batch cannot be cut, or `weight` raises.
    """
    mine, error = _Mine(), None
    try:
        mine.take(inputs, targets, mesh, count, weight)
    except Exception as caught:  # whatever it is, the others must not wait for this rank
        error = caught
    everyone = mesh.comm.all_gather(np.array(_FAILED if error else mine.sizes(), np.float64))
    if (everyone[:, 0] < 0).any():
        _raise_failure(mesh, error)
    given, whole = _agreed(everyone, mesh)
    dp = mesh.coords["dp"]
    samples, first = given[dp], sum(given[:dp])
    return Microbatches(
        samples, first, min(count, samples), whole, mine.inputs, mine.targets, mine.weights
    )


_FAILED = (-1.0, -1.0, math.nan)
"""What a rank tells instead of its sizes."""


@dataclass
class _Mine:
    """What this rank has of a batch; see Microbatches."""

    inputs: list[Any] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def take(
        self, inputs: Any, targets: Any, mesh: Mesh, count: int, weight: Callable[[Any], float]
    ) -> None:
        """Cut what a stage needs."""
        if mesh.coords["pp"] == 0:
            self.inputs = split(inputs, count)
        if mesh.coords["pp"] == mesh.shape["pp"] - 1:
            self.targets = split(targets, count)
        self.weights = [float(weight(t)) for t in self.targets]

    def sizes(self) -> list[float]:
        """Return the samples of inputs and of targets, and the weight; NaN if one cannot be."""
        possible = all(0 <= w < math.inf for w in self.weights)
        total = math.fsum(self.weights) if possible else math.nan
        return [sum(map(count_samples, self.inputs)), sum(map(count_samples, self.targets)), total]


def _raise_failure(mesh: Mesh, error: Exception | None) -> None:
    texts = mesh.comm.all_gather_object(error and f"{type(error).__name__}: {error}")
    failed = [f"rank {rank}: {text}" for rank, text in enumerate(texts) if text]
    raise ArgumentError(
        f"the batch cannot be cut into microbatches (this is rank {mesh.comm.rank}): "
        f"{'; '.join(failed)}"
    ) from error


def split(batch: Any, count: int) -> list[Any]:
    """Return at most `count` parts of a batch, each of one sample at least; of None none.

    Args:
        batch: a tensor, or tuples, lists and dicts of them; tensors are cut along axis 0, what is
            none goes into every part.
        count: as `torch.tensor_split` takes it.

    Raises:
        ArgumentError: tensors differ in length.
    """
    samples = count_samples(batch)
    if samples == 0:
        return []
    leaves, structure = tree_flatten(batch)
    lengths = {len(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)}
    if len(lengths) > 1:
        raise ArgumentError(
            f"the tensors of a batch have {sorted(lengths)} samples: their axis 0 must be equal"
        )
    parts = min(count, samples)
    columns = [
        torch.tensor_split(leaf, parts) if isinstance(leaf, torch.Tensor) else [leaf] * parts
        for leaf in leaves
    ]
    return [tree_unflatten(list(row), structure) for row in zip(*columns)]


def _agreed(everyone: np.ndarray, mesh: Mesh) -> tuple[list[int], float]:
    """Return the samples of each pipeline and the weight of all, from what each rank has."""
    samples, weights = [], []
    for dp in range(mesh.shape["dp"]):
        first, last = mesh.rank_at(dp=dp), mesh.rank_at(dp=dp, pp=mesh.shape["pp"] - 1)
        given, wanted = int(everyone[first][0]), int(everyone[last][1])
        if given != wanted:
            raise ArgumentError(
                f"rank {first} got inputs with {given} samples, rank {last} targets with "
                f"{wanted} (this is rank {mesh.comm.rank}): pass as many of both, or None"
            )
        samples.append(given)
        weights.append(float(everyone[last][2]))
    return samples, math.fsum(weights)
