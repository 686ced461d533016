"""Data, pipeline and tensor parallelism in any product give the weights of one process.

Models have layers, heads and neurons enough for all ranks to be stages, or one tensor-parallel
group. On 8 ranks, for which `make test-slow` runs this, that is every product of 8.
"""

from __future__ import annotations

import re
from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import pycomm
from pycomm.errors import ArgumentError, NonFiniteError, StageError
from pycomm.parallel.sampler import share as share_of
from pycomm.parallel.tensor import divisions
from pycomm.trainers.checkpoint import Checkpoint
from pycomm.workloads import models
from pycomm.workloads.task import Defaults, Task
from tests.training import adamw, dense, samples, sgd, shared_folder
from tests.training import one_thread as one_thread

LENGTH, SYMBOLS = 5, 12
SIZES = [8, 5, 3, 7, 8, 12, 1, 9, 8, 10]
NO_DATA = TensorDataset(torch.empty(0))
TASK = Task(
    "tokens", "tokens", NO_DATA, NO_DATA, (LENGTH,), SYMBOLS, Defaults("gpt", 1, None, 8, 1e-3)
)


def layouts(ranks: int) -> list[dict[str, int]]:
    """Return every dp × pp × tp that is the number of ranks."""
    every = product(range(1, ranks + 1), repeat=3)
    return [dict(zip(("dp", "pp", "tp"), sizes)) for sizes in every if prod(sizes) == ranks]


def built(comm) -> torch.nn.Sequential:
    """Return a model with values from the current random state."""
    width, blocks = 3 * comm.size, max(3, comm.size - 2)
    return models.gpt(TASK, width=width, blocks=blocks, heads=width).double()


def gpt(comm) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return built(comm)


def tokens(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, SYMBOLS, (count, LENGTH + 1), generator=generator)
    return text[:, :-1], text[:, 1:]


def loss_fn(output, targets) -> torch.Tensor:
    return cross_entropy(output.flatten(0, 1), targets.flatten())


def my_share(mesh, x, t):
    """Return this pipeline's share of a batch: uneven, and nothing if the batch is small."""
    begin = 3 * mesh.coords["dp"]
    end = len(x) if mesh.coords["dp"] == mesh.shape["dp"] - 1 else begin + 3
    return (x[begin:end], t[begin:end]) if len(x[begin:end]) else (None, None)


def one_step(model, optimizer, x, t, clip_norm=None) -> float:
    """Train one process on a whole batch; return its loss."""
    optimizer.zero_grad()
    loss = loss_fn(model(x), t)
    loss.backward()
    if clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return loss.item()


def whole_weights(comm, trainer, folder) -> dict[str, torch.Tensor]:
    """Return the parameters of the whole model, from a checkpoint, which knows no layout."""
    trainer.save(folder)
    saved = Checkpoint(folder)
    weights = saved.read(saved.index["tensors"])["model"]
    comm.barrier()
    return weights


@pytest.mark.parametrize(
    ("optimizer", "bound", "clip_norm"), [(sgd, 1e-12, 0.1), (adamw, 1e-9, None)]
)
def test_every_layout_gives_the_weights_of_one_process(
    comm, tmp_path, optimizer, bound, clip_norm
) -> None:
    folder = shared_folder(comm, tmp_path)
    for layout in layouts(comm.size):
        mesh = pycomm.Mesh(comm, **layout)
        trainer = pycomm.ModelParallelTrainer(
            gpt(comm), optimizer, loss_fn, mesh, microbatches=2, clip_norm=clip_norm
        )
        reference = gpt(comm)
        single = optimizer(list(reference.named_parameters()))
        for k, size in enumerate(SIZES):
            x, t = tokens(size, k)
            loss = trainer.step(*my_share(mesh, x, t))
            expected = one_step(reference, single, x, t, clip_norm)
            assert abs(loss - expected) <= 1e-9, layout
            assert len(set(comm.all_gather_object(loss))) == 1
        weights = whole_weights(comm, trainer, folder / str(mesh))
        for name, p in reference.named_parameters():
            assert (weights[name] - p).abs().max() <= bound * p.abs().max(), (name, layout)
        mesh.close()


