"""Running statistics of whole batches, whatever the layout; and batch norm without that."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import pycomm
from pycomm.errors import StageError, UnsupportedError
from pycomm.parallel.deferred_batch_norm import convert
from pycomm.trainers.checkpoint import Checkpoint
from tests.mpi.test_layouts import layouts
from tests.training import CLASSES, images, samples, sgd, shared_folder
from tests.training import one_thread as one_thread

SIZES = [13, 12, 16]


def normed() -> nn.Sequential:
    """Return layers with norms of each kind."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(1),
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3, affine=False),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.BatchNorm1d(12),
        nn.Linear(12, CLASSES),
    ).double()


def inputs_normed(momentum: float | None = 0.1) -> nn.Sequential:
    """Return a model that only normalises its inputs, which no other norm has changed."""
    torch.manual_seed(0)
    norm, linear = nn.BatchNorm2d(1, momentum=momentum), nn.Linear(16, CLASSES)
    return nn.Sequential(norm, nn.Flatten(), linear, nn.Tanh()).double()


def my_share(mesh, x, t):
    begin = 4 * mesh.coords["dp"]
    end = len(x) if mesh.coords["dp"] == mesh.shape["dp"] - 1 else begin + 4
    return (x[begin:end], t[begin:end]) if end > begin else (None, None)


def state_of(comm, trainer, folder) -> dict[str, torch.Tensor]:
    trainer.save(folder)
    saved = Checkpoint(folder)
    state = saved.read(saved.index["tensors"])["model"]
    comm.barrier()
    return state


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_those_of_whole_batches(
    comm, tmp_path, momentum, recompute: bool
) -> None:
    folder, model = shared_folder(comm, tmp_path), inputs_normed(momentum)
    for k, size in enumerate(SIZES):
        model[0](images(size, k, torch.float64)[0])
    for layout in layouts(comm.size):
        mesh = pycomm.Mesh(comm, **layout)
        trainer = pycomm.ModelParallelTrainer(
            inputs_normed(momentum),
            sgd,
            cross_entropy,
            mesh,
            3,
            recompute=recompute,
            deferred_batch_norm=True,
        )
        for k, size in enumerate(SIZES):
            trainer.step(*my_share(mesh, *images(size, k, torch.float64)))
        state = state_of(comm, trainer, folder / str(mesh))
        for name, expected in model[0].state_dict(prefix="0.").items():
            if "running" in name or "tracked" in name:
                assert torch.allclose(state[name], expected, rtol=1e-12, atol=1e-14), name
        assert set(state) == set(inputs_normed().state_dict())
        mesh.close()


def test_losses_are_those_of_norms_that_do_not_wait(comm) -> None:
    """Only the running statistics differ, and evaluation with them."""
    found = []
    for deferred in (False, True):
        trainer = pycomm.ModelParallelTrainer(
            normed(), sgd, cross_entropy, comm, 3, deferred_batch_norm=deferred
        )
        losses = [trainer.step(*images(8, k, torch.float64)) for k in range(3)]
        data = TensorDataset(*images(8, 5, torch.float64))
        found.append((losses, trainer.evaluate(data)["loss"]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-13)
    assert found[0][1] != found[1][1]


def test_each_microbatch_is_normalised_by_itself(comm) -> None:
    """One process that adds up the gradients of microbatches computes the same."""
    trainer = pycomm.ModelParallelTrainer(normed(), sgd, cross_entropy, comm, 3)
    reference = normed()
    optimizer = sgd(list(reference.named_parameters()))
    for k in range(3):
        x, t = images(8, k, torch.float64)
        loss, optimizer_loss = trainer.step(x, t), 0.0
        optimizer.zero_grad()
        for part, target in zip(x.tensor_split(3), t.tensor_split(3)):
            mean = cross_entropy(reference(part), target) * len(part) / 8
            mean.backward()
            optimizer_loss += mean.item()
        optimizer.step()
        assert loss == pytest.approx(optimizer_loss, abs=1e-12)
    own = trainer.module.state_dict()
    for name, value in reference.state_dict().items():
        assert name not in own or torch.allclose(own[name], value, rtol=1e-11, atol=1e-13), name


def test_a_checkpoint_takes_buffers_to_any_layout(comm, tmp_path) -> None:
    folder, losses = shared_folder(comm, tmp_path), []
    alone = pycomm.ModelParallelTrainer(
        normed(), sgd, cross_entropy, comm.split(comm.rank), 1, deferred_batch_norm=True
    )
    data = TensorDataset(*images(8, 9, torch.float64))
    alone.step(*images(8, 0, torch.float64))
    if comm.rank == 0:
        alone.save(folder)
    comm.barrier()
    expected = alone.evaluate(data)["loss"]
    for layout in layouts(comm.size):
        mesh = pycomm.Mesh(comm, **layout)
        trainer = pycomm.ModelParallelTrainer(
            normed(), sgd, cross_entropy, mesh, 1, deferred_batch_norm=True
        )
        trainer.load(folder)
        losses.append(trainer.evaluate(data)["loss"])
        trainer.save(folder)
        mesh.close()
    assert losses == pytest.approx([expected] * len(losses), abs=1e-12)


def test_a_microbatch_of_one_sample_has_no_variance(comm) -> None:
    """Where it matters that microbatches do not divide: every rank is told which it was."""
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES), nn.Tanh())
    for deferred in (False, True):
        trainer = pycomm.ModelParallelTrainer(
            copy.deepcopy(model).double(),
            sgd,
            cross_entropy,
            comm,
            3,
            deferred_batch_norm=deferred,
        )
        with pytest.raises(
            StageError, match=r"microbatch 2: .*Expected more than 1 value per channel.*\[1, 5\]"
        ):
            trainer.step(*samples(5, 0))
        assert trainer.step(*samples(6, 0)) > 0


def test_norms_of_other_classes_cannot_wait(comm) -> None:
    class Mine(nn.BatchNorm1d):
        pass

    layers = [nn.Linear(6, 6), *[nn.Linear(6, 6) for _ in range(comm.size - 1)], Mine(6)]
    with pytest.raises(UnsupportedError, match=rf"rank {comm.size - 1}: '{comm.size}' is a Mine"):
        pycomm.ModelParallelTrainer(layers, sgd, cross_entropy, comm, deferred_batch_norm=True)


def test_norms_without_running_statistics_stay(comm) -> None:
    norm = nn.BatchNorm1d(6, track_running_stats=False)
    assert convert(nn.Sequential(norm), comm) == []
    assert type(norm) is nn.BatchNorm1d
