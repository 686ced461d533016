"""Tied weights stay equal over ranks, and are counted once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import pycomm
from pycomm.errors import ArgumentError
from pycomm.parallel.ties import Tie, TiedWeights
from tests.training import samples, sgd


def part_of(comm, names) -> nn.Module:
    """Return a part with the named parameters; values depend on the name only."""
    module = nn.Module()
    for name in names:
        module.register_parameter(name, nn.Parameter(torch.full((3, 2), float(len(name)))))
    return module


def ties_of(comm) -> list[Tie]:
    last = comm.size - 1
    every = tuple(range(comm.size))
    return [Tie(("a", "head"), (0, last) if last else (0,)), Tie(("bb",), every)]


def names_here(comm) -> list[str]:
    return ["bb", "own", *(["a"] if comm.rank in (0, comm.size - 1) else [])]


def test_gradients_are_summed_in_order(comm) -> None:
    module = part_of(comm, names_here(comm))
    tied = TiedWeights(ties_of(comm), module, comm)
    pieces = [1e16, 1.0, -1e16, 3.0][: comm.size]
    for p in module.parameters():
        p.grad = torch.full((3, 2), pieces[comm.rank])
    module.own.grad = None
    tied.sum_gradients()
    expected = np.float32(0)
    for piece in pieces:
        expected = np.float32(expected + np.float32(piece))
    assert torch.equal(module.bb.grad, torch.full((3, 2), float(expected)))
    if "a" in names_here(comm):
        ends = pieces[0] + (pieces[-1] if comm.size > 1 else 0)
        assert torch.equal(module.a.grad, torch.full((3, 2), ends))
    assert module.own.grad is None


def test_a_rank_without_a_gradient_counts_as_zeros(comm) -> None:
    module = part_of(comm, names_here(comm))
    tied = TiedWeights(ties_of(comm), module, comm)
    tied.sum_gradients()
    assert module.bb.grad is None or comm.size == 1
    if comm.rank == 0:
        module.bb.grad = torch.ones(3, 2)
    tied.sum_gradients()
    if comm.size > 1:
        assert torch.equal(module.bb.grad, torch.ones(3, 2))


def test_a_tied_parameter_is_counted_once(comm) -> None:
    module = part_of(comm, names_here(comm))
    tied = TiedWeights(ties_of(comm), module, comm)
    counted = [name for name, _ in tied.counted(module.named_parameters())]
    everything = sorted(name for names in comm.all_gather_object(counted) for name in names)
    assert everything == sorted(["a", "bb", *["own"] * comm.size])
    assert tied.counts("bb") == (comm.rank == 0)


def test_several_stages_of_one_rank(comm) -> None:
    module = part_of(comm, ["a"])
    stages = tuple(range(2 * comm.size))
    tied = TiedWeights([Tie(("a",), stages)], module, comm, lambda stage: stage % comm.size)
    module.a.grad = torch.ones(3, 2)
    tied.sum_gradients()
    assert torch.equal(module.a.grad, torch.full((3, 2), float(comm.size)))


def test_a_part_without_the_parameter(comm) -> None:
    if comm.size == 1:
        pytest.skip("there is nothing to tie")
    with pytest.raises(ArgumentError, match="has no parameter 'bb', which is tied over ranks"):
        TiedWeights(ties_of(comm)[1:], part_of(comm, ["own"]), comm)


def tied_ends(comm) -> nn.Sequential:
    """Return layers of which the first and the last have one weight."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 6) for _ in range(comm.size + 2)]
    layers[-1].weight = layers[0].weight
    return nn.Sequential(*layers).double()


def test_only_tied_gradients_wait_for_the_pipelines_end(comm, monkeypatch) -> None:
    if comm.size == 1:
        pytest.skip("there is nothing to tie")
    pp = 2 if comm.size % 2 == 0 else comm.size
    mesh = pycomm.Mesh(comm, dp=None, pp=pp)
    trainer = pycomm.ModelParallelTrainer(
        tied_ends(comm), sgd, cross_entropy, mesh, 2, shard=False, bucket_bytes=100
    )
    reducer, add_up, begun = trainer._way.reducer, TiedWeights.sum_gradients, []

    def spy(tied: TiedWeights) -> None:
        begun.append({s.name for bucket in reducer.buckets[: reducer._next] for s in bucket.slots})
        add_up(tied)

    monkeypatch.setattr(TiedWeights, "sum_gradients", spy)
    for step in range(2):
        trainer.step(*samples(4, mesh.coords["dp"] + 2 * step))
    names = {name for name, _ in trainer.module.named_parameters()}
    ends = mesh.coords["pp"] in (0, pp - 1)
    assert ("0.weight" in names) == ends
    assert begun == [names - {"0.weight"}] * 2
    assert (reducer.buckets[-1].slots[0].name == "0.weight") == ends
    mine = dict(trainer.module.named_parameters()).get("0.weight")
    copies = [p for p in comm.all_gather_object(mine) if p is not None]
    assert all(torch.equal(p, copies[0]) for p in copies)
