"""What users may get wrong: each a clear error on all ranks, before anything has changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pycomm
from pycomm.errors import ArgumentError, MismatchError, UnsupportedError
from tests.training import one_thread as one_thread
from tests.training import shared_folder

X, Y = torch.arange(48.0).view(12, 4) / 48, torch.ones(12, 2)
DATA = TensorDataset(X, Y)


@pytest.fixture
def shared_path(comm, tmp_path) -> Path:
    return Path(shared_folder(comm, tmp_path))


def linear(inputs: int = 4) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(inputs, 2)


def sgd(named, **settings):
    return torch.optim.SGD([p for _, p in named], **{"lr": 0.1, **settings})


def adamw(named):
    return torch.optim.AdamW([p for _, p in named], lr=0.1)


def trainer(comm, module=None, optimizer=sgd, loss_fn=mse_loss, **options):
    module = linear() if module is None else module
    return pycomm.DataParallelTrainer(module, optimizer, loss_fn, comm, **options)


def fit(made, dataset=DATA, **options):
    return made.fit(dataset, **{"steps": 2, "batch_size": 4, "progress": False, **options})


FROZEN = linear().requires_grad_(False)
ELSEWHERE = list(linear().named_parameters())
CONSTRUCTED = [
    ({"module": 3}, r"module=3 is no torch\.nn\.Module"),
    ({"module": torch.nn.Tanh()}, "Tanh has nothing to train: none of its 0 parameters"),
    ({"module": FROZEN}, "Linear has nothing to train: none of its 2 parameters requires"),
    ({"optimizer": None}, r"optimizer=None is no function that makes the optimizer: pass lambda"),
    ({"optimizer": sgd(ELSEWHERE)}, "is no function that makes the optimizer"),
    ({"optimizer": lambda named: None}, r"optimizer\(…\) returned None, which is no torch\.optim"),
    ({"optimizer": lambda named: sgd(ELSEWHERE)}, "2 parameters of SGD are not those of the mod"),
    ({"optimizer": lambda named: sgd(named, lr=-1)}, "refused its values: Invalid learning rate"),
    ({"loss_fn": torch.nn.MSELoss}, r"loss_fn=MSELoss is a class: pass MSELoss\(\)"),
    ({"accumulate": True}, "accumulate=True must be an integer ≥ 1"),
    ({"clip_norm": "1"}, "clip_norm='1' must be positive, or None"),
    ({"weight": 3}, "weight=3 is no function"),
    ({"rates": 0.1}, "rates=0.1 is no function: pass step → factor"),
    ({"checksums": 1.5}, "checksums=1.5 must be int or None"),
    ({"check_finite": "yes"}, "check_finite='yes' must be True or False"),
    ({"bucket_bytes": 0}, "bucket_bytes=0 must be an integer ≥ 1"),
    ({"bucket_bytes": "25"}, "bucket_bytes='25' must be int"),
    ({"shard": "yes"}, "shard='yes' must be True or False or None"),
    ({"share": 2}, "share=2 must be True or False"),
    ({"batch_dims": {"nope": 0}}, "no module is called 'nope'"),
    ({"batch_dims": {"": "x"}}, "'x' is no dimension, nor None"),
    ({"algorithm": "ring", "shard": True}, "algorithm='ring' is for whole gradients: leave out"),
]


@pytest.mark.parametrize(("wrong", "match"), CONSTRUCTED)
def test_wrong_arguments(comm, wrong, match: str) -> None:
    with pytest.raises(ArgumentError, match=rf"rank \d: .*{match}"):
        trainer(comm, **wrong)
    comm.barrier()


def test_wrong_communicator() -> None:
    with pytest.raises(ArgumentError, match=r"comm=2 is no Communicator: pass pycomm\.init\(\)"):
        trainer(2)


def test_optimizers_that_run_the_model(comm) -> None:
    with pytest.raises(UnsupportedError, match="rank 0: LBFGS runs the model several times"):
        trainer(comm, optimizer=lambda named: torch.optim.LBFGS([p for _, p in named]))


def test_a_rank_that_is_wrong_alone_is_named_on_all(comm) -> None:
    last = comm.size - 1
    with pytest.raises(ArgumentError, match=f"rank {last}: module=3 is no"):
        trainer(comm, 3 if comm.rank == last else None)


DIFFERENT = [
    ({"bucket_bytes": 16}, r"bucket_bytes differ: rank 0 has 26214400, rank 1 has 16"),
    ({"compression": "int8"}, "compression differ: rank 0 has None, rank 1 has int8"),
    ({"algorithm": "ring"}, "algorithm differ: rank 0 has None, rank 1 has ring"),
    ({"checksums": 1}, "checksums differ: rank 0 has None, rank 1 has 1"),
    ({"rates": lambda step: 1.0}, "rates differ: rank 0 has None, rank 1 has a function"),
    ({"optimizer": adamw}, "kinds of optimizers differ: rank 0 has SGD, rank 1 has AdamW"),
    ({"optimizer": lambda named: sgd(named, lr=0.2)}, "settings of optimizers differ: .*'lr'"),
    ({"optimizer": lambda named: sgd(named[::-1])}, r"orders .*\['bias', 'weight'\]"),
    ({"module": linear(5)}, r"models differ: rank 0 has 'weight' .*\(2, 4\).*rank 1"),
]


@pytest.mark.parametrize(("other", "match"), DIFFERENT)
def test_ranks_that_differ(comm, other, match: str) -> None:
    if comm.size == 1:
        pytest.skip("one rank cannot differ")
    with pytest.raises(MismatchError, match=match):
        trainer(comm, **(other if comm.rank == 1 else {}))


RETURNED = [
    ({"loss_fn": lambda o, t: (o - t) ** 2}, r"loss_fn returned torch.float32 of shape \(12, 2\)"),
    ({"loss_fn": lambda o, t: 1.0}, r"loss_fn returned 1.0 \(float\)"),
    ({"loss_fn": lambda o, t: torch.tensor(1.0)}, "that does not depend on the parameters"),
    ({"loss_fn": lambda o, t: mse_loss(o, t) * 1j}, "loss_fn returned torch.complex64"),
    ({"weight": lambda t: t[0]}, r"weight\(targets\) is tensor\(\[1., 1.\]\)"),
    ({"weight": lambda t: -1}, r"weight\(targets\) is -1"),
    ({"rates": lambda step: float("nan")}, r"rates\(0\) is nan"),
]


@pytest.mark.parametrize(("wrong", "match"), RETURNED)
def test_functions_that_return_something_else(comm, wrong, match: str) -> None:
    made = trainer(comm, **wrong)
    before = [p.detach().clone() for p in made.module.parameters()]
    with pytest.raises(ArgumentError, match=rf"{match}.* on rank {comm.rank}: (it )?must"):
        made.step(X, Y)
    assert all(torch.equal(p, b) for p, b in zip(made.module.parameters(), before))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


FITTED = [
    ({"dataset": TensorDataset(X[:0], Y[:0])}, r"the dataset \(TensorDataset\) is empty"),
    ({"dataset": Stream()}, "a dataset must have a length and samples by number, Stream has not"),
    ({"dataset": DataLoader(DATA)}, r"DataLoader has not: pass its \.dataset"),
    ({"epochs": -1}, "epochs=-1 must be an integer ≥ 0"),
    ({"steps": 1.5}, "steps=1.5 must be an integer ≥ 0"),
    ({"batch_size": "8"}, "batch_size='8' must be an integer ≥ 1"),
    ({"keep": None}, "keep=None must be an integer ≥ 1"),
    ({"workers": 1.5}, "workers=1.5, .*: a number ≥ 0"),
    ({"metrics": 3}, "metrics=3 must be a path"),
    ({"checkpoint": 3}, "checkpoint=3 must be a path"),
    ({"checkpoint": __file__}, "checkpoint='.*' cannot be written: .*File exists"),
]


@pytest.mark.parametrize(("wrong", "match"), FITTED)
def test_wrong_arguments_of_fit(comm, wrong, match: str) -> None:
    made = trainer(comm)
    with pytest.raises(ArgumentError, match=rf"rank \d: .*{match}"):
        fit(made, **wrong)
    assert made.progress.step == 0
    assert fit(made) is not None  # nothing was left half done


EVALUATED = [
    ({"batch_size": 1.5}, "batch_size=1.5 must be an integer ≥ 1"),
    ({"metrics": [len]}, "metrics=.* must be dict"),
    ({"metrics": {"a": 3}}, "a=3 is no function"),
    ({"metrics": {"a": lambda o, t: o}}, "metric 'a' returned tensor.* on rank"),
]


@pytest.mark.parametrize(("wrong", "match"), EVALUATED)
def test_wrong_arguments_of_evaluate(comm, wrong, match: str) -> None:
    with pytest.raises(ArgumentError, match=rf"(?s){match}"):
        trainer(comm).evaluate(DATA, **wrong)


def test_fewer_samples_than_ranks_are_shares_like_others(comm) -> None:
    assert fit(trainer(comm), batch_size=1) is not None


def index_of(folder: Path) -> Path:
    return folder / (folder / "latest").read_text() / "index.json"


def edit(folder: Path, **changes) -> None:
    file = index_of(folder)
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


DAMAGES = [
    (lambda folder: index_of(folder).write_text("[]"), "is damaged .TypeError"),
    (
        lambda folder: index_of(folder).write_text('{"format": 1}'),
        "is damaged .KeyError: 'progress",
    ),
    (lambda folder: edit(folder, progress={"epok": 1}), "is damaged .TypeError: .*epok"),
    (lambda folder: (folder / "latest").write_bytes(b"\xff\xfe"), "is damaged .UnicodeDecodeErr"),
    (lambda folder: (folder / "latest").write_text("step-9"), "is damaged .FileNotFoundError"),
    (lambda folder: torch.save({}, index_of(folder).with_name("part-0.pt")), "is damaged .KeyErr"),
]


@pytest.mark.parametrize(("damage", "match"), DAMAGES)
def test_damaged_checkpoints(comm, shared_path, damage, match: str) -> None:
    made = trainer(comm)
    made.save(shared_path)
    comm.barrier()
    if comm.rank == 0:
        damage(shared_path)
    comm.barrier()
    with pytest.raises(ArgumentError, match=rf"rank \d: checkpoint '.*' {match}.*older save"):
        fit(made, checkpoint=shared_path)
    assert made.progress.step == 0


def test_the_checkpoint_of_another_optimizer(comm, shared_path) -> None:
    trainer(comm).save(shared_path)
    with pytest.raises(ArgumentError, match="has the state of SGD, this trainer has AdamW"):
        trainer(comm, optimizer=adamw).load(shared_path)


def test_a_checkpoint_that_may_not_be_read(comm, shared_path, monkeypatch) -> None:
    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    if comm.rank == 0:
        monkeypatch.setattr(Path, "is_file", forbidden)
    with pytest.raises(ArgumentError, match=r"rank 0: checkpoint='.*' cannot be read: .*denied"):
        fit(trainer(comm), checkpoint=shared_path)
