"""Factories, and models on the meta device, have one process's values in every layout."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import pycomm
from pycomm.parallel.initial_values.source import source_of
from tests.mpi.test_hybrid import (
    built,
    layouts,
    loss_fn,
    my_share,
    one_step,
    tokens,
    whole_weights,
)
from tests.training import one_thread as one_thread
from tests.training import sgd, shared_folder


def on_meta(comm) -> nn.Module:
    with torch.device("meta"):
        return built(comm)


def alone(comm, kind: str) -> nn.Module:
    """Return what one process has."""
    torch.manual_seed(3)
    if kind == "factory":
        return built(comm)
    model = on_meta(comm)
    source_of(model, seed=3).fill(model, lambda name, whole: whole)
    return model


@pytest.mark.parametrize("kind", ["factory", "meta"])
def test_every_layout_has_the_values_of_one_process(comm, tmp_path, kind: str) -> None:
    folder, reference = shared_folder(comm, tmp_path), alone(comm, kind)
    for layout in layouts(comm.size):
        mesh = pycomm.Mesh(comm, **layout)
        torch.manual_seed(3 + comm.rank)  # rank 0's state counts
        given = partial(built, comm) if kind == "factory" else on_meta(comm)
        trainer = pycomm.ModelParallelTrainer(given, sgd, loss_fn, mesh, 2, clip_norm=0.1, seed=3)
        weights = whole_weights(comm, trainer, folder / str(mesh))
        for name, p in reference.named_parameters():
            assert torch.equal(weights[name], p), (name, layout)
        single = copy.deepcopy(reference)
        optimizer = sgd(list(single.named_parameters()))
        x, t = tokens(8, 1)
        loss = trainer.step(*my_share(mesh, x, t))
        assert abs(loss - one_step(single, optimizer, x, t, 0.1)) <= 1e-9, layout
        mesh.close()


def test_tied_weights_on_meta_in_tensor_parallelism(comm) -> None:
    """A parameter that two modules initialise has the values of the second, in each shard."""

    def build() -> nn.Module:
        with torch.device("meta"):
            return nn.Sequential(*[nn.Linear(6 * comm.size, 6 * comm.size) for _ in range(2)])

    model, plan = build().double(), {"0": "output", "1": "output"}
    model[1].weight = model[0].weight
    mesh = pycomm.Mesh(comm, tp=comm.size)
    reference = copy.deepcopy(model)
    source_of(reference, seed=5).fill(reference, lambda name, whole: whole)
    trainer = pycomm.ModelParallelTrainer(
        model, sgd, cross_entropy, mesh, 1, seed=5, tensor_plan=plan
    )
    x = torch.randn(4, 6 * comm.size, generator=torch.Generator().manual_seed(0)).double()
    t = torch.arange(4)
    assert [name for name, _ in trainer.module.named_parameters()] == [
        "0.weight",
        "0.bias",
        "1.bias",
    ]
    assert trainer.step(x, t) == pytest.approx(cross_entropy(reference(x), t).item(), abs=1e-12)
