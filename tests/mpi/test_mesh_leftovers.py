"""What compression has left on the replicas of stages is in checkpoints, as in data parallelism."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import pycomm
from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.parallel.compression import METHODS
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


def test_a_loss_scale_is_not_compressed(comm) -> None:
    with pytest.raises(ArgumentError, match="with precision='fp16': what is left over would"):
        pycomm.ModelParallelTrainer(
            dense(), adamw, cross_entropy, comm, precision="fp16", compression="bf16"
        )


def tied(seed: int = 0) -> nn.Sequential:
    """Return layers of which the first and the last have one weight."""
    model = nn.Sequential(*dense(seed), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 8)).double()
    model[-1].weight = model[0].weight
    return model


def in_two(ranks: int) -> dict[str, int]:
    """Return a layout of two stages, or of as many as there are ranks."""
    return {"dp": ranks // 2, "pp": 2} if ranks % 2 == 0 else {"dp": 1, "pp": ranks}


def steps(trainer) -> float:
    """Train, and return the last loss."""
    mesh = trainer.mesh
    for k in range(6):
        x, t = samples(8 * mesh.shape["dp"], k)
        mine = slice(8 * mesh.coords["dp"], 8 * mesh.coords["dp"] + 8)
        loss = trainer.step(x[mine], t[mine])
    return loss


def assert_equal_copies(comm, trainer, names) -> None:
    """Check that whoever holds a parameter of some names has the same bits."""
    mine = {n: p.detach() for n, p in trainer.module.named_parameters() if n in names}
    everyone = comm.all_gather_object(mine)
    for name in names:
        copies = [of_rank[name] for of_rank in everyone if name in of_rank]
        assert all(torch.equal(copy, copies[0]) for copy in copies), name


@pytest.mark.parametrize("method", [*METHODS, "topk:0.3"])
def test_tied_weights_stay_equal(comm, method: str) -> None:
    trainer = make(comm, model=tied(), compression=method, **in_two(comm.size))
    plain = make(comm, model=tied(), compression=None, **in_two(comm.size))
    loss, expected = steps(trainer), steps(plain)
    assert_equal_copies(comm, trainer, {"0.weight"})
    if method in ("bf16", "fp16", "fp8", "int8"):
        assert 0 < abs(loss - expected) < 0.02 * expected


@pytest.mark.parametrize("method", ["topk:0.3", "int8"])
def test_tied_weights_are_resumed_with_the_same_bits(comm, tmp_path, method: str) -> None:
    folder, places = shared_folder(comm, tmp_path), in_two(comm.size)
    expected = make(comm, model=tied(), compression=method, **places)
    train(expected, 6)
    first = make(comm, model=tied(), compression=method, **places)
    train(first, 3, folder)
    left_over, largest = total_once(comm, first), max(comm.all_gather_object(largest_left(first)))
    resumed = make(comm, model=tied(1), compression=method, **places)
    train(resumed, 6, folder)
    assert_same_bits(resumed.module, expected.module)
    other = make(comm, model=tied(1), compression=method, dp=comm.size)
    first.save(folder / "other")
    other.load(folder / "other")
    assert_close(total_once(comm, other), left_over, largest)


def total_once(comm, trainer) -> dict[str, torch.Tensor]:
    """Return what is left on all ranks, of tied weights on one of those that hold them."""
    counts = trainer._tied.counts
    found = total(comm, trainer)
    twice = {n for n in left(trainer) if not counts(n)}
    for name in set().union(*comm.all_gather_object(twice)):
        found[name] /= 2
    return found


@pytest.mark.parametrize("method", [*METHODS, "topk:0.3"])
def test_what_all_of_a_tensor_parallel_group_have_stays_equal(comm, method: str) -> None:
    tp = 2 if comm.size % 2 == 0 else comm.size

    def divided(compression):
        mesh = pycomm.Mesh(comm, dp=None, tp=tp)
        return pycomm.ModelParallelTrainer(
            dense(),
            adamw,
            cross_entropy,
            mesh,
            2,
            tensor_plan={"0": "column", "2": "row"},
            compression=compression,
        )

    trainer = divided(method)
    loss, expected = steps(trainer), steps(divided(None))
    shards = {"0.weight", "0.bias", "2.weight"} if tp > 1 else set()
    assert set(trainer._divided) == shards
    names = {name for name, _ in trainer.module.named_parameters()}
    assert_equal_copies(comm, trainer, names - shards)
    assert_equal_copies(trainer.mesh["dp"], trainer, shards)
    if method in ("bf16", "fp16", "fp8", "int8"):
        assert 0 < abs(loss - expected) < 0.02 * expected
