"""What compression has left on the replicas of stages is in checkpoints, as in data parallelism."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import pycomm
from pycomm.errors import ArgumentError, UnsupportedError
from tests.mpi.test_leftovers import assert_close, largest_left, left, states, total
from tests.training import adamw, assert_same_bits, dense, samples, shared_folder
from tests.training import one_thread as one_thread


def make(comm, seed: int = 0, model=None, compression="topk:0.3", **places):
    mesh = pycomm.Mesh(comm, **places)
    model = model or dense(seed)
    return pycomm.ModelParallelTrainer(
        model, adamw, cross_entropy, mesh, 2, compression=compression, bucket_bytes=700
    )


def train(trainer, steps: int, folder=None) -> None:
    data = TensorDataset(*samples(24, 3))
    trainer.fit(data, steps=steps, batch_size=8, checkpoint=folder, progress=False)


def layouts(ranks: int) -> list[dict[str, int]]:
    return [{"dp": ranks // pp, "pp": pp} for pp in range(1, ranks + 1) if ranks % pp == 0]


def test_a_resumed_run_has_the_same_bits(comm, tmp_path) -> None:
    for number, places in enumerate(layouts(comm.size)):
        folder = shared_folder(comm, tmp_path) / str(number)
        expected = make(comm, **places)
        train(expected, 6)
        train(make(comm, **places), 3, folder)
        resumed = make(comm, 1, **places)
        train(resumed, 6, folder)
        assert_same_bits(resumed.module, expected.module)
        assert any(state.any() for state in states(resumed))
        for mine, its in zip(states(resumed), states(expected)):
            assert torch.equal(mine, its)


def test_nothing_is_lost_in_another_layout(comm, tmp_path) -> None:
    folder = shared_folder(comm, tmp_path)
    first = make(comm, dp=comm.size)
    train(first, 3)
    first.save(folder)
    expected = total(comm, first)
    largest = max(comm.all_gather_object(largest_left(first)))
    assert any(part.any() for part in expected.values())
    for places in layouts(comm.size):
        other = make(comm, 1, **places)
        other.load(folder)
        assert_close(total(comm, other), expected, largest)


def test_residuals_of_shards_are_refused_before_training(comm, tmp_path) -> None:
    if comm.size == 1:
        pytest.skip("nothing is divided")
    folder = shared_folder(comm, tmp_path)
    plan = {"0": "column", "2": "row"}
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)).double()
    mesh = pycomm.Mesh(comm, tp=comm.size)
    trainer = pycomm.ModelParallelTrainer(
        model, adamw, cross_entropy, mesh, tensor_plan=plan, compression="bf16"
    )
    with pytest.raises(UnsupportedError, match=f"with tp={comm.size} compression leaves parts"):
        train(trainer, 2, folder)
    with pytest.raises(UnsupportedError, match="use tp=1, or leave out compression= or the check"):
        trainer.save(folder)
    assert trainer.progress.step == 0
    train(trainer, 2)
    assert left(trainer)


def test_tied_weights_and_loss_scales_are_not_compressed(comm) -> None:
    with pytest.raises(ArgumentError, match="with precision='fp16': what is left over would"):
        pycomm.ModelParallelTrainer(
            dense(), adamw, cross_entropy, comm, precision="fp16", compression="bf16"
        )
    if comm.size != 2:
        return
    tied = nn.Linear(6, 6).double()
    layers = nn.Sequential(tied, nn.ReLU(), nn.Linear(6, 6).double(), tied)
    with pytest.raises(UnsupportedError, match=r"'0.weight' in stages 0, 1, which would not stay"):
        make(comm, model=layers, pp=2)
