"""Models with skips, ties and several inputs train over stages as they do in one process."""

from __future__ import annotations

import copy
from itertools import product
from math import prod

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import TensorDataset

import pycomm
from pycomm.errors import ArgumentError
from pycomm.trainers.checkpoint import Checkpoint
from tests.parallel.split_models import WORDS, Skips, TiedLanguageModel
from tests.training import adamw, named, sgd, shared_folder
from tests.training import one_thread as one_thread

SCHEDULES = ["1f1b", "gpipe", "interleaved", "zb-h1", "sequential"]
LENGTH = 5


def seeded(cls, seed: int = 0, **kwargs) -> nn.Module:
    torch.manual_seed(seed)
    return cls(**kwargs).double()


def text(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, WORDS, (count, LENGTH + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def text_loss(output, targets) -> torch.Tensor:
    return cross_entropy(output.flatten(0, 1), targets.flatten())


def vectors(count: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    mask = torch.randint(0, 2, (count, 1), generator=generator)
    return {"x": x, "mask": mask}, torch.randn(count, 4, generator=generator, dtype=torch.float64)


def vector_loss(output, targets) -> torch.Tensor:
    hidden, kept = output["hidden"]
    extra = hidden.square().mean() + sum(k.mean() for k in kept)
    return mse_loss(output["logits"], targets) + 0.1 * extra


class Pairs(Skips):
    """Without what depends on the number of rows, which a microbatch changes."""

    def forward(self, x, mask, scale=2.0):
        """Return logits and what they are made of."""
        kept = [torch.relu(self.first(x))]
        for layer in self.down:
            kept.append(torch.tanh(layer(kept[-1])))
        y = kept.pop()
        for layer in self.up:
            y = torch.tanh(layer(y)) + kept.pop() * mask.to(y.dtype)
        return {"logits": self.last(y) * scale, "hidden": (y, [y * 2])}


CASES = [
    (TiedLanguageModel, text, text_loss, lambda model, x: model(x)),
    (Pairs, vectors, vector_loss, lambda model, x: model(**x)),
]


def reference_step(model, optimizer, call, loss_fn, x, t, clip_norm) -> float:
    optimizer.zero_grad()
    loss = loss_fn(call(model, x), t)
    loss.backward()
    if clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.parametrize(("cls", "batch", "loss_fn", "call"), CASES)
def test_weights_are_those_of_one_process(
    comm, schedule: str, clip_norm, cls, batch, loss_fn, call
) -> None:
    for microbatches in (1, 3, 4):
        if schedule == "interleaved" and (microbatches % comm.size or 2 * comm.size > 7):
            continue
        trainer = pycomm.ModelParallelTrainer(
            seeded(cls, comm.rank), sgd, loss_fn, comm, microbatches, schedule, clip_norm=clip_norm
        )
        reference = seeded(cls)
        single = sgd(list(reference.named_parameters()))
        for k in range(3):
            x, t = batch(12, k)
            loss = trainer.step(x, t)
            expected = reference_step(reference, single, call, loss_fn, x, t, clip_norm)
            assert abs(loss - expected) <= 1e-12, (schedule, microbatches)
        weights = named(comm, trainer.module)
        assert set(weights) == {name for name, _ in reference.named_parameters()}
        for name, p in reference.named_parameters():
            assert (weights[name] - p).abs().max() <= 1e-12 * p.abs().max(), name


def layouts(ranks: int) -> list[dict[str, int]]:
    every = product(range(1, ranks + 1), repeat=2)
    return [{"dp": dp, "pp": pp} for dp, pp in every if prod((dp, pp)) == ranks]


@pytest.mark.parametrize("shard", [None, False])
def test_tied_weights_on_a_mesh_stay_equal_and_are_saved_once(comm, tmp_path, shard) -> None:
    folder = shared_folder(comm, tmp_path)
    reference = seeded(TiedLanguageModel)
    single = adamw(list(reference.named_parameters()))
    layout_list = layouts(comm.size)
    for k, layout in enumerate(layout_list):
        mesh = pycomm.Mesh(comm, **layout)
        trainer = pycomm.ModelParallelTrainer(
            seeded(TiedLanguageModel, 5), adamw, text_loss, mesh, 2, clip_norm=0.3, shard=shard
        )
        trainer.load(folder) if k else None
        x, t = text(8, k)
        share = slice(
            8 * mesh.coords["dp"] // layout["dp"], 8 * (mesh.coords["dp"] + 1) // layout["dp"]
        )
        if not k:
            trainer.module.load_state_dict(
                {
                    n: v
                    for n, v in reference.state_dict().items()
                    if n in trainer.module.state_dict()
                }
            )
        loss = trainer.step(x[share], t[share])
        expected = reference_step(reference, single, lambda m, x: m(x), text_loss, x, t, 0.3)
        assert abs(loss - expected) <= 1e-9
        trainer.save(folder)
        saved = Checkpoint(folder)
        weights = saved.read(saved.index["tensors"])["model"]
        comm.barrier()
        assert torch.equal(weights["words.weight"], weights["head.weight"])
        for name, p in reference.named_parameters():
            assert (weights[name] - p).abs().max() <= 1e-9 * p.abs().max(), (name, layout)
        mesh.close()


def test_holders_of_a_tied_weight_have_the_same_bits(comm) -> None:
    trainer = pycomm.ModelParallelTrainer(
        seeded(TiedLanguageModel), adamw, text_loss, comm, 3, clip_norm=0.1
    )
    for k in range(5):
        trainer.step(*text(6, k))
    mine = dict(trainer.module.named_parameters()).get("words.weight")
    held = comm.all_gather_object(None if mine is None else mine.detach().clone())
    holders = [w for w in held if w is not None]
    assert len(holders) == (2 if comm.size > 1 else 1)
    assert all(torch.equal(w, holders[0]) for w in holders)


def test_fit_and_evaluate_with_modes(comm) -> None:
    data = TensorDataset(*text(9, 1))
    trainer = pycomm.ModelParallelTrainer(
        seeded(TiedLanguageModel, p=0.5), sgd, text_loss, comm, 2, cuts=cuts_for(comm)
    )
    first = trainer.evaluate(data, batch_size=4)["loss"]
    assert trainer.evaluate(data, batch_size=9)["loss"] == pytest.approx(first, abs=1e-12)
    x, t = text(9, 1)
    assert first == pytest.approx(text_loss(seeded(TiedLanguageModel).eval()(x), t).item())
    trainer.fit(data, steps=2, batch_size=4, progress=False)
    assert all(m.training for m in trainer.module.modules())


def cuts_for(comm) -> list[str]:
    return ["blocks.0", "blocks.1", "blocks.2"][: comm.size - 1]


def test_the_cuts_that_were_asked_for(comm) -> None:
    trainer = pycomm.ModelParallelTrainer(
        seeded(TiedLanguageModel), sgd, text_loss, comm, cuts=cuts_for(comm)
    )
    assert trainer.split.cuts == cuts_for(comm)
    names = [name for name, _ in trainer.module.named_parameters()]
    assert any(name.startswith(f"blocks.{comm.rank - 1}.") for name in names) or comm.rank == 0


def test_balanced_by_measured_time_on_all_ranks(comm) -> None:
    x, _ = text(2, 0)
    trainer = pycomm.ModelParallelTrainer(seeded(TiedLanguageModel), sgd, text_loss, comm, sample=x)
    assert trainer.split.reason == "balanced by measured time"
    assert len(set(comm.all_gather_object(trainer.split.costs))) == 1
    trainer.step(*text(4, 0))


@pytest.mark.parametrize("kind", ["factory", "meta"])
def test_a_model_without_memory_has_the_values_of_one_process(comm, kind: str) -> None:
    def layers() -> nn.Module:
        made = [nn.Linear(6, 6) for _ in range(4)]
        return nn.Sequential(*made, nn.BatchNorm1d(6)).double()

    def loss_fn(output, targets):
        return mse_loss(output, targets)

    torch.manual_seed(11)
    reference = layers()
    with torch.device("meta"):
        empty = layers()
    torch.manual_seed(11 if comm.rank == 0 else 12)
    given = layers if kind == "factory" else empty
    trainer = pycomm.ModelParallelTrainer(given, sgd, loss_fn, comm, 1, seed=11)
    weights = named(comm, trainer.module)
    assert set(weights) == {name for name, _ in reference.named_parameters()}
    if kind == "factory":
        assert all(torch.equal(weights[n], p) for n, p in reference.named_parameters())
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert trainer.step(x, x) > 0
    assert all(not t.is_meta for t in trainer.module.state_dict().values())


def test_a_memory_limit_is_refused_before_training(comm) -> None:
    layers = [nn.Linear(64, 64, bias=False) for _ in range(8)]
    one = 64 * 64 * 4
    most = -(-8 // comm.size)
    whole = copy.deepcopy(layers)
    limit = most * one * 4 + most * 8  # AdamW counts its steps, too
    pycomm.ModelParallelTrainer(layers, adamw, mse_loss, comm, memory_limit=limit + 64, shard=False)
    text_of_ranks = "fits" if comm.size < 8 else "no number"
    with pytest.raises(ArgumentError, match=f"memory_limit=.*is not enough on .*{text_of_ranks}"):
        pycomm.ModelParallelTrainer(
            whole, adamw, mse_loss, comm, memory_limit=limit - one, shard=False
        )


def test_a_model_that_cannot_be_split(comm) -> None:
    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(5))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x) if x.sum() > 0 else x
            return x

    with pytest.raises(ArgumentError, match=r"Decides.forward cannot be traced at .*x.sum\(\) > 0"):
        pycomm.ModelParallelTrainer(Decides(), sgd, mse_loss, comm)


@pytest.mark.parametrize("given", [TiedLanguageModel, lambda: seeded(TiedLanguageModel)])
@pytest.mark.parametrize("ends", [{}, {"words": "embedding", "head": "output"}])
def test_a_traced_model_with_ties_on_a_mesh_with_tensor_parallelism(
    comm, tmp_path, given, ends
) -> None:
    if comm.size % 2:
        pytest.skip("for tensor parallelism over two ranks")
    mesh = pycomm.Mesh(comm, tp=2, pp=comm.size // 2)
    plan = {"blocks.*.inner.0": "column", "blocks.*.outer": "row", **ends}
    torch.manual_seed(0)
    reference = given()
    torch.manual_seed(0)
    trainer = pycomm.ModelParallelTrainer(
        given, sgd, text_loss, mesh, 2, clip_norm=0.1, tensor_plan=plan
    )
    single = sgd(list(reference.named_parameters()))
    exact = next(reference.parameters()).dtype == torch.float64
    for k in range(3):
        loss = trainer.step(*text(4, k))
        expected = reference_step(reference, single, lambda m, x: m(x), text_loss, *text(4, k), 0.1)
        assert abs(loss - expected) <= (1e-12 if exact else 1e-5)
    folder = shared_folder(comm, tmp_path)
    trainer.save(folder)
    saved = Checkpoint(folder)
    weights = saved.read(saved.index["tensors"])["model"]
    for name, p in reference.named_parameters(remove_duplicate=False):
        torch.testing.assert_close(weights[name], p.detach(), rtol=0, atol=1e-12 if exact else 1e-5)
    comm.barrier()
    mesh.close()
