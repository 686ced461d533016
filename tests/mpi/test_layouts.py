"""A model with everything at once (skips, ties, dict inputs and outputs) in every layout."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

import pycomm
from pycomm.errors import ArgumentError, MismatchError
from pycomm.parallel.schedules.registry import SCHEDULES
from pycomm.trainers.checkpoint import Checkpoint
from tests.training import adamw, sgd, shared_folder
from tests.training import one_thread as one_thread

WORDS, WIDTH, LENGTH = 11, 8, 4
CASES: list[tuple[str, dict]] = [
    ("1f1b", {"share": True, "clip_norm": 0.05}),
    ("gpipe", {}),
    ("interleaved", {"shard": False, "clip_norm": 0.05}),
    ("zb-h1", {"shard": False, "clip_norm": 0.05}),
    ("zb-h1", {"clip_norm": 0.05}),
    ("sequential", {"shard": True}),
]


class Everything(nn.Module):
    """Embedding and head share a weight; values skip stages; inputs and outputs are dicts."""

    def __init__(self, depth: int):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.down = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens, mask):
        """Return logits, and the values that they are made of."""
        kept = [self.words(tokens)]
        for layer in self.down:
            kept.append(torch.tanh(layer(kept[-1])) * mask.unsqueeze(-1))
        x = kept.pop()
        for layer in self.up:
            x = torch.relu(layer(x)) + kept.pop()
        return {"logits": self.head(self.norm(x)), "hidden": (x, kept)}


class Texts(Dataset):
    """Pairs of a dict and a row of symbols."""

    def __init__(self, count: int):
        self.inputs, self.targets = batch(count, 9)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, k: int):
        return {name: column[k] for name, column in self.inputs.items()}, self.targets[k]


def everything(comm, seed: int = 0) -> nn.Module:
    """Return a model that has layers for two stages on each rank."""
    torch.manual_seed(seed)
    return Everything(max(4, comm.size)).double()


def batch(count: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(0, WORDS, (2, count, LENGTH), generator=generator)
    mask = torch.rand(count, LENGTH, generator=generator, dtype=torch.float64).round()
    return {"tokens": tokens, "mask": mask}, targets


def loss_fn(output, targets) -> torch.Tensor:
    hidden, _ = output["hidden"]
    return cross_entropy(output["logits"].flatten(0, 1), targets.flatten()) + hidden.var() * 0


def layouts(ranks: int) -> list[dict[str, int]]:
    every = product(range(1, ranks + 1), repeat=2)
    return [{"dp": dp, "pp": pp} for dp, pp in every if dp * pp == ranks]


def my_share(mesh, inputs, targets):
    """Return the first five samples, or those after them; perhaps none."""
    dp, last = mesh.coords["dp"], mesh.shape["dp"] - 1
    mine = slice(5 * dp, None if dp == last else 5 * dp + 5)
    if len(targets[mine]) == 0:
        return None, None
    return {name: column[mine] for name, column in inputs.items()}, targets[mine]


def one_step(model, optimizer, inputs, targets, clip_norm=None) -> float:
    optimizer.zero_grad()
    loss = loss_fn(model(**inputs), targets)
    loss.backward()
    if clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return loss.item()


def assert_weights(comm, trainer, folder, reference, bound: float) -> None:
    trainer.save(folder)
    saved = Checkpoint(folder)
    weights = saved.read(saved.index["tensors"])["model"]
    comm.barrier()
    for name, p in reference.named_parameters():
        assert (weights[name] - p).abs().max() <= bound * p.abs().max(), name


def test_every_schedule_is_there() -> None:
    assert {schedule for schedule, _ in CASES} == set(SCHEDULES)


@pytest.mark.parametrize(("schedule", "way"), CASES, ids=str)
def test_weights_are_those_of_one_process(comm, tmp_path, schedule: str, way) -> None:
    if way.get("share") and not (comm.size == 1 or comm.shares_memory):
        pytest.skip("ranks share no memory")
    folder = shared_folder(comm, tmp_path)
    for layout in layouts(comm.size):
        mesh = pycomm.Mesh(comm, **layout)
        trainer = pycomm.ModelParallelTrainer(
            everything(comm, comm.rank), adamw, loss_fn, mesh, 3, schedule, **way
        )
        reference = everything(comm)
        single = adamw(list(reference.named_parameters()))
        for k, size in enumerate([8, 3, 11]):  # of 3 samples some pipelines get none
            inputs, targets = batch(size, k)
            loss = trainer.step(*my_share(mesh, inputs, targets))
            expected = one_step(reference, single, inputs, targets, way.get("clip_norm"))
            assert abs(loss - expected) <= 1e-10, layout
        assert_weights(comm, trainer, folder / str(mesh), reference, 1e-9)
        mesh.close()


def test_fit_and_evaluate_on_dicts(comm) -> None:
    data, found = Texts(11), []
    for layout in layouts(comm.size):
        mesh = pycomm.Mesh(comm, **layout)
        trainer = pycomm.ModelParallelTrainer(everything(comm), sgd, loss_fn, mesh, 2)
        trainer.fit(data, epochs=2, batch_size=4, progress=False)
        result = trainer.evaluate(data, batch_size=5)
        assert result["count"] == 11
        found.append(result["loss"])
        mesh.close()
    alone = comm.split(comm.rank)
    single = pycomm.ModelParallelTrainer(everything(comm), sgd, loss_fn, alone, 1)
    single.fit(data, epochs=2, batch_size=4, progress=False)
    assert found == pytest.approx([single.evaluate(data)["loss"]] * len(found), abs=1e-10)


def test_a_cut_through_a_tie_that_cannot_be_resolved(comm) -> None:
    if comm.size == 1:
        pytest.skip("there is no cut")
    model = everything(comm)
    del model.head.weight
    model.head.weight = nn.Parameter(model.words.weight.detach().t())
    mesh = pycomm.Mesh(comm, dp=None, pp=comm.size)
    with pytest.raises(
        ArgumentError, match=r"'words.weight' of shape \(11, 8\) in part 0 and 'head.weight' of"
    ) as caught:
        pycomm.ModelParallelTrainer(model, sgd, loss_fn, mesh)
    assert "make them one" in str(caught.value)


def test_more_stages_than_layers_in_every_pipeline(comm) -> None:
    mesh = pycomm.Mesh(comm, dp=None, pp=2 if comm.size % 2 == 0 else comm.size)
    stages = 20 * mesh.shape["pp"]
    with pytest.raises(ArgumentError, match=f"layers cannot be split into {stages} parts"):
        pycomm.ModelParallelTrainer(
            everything(comm), sgd, loss_fn, mesh, 2, "interleaved", stages_per_rank=20
        )


def test_a_sample_on_one_rank_only(comm) -> None:
    if comm.size == 1:
        pytest.skip("one rank cannot differ")
    sample = batch(2, 0)[0] if comm.rank == 0 else None
    with pytest.raises(MismatchError, match="sample or seed differ: rank 0 has .*in"):
        pycomm.ModelParallelTrainer(everything(comm), sgd, loss_fn, comm, sample=sample)


def test_a_batch_that_cannot_be_cut_is_told_on_every_rank(comm) -> None:
    def no_weight(targets) -> float:
        raise ValueError("no weight")

    inputs, targets = batch(6, 0)
    uneven = {**inputs, "mask": inputs["mask"][:3]}
    last = comm.size - 1
    for x, weight, match in (
        (uneven, None, r"rank 0: ArgumentError: the tensors of a batch have \[3, 6\] samples"),
        (inputs, no_weight, f"rank {last}: ValueError: no weight"),
    ):
        trainer = pycomm.ModelParallelTrainer(everything(comm), sgd, loss_fn, comm, weight=weight)
        with pytest.raises(ArgumentError, match=match):
            trainer.step(x, targets)