@pytest.mark.parametrize("leaves", [[], ["5"]], ids=["elements", "traced"])
def test_a_plan_for_the_elements_of_a_sequential(comm, leaves) -> None:
    mesh = pycomm.Mesh(comm, dp=None, tp=2 if comm.size % 2 == 0 else comm.size)
    plan = {"0": "column", "2": "row"}
    trainer = pycomm.ModelParallelTrainer(
        dense(), sgd, cross_entropy, mesh, 2, tensor_plan=plan, leaves=leaves
    )
    divided = {"0.weight", "0.bias", "2.weight"} if mesh.shape["tp"] > 1 else set()
    assert set(divisions(trainer.module)) == divided
    reference = dense()
    single = sgd(list(reference.named_parameters()))
    mine = share_of(np.arange(6), mesh.coords["dp"], mesh.shape["dp"])
    for k in range(3):
        x, t = samples(6, k)
        single.zero_grad()
        loss = cross_entropy(reference(x), t)
        loss.backward()
        single.step()
        assert trainer.step(x[mine], t[mine]) == pytest.approx(loss.item(), abs=1e-12)


def test_activations_of_divided_layers_are_in_the_memory_limit(comm) -> None:
    x, _ = samples(50, 0)
    needs = []
    for tp in [tp for tp in (1, 2, 3, 4) if comm.size % tp == 0]:
        mesh = pycomm.Mesh(comm, dp=None, tp=tp)
        with pytest.raises(ArgumentError, match="memory_limit=0.00 MiB is not enough") as caught:
            pycomm.ModelParallelTrainer(
                dense(),
                sgd,
                cross_entropy,
                mesh,
                2,
                tensor_plan={"0": "column", "2": "row"},
                sample=x,
                memory_limit=1,
            )
        found = re.findall(r"rank (\d+) needs .*?activations ([\d.]+) MiB", str(caught.value))
        assert [int(rank) for rank, _ in found] == list(range(comm.size))
        needs.append({float(nbytes) for _, nbytes in found})
        mesh.close()
    assert all(len(of_ranks) == 1 and of_ranks.pop() > 0 for of_ranks in needs)


def test_a_plan_that_replaces_the_model(comm) -> None:
    if comm.size == 1:
        pytest.skip("nothing is divided")
    mesh = pycomm.Mesh(comm, tp=comm.size)
    model = torch.nn.Linear(6, 2 * comm.size).double()
    with pytest.raises(ArgumentError, match="replaces the model: name its layers"):
        pycomm.ModelParallelTrainer(
            model, sgd, cross_entropy, mesh, tensor_plan={"": "output"}, leaves=[torch.nn.Linear]
        )


def test_a_checkpoint_goes_on_in_any_other_layout(comm, tmp_path) -> None:
    folder = shared_folder(comm, tmp_path)
    reference = gpt(comm)
    single = adamw(list(reference.named_parameters()))
    for k, layout in enumerate(layouts(comm.size)):
        mesh = pycomm.Mesh(comm, **layout)
        trainer = pycomm.ModelParallelTrainer(gpt(comm), adamw, loss_fn, mesh, microbatches=2)
        if k:
            trainer.load(folder)
        x, t = tokens(8, k)
        loss = trainer.step(*my_share(mesh, x, t))
        assert abs(loss - one_step(reference, single, x, t)) <= 1e-9, layout
        assert trainer.progress.step == k + 1
        trainer.save(folder)
        mesh.close()


def test_fit_and_evaluate_count_every_sample_once(comm) -> None:
    data = TensorDataset(*tokens(11, 0))
    results = []
    for layout in layouts(comm.size):
        mesh = pycomm.Mesh(comm, **layout)
        trainer = pycomm.ModelParallelTrainer(gpt(comm), sgd, loss_fn, mesh, microbatches=3)
        last = trainer.fit(data, epochs=2, batch_size=4, progress=False)
        result = trainer.evaluate(data, batch_size=3, metrics={"two": lambda y, t: 2.0})
        assert result["count"] == 11 and result["metrics"] == {"two": 2.0}
        results.append((last, result["loss"]))
        mesh.close()
    for last, loss in results:
        assert abs(last - results[0][0]) <= 1e-9 and abs(loss - results[0][1]) <= 1e-9


