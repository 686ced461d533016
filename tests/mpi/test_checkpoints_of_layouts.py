"""Checkpoints have no layout: what one wrote, every other reads and would write again."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import pycomm
from pycomm.trainers.checkpoint import Checkpoint
from tests.mpi.test_layouts import layouts
from tests.training import adamw, dense, samples, sgd, shared_folder
from tests.training import one_thread as one_thread

WORDS, WIDTH, LENGTH = 9, 6, 4


class Normed(nn.Module):
    """Embedding and head share a weight; a batch norm has buffers; a value skips stages."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        """Return logits."""
        start = x = self.words(tokens)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(self.norm((x + start).transpose(1, 2)).transpose(1, 2))


def normed() -> nn.Module:
    return Normed().double()


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return normed()


def batch(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(0, WORDS, (2, count, LENGTH), generator=generator)
    return tokens, targets


def loss_fn(output, targets) -> torch.Tensor:
    return cross_entropy(output.flatten(0, 1), targets.flatten())


def state_of(folder) -> dict[str, torch.Tensor]:
    """Return every tensor of a checkpoint by its full name, the optimizer's, too."""
    saved = Checkpoint(folder)
    part = saved.read(saved.index["tensors"])
    tensors = {f"model {name}": tensor for name, tensor in part["model"].items()}
    for name, state in part["optimizer"]["state"].items():
        tensors |= {f"{key} of {name}": torch.as_tensor(value) for key, value in state.items()}
    return tensors


def fewer(comm, ranks: int):
    """Return the Communicator of the first ranks; None on the others."""
    part = comm.split(0 if comm.rank < ranks else 1)
    return part if comm.rank < ranks else None


def trainers(comm):
    """Yield a trainer for every layout of `comm`, of models that are given in all three ways."""
    for k, layout in enumerate(layouts(comm.size)):
        mesh = pycomm.Mesh(comm, **layout)
        given = (normed(), normed, on_meta())[k % 3]
        yield str(mesh), pycomm.ModelParallelTrainer(given, adamw, loss_fn, mesh, 2, shard=None)
        mesh.close()
    yield "data parallel", pycomm.DataParallelTrainer(normed(), adamw, loss_fn, comm)


def test_every_layout_writes_what_it_has_read(comm, tmp_path) -> None:
    folder = shared_folder(comm, tmp_path)
    first = pycomm.ModelParallelTrainer(normed, adamw, loss_fn, comm, 2)
    for k in range(3):
        first.step(*batch(8, k))
    first.save(folder / "first")
    expected = state_of(folder / "first")
    assert {"model norm.running_var", "exp_avg of words.weight"} <= set(expected)
    data = TensorDataset(*batch(7, 9))
    loss = first.evaluate(data)["loss"]
    for ranks in {comm.size, max(1, comm.size - 1)}:
        part = fewer(comm, ranks)
        for name, trainer in trainers(part) if part else ():
            trainer.load(folder / "first")
            assert trainer.progress.step == 3
            assert abs(trainer.evaluate(data)["loss"] - loss) <= 1e-12, (ranks, name)
            trainer.save(folder / str(ranks) / name)
            found = state_of(folder / str(ranks) / name)
            assert set(found) == set(expected), (ranks, name)
            wrong = [n for n, tensor in expected.items() if not torch.equal(tensor, found[n])]
            assert not wrong, (ranks, name)
            part.barrier()
        comm.barrier()


def test_a_loss_scale_is_that_of_all_stages_and_pipelines(comm) -> None:
    def run(mesh) -> tuple[list[float], float, int]:
        dp = mesh.coords["dp"]
        trainer = pycomm.ModelParallelTrainer(
            dense().float(), sgd, cross_entropy, mesh, 2, precision="fp16", clip_norm=0.3
        )
        losses = []
        for k in range(4):
            x, t = samples(8, k)
            x[-1] *= 1e30 if k == 2 else 1.0  # overflows in the last pipeline only
            share = slice(dp, None if dp == mesh.shape["dp"] - 1 else dp + 1)
            losses.append(trainer.step(x[share].float(), t[share]))
        return losses, trainer.progress.loss_scale, trainer.progress.since_overflow

    expected = run(pycomm.Mesh(comm.split(comm.rank)))
    assert expected[1:] == (2.0**15, 1), "the third update was left out"
    for layout in layouts(comm.size):
        mesh = pycomm.Mesh(comm, **layout)
        found = run(mesh)
        assert found[0] == pytest.approx(expected[0], abs=2e-3, nan_ok=True), layout
        assert found[1:] == expected[1:], layout
        mesh.close()
