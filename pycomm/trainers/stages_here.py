"""This rank's stages of a model, with their values, where the rank computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pycomm.errors import ArgumentError
from pycomm.mesh import Mesh
from pycomm.parallel.delivery import deliver
from pycomm.parallel.joined import joined
from pycomm.parallel.parts import Part
from pycomm.parallel.placement import move
from pycomm.parallel.replicate import check_same_model, copy_from_rank_0, on_every_rank
from pycomm.parallel.splitting.split import Split
from pycomm.parallel.stages import Stages
from pycomm.parallel.tensor import Division, Plan, divisions, tensor_parallel
from pycomm.parallel.ties import Tie
from pycomm.trainers.named_state import describe


@dataclass(frozen=True)
class StagesHere:
    """A model that was split, and what this rank has of it.

    Attributes:
        whole: (dtype, shape) of every tensor of the whole model by full name.
        parts: all stages, in order; those of other ranks have no values.
        split: what was cut where; None for parts that the user has made.
        ties: the parameters that several stages hold.
        module: this rank's stages.
        divided: which of its parameters are divided over the tensor-parallel group, by full name.
        device: where they are.
    """

    whole: dict[str, tuple[str, list[int]]]
    parts: tuple[Part, ...]
    split: Split | None
    ties: tuple[Tie, ...]
    module: nn.Module
    divided: dict[str, Division]
    device: torch.device


def stages_here(
    stages: Stages,
    mesh: Mesh,
    tensor_plan: Plan | None,
    sequence: bool,
    memory_limit: int | str | None,
    state_ranks: int,
) -> StagesHere:
    """Cut a model and give each rank its stages; every rank must call this.

    Args:
        stages: of the model.
        mesh: rank r of each pipeline of n has the stages r, r + n, r + 2n and so on.
        tensor_plan, sequence: see `tensor_parallel`.
        memory_limit, state_ranks: see `Stages.check_memory`.
    """
    comm, whole = mesh.comm, stages.whole
    check_same_model(whole, comm)
    described = describe(whole)

    def divide() -> None:
        tp = mesh["tp"]
        if tp.size > 1 and tensor_parallel(whole, tp, tensor_plan, sequence) is not whole:
            raise ArgumentError(f"tensor_plan={tensor_plan} replaces the model: name its layers")
        stages.build()

    on_every_rank(comm, divide, "dividing the model")
    mine = range(mesh.coords["pp"], len(stages.parts), mesh.shape["pp"])
    measures = mesh.coords["dp"] == mesh.coords["pp"] == 0
    stages.check_memory(memory_limit, mine, state_ranks, measures)
    module = joined([stages.parts[stage].module for stage in mine])
    divided = divisions(module)
    _give_values(stages, module, divided, mesh)
    move(module, comm, stages.device)
    return StagesHere(
        described, stages.parts, stages.split, stages.ties, module, divided, stages.device
    )


def _give_values(
    stages: Stages, module: nn.Module, divided: dict[str, Division], mesh: Mesh
) -> None:
    """Give this rank's stages the values of rank 0, or those that one process would."""
    stages.fill(module, divided, mesh.coords["tp"], mesh.comm)
    if mesh.coords["dp"] == 0 and not stages.deferred:
        deliver(stages.parts, mesh["pp"])
    copy_from_rank_0(module, mesh["dp"])