def test_one_pipelines_gradient_that_is_not_finite_is_told_on_all(comm) -> None:
    mesh = pycomm.Mesh(comm, dp=comm.size)
    trainer = pycomm.ModelParallelTrainer(dense(), sgd, cross_entropy, mesh, check_finite=True)
    x, t = samples(4, comm.rank)
    if comm.rank == comm.size - 1:
        x[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=f"rank {comm.size - 1}: parameter 0.weight"):
        trainer.step(x, t)


def test_a_stage_that_fails_in_one_pipeline_is_told_on_all(comm) -> None:
    mesh = pycomm.Mesh(comm, dp=comm.size)
    trainer = pycomm.ModelParallelTrainer(dense(), sgd, cross_entropy, mesh)
    x, t = samples(4, comm.rank)
    with pytest.raises(StageError, match=f"rank {mesh['pp'].rank}"):
        trainer.step(x[:, : 5 if comm.rank == 0 else 6], t)


def test_a_layout_that_is_not_the_number_of_ranks(comm) -> None:
    with pytest.raises(ArgumentError, match=f"is not {comm.size}, the number of ranks"):
        pycomm.Mesh(comm, dp=comm.size, pp=2)


def dropping(comm) -> torch.nn.Sequential:
    """Return layers that drop: attention, activations and feed-forward."""
    torch.manual_seed(0)
    width = 3 * comm.size
    layers = [
        torch.nn.TransformerEncoderLayer(width, width, 24, dropout=0.3, batch_first=True)
        for _ in range(max(4, comm.size - 1))
    ]
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, SYMBOLS)).double()


def floats(comm, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, LENGTH, 3 * comm.size, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, SYMBOLS, (count, LENGTH), generator=generator)


def losses_with_dropout(comm, trainer, share) -> list[float]:
    return [trainer.step(*share(*floats(comm, size, k))) for k, size in enumerate([8, 5, 7])]


@pytest.mark.parametrize("recompute", [False, True])
def test_dropout_does_not_depend_on_the_layout(comm, recompute: bool) -> None:
    alone = comm.split(comm.rank)
    single = pycomm.ModelParallelTrainer(dropping(comm), sgd, loss_fn, alone, microbatches=1)
    expected = losses_with_dropout(comm, single, lambda *batch: batch)
    again = pycomm.ModelParallelTrainer(dropping(comm).eval(), sgd, loss_fn, alone, microbatches=1)
    assert losses_with_dropout(comm, again, lambda *batch: batch)[0] != expected[0], "it drops"
    for layout in layouts(comm.size):
        mesh = pycomm.Mesh(comm, **layout)
        trainer = pycomm.ModelParallelTrainer(
            dropping(comm), sgd, loss_fn, mesh, microbatches=3, recompute=recompute
        )
        found = losses_with_dropout(comm, trainer, lambda x, t, mesh=mesh: my_share(mesh, x, t))
        assert found == pytest.approx(expected, abs=1e-10), layout
        mesh.close()


def test_dropout_in_data_parallelism_is_that_of_one_process(comm) -> None:
    alone = comm.split(comm.rank)
    expected = pycomm.DataParallelTrainer(dropping(comm), sgd, loss_fn, alone, accumulate=2)
    trainer = pycomm.DataParallelTrainer(dropping(comm), sgd, loss_fn, comm, accumulate=2)
    for k, size in enumerate([8, 5, 7, 1]):
        x, t = floats(comm, size, k)
        mine = share_of(np.arange(size), comm.rank, comm.size)
        loss = trainer.step(*(x[mine], t[mine])) if len(mine) else trainer.step(None, None)
        assert loss == pytest.approx(expected.step(x, t), abs=1e-10)
