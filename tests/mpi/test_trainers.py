"""fit, evaluate, checkpoints and reports on several ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import pycomm
from pycomm.errors import ArgumentError, CommError
from pycomm.trainers import checkpoint
from tests.training import (
    adamw,
    assert_same_bits,
    conv,
    dense,
    images,
    named,
    samples,
    sgd,
    shared_folder,
    unpadded,
    unpadded_loss,
)
from tests.training import one_thread as one_thread


def with_dropout() -> nn.Module:
    model = conv(0)
    return nn.Sequential(*model[:4], nn.Dropout(0.3), *model[4:])


def test_interrupted_data_parallel_training_goes_on_with_the_same_bits(comm, tmp_path) -> None:
    data = TensorDataset(*images(23, 9))

    def run(steps: list[int], folder: Path) -> tuple[nn.Module, float]:
        torch.manual_seed(100 + comm.rank)
        for end in steps:
            torch.randn(end * (len(steps) > 1 and end != steps[0]))  # random state is restored too
            trainer = pycomm.DataParallelTrainer(
                with_dropout(), adamw, cross_entropy, comm, accumulate=2
            )
            loss = trainer.fit(
                data, steps=end, batch_size=5, seed=3, checkpoint=folder, progress=False
            )
        return trainer.module, loss

    folder = shared_folder(comm, tmp_path)
    straight, loss = run([8], folder / "straight")
    resumed, again = run([2, 4, 7, 8], folder / "resumed")
    assert loss == again
    assert_same_bits(resumed, straight)


def test_interrupted_model_parallel_training_goes_on_with_the_same_bits(comm, tmp_path) -> None:
    data = TensorDataset(*samples(23, 9))

    def run(steps: list[int], folder: Path):
        torch.manual_seed(100 + comm.rank)
        for end in steps:
            torch.randn(end * (end != steps[0]))  # the random state is restored, too
            model = dense(0).insert(4, nn.Dropout(0.3))
            trainer = pycomm.ModelParallelTrainer(model, adamw, cross_entropy, comm, 3)
            loss = trainer.fit(data, steps=end, batch_size=5, checkpoint=folder, progress=False)
        return named(comm, trainer.module), loss

    folder = shared_folder(comm, tmp_path)
    straight, loss = run([8], folder / "straight")
    resumed, again = run([2, 5, 7, 8], folder / "resumed")
    assert loss == again
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name


def test_evaluate_data_parallel(comm) -> None:
    x, t = images(11, 1, torch.float64)
    model = conv(comm.rank, torch.float64)
    model.insert(1, nn.BatchNorm2d(3).double())
    model[3].eval()
    trainer = pycomm.DataParallelTrainer(model, sgd, unpadded_loss, comm, weight=unpadded)
    found = trainer.evaluate(
        TensorDataset(x, t),
        batch_size=4,
        metrics={"accuracy": lambda y, t: (y.argmax(-1) == t).double().mean()},
    )
    assert model[0].training
    assert model[1].training
    assert not model[3].training
    with torch.no_grad():
        output = model.eval()(x)
    assert found["count"] == 11
    assert abs(found["loss"] - unpadded_loss(output, t).item()) < 1e-13
    assert abs(found["metrics"]["accuracy"] - (output.argmax(-1) == t).double().mean()) < 1e-13
    assert len(set(map(str, comm.all_gather_object(found)))) == 1


def test_evaluate_model_parallel(comm) -> None:
    x, t = samples(11, 1)
    trainer = pycomm.ModelParallelTrainer(dense(0), sgd, cross_entropy, comm, 3)
    found = trainer.evaluate(
        TensorDataset(x, t),
        batch_size=4,
        metrics={"accuracy": lambda y, t: (y.argmax(-1) == t).double().mean()},
    )
    output = dense(0)(x)
    assert trainer.module.training
    assert found["count"] == 11
    assert abs(found["loss"] - cross_entropy(output, t).item()) < 1e-13
    assert abs(found["metrics"]["accuracy"] - (output.argmax(-1) == t).double().mean()) < 1e-13
    assert len(set(map(str, comm.all_gather_object(found)))) == 1
    assert all(p.grad is None for p in trainer.module.parameters())


def test_metrics_and_report(comm, tmp_path) -> None:
    folder = shared_folder(comm, tmp_path)
    file = folder / "metrics.jsonl"
    trainer = pycomm.DataParallelTrainer(conv(0), sgd, cross_entropy, comm)
    data = TensorDataset(*images(13, 2))
    loss = trainer.fit(data, epochs=2, batch_size=6, metrics=file, progress=False)
    comm.barrier()
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r["epoch"] for r in records] == [0, 0, 0, 1, 1, 1]
    assert records[-1]["loss"] == loss
    assert all(r["samples_per_s"] > 0 for r in records)
    rows = trainer.report()
    assert [row["rank"] for row in rows] == list(range(comm.size))
    for row in rows:
        assert row["samples_per_s"] > 0
        assert row["computing_s"] > 0
        assert row["communicating_s"] >= 0
        assert row["idle_s"] >= 0
        assert (row["bytes_sent"] > 0) == (comm.size > 1)


def test_writing_that_fails_on_one_rank_fails_on_all(comm, tmp_path, monkeypatch) -> None:
    folder = shared_folder(comm, tmp_path)
    trainer = pycomm.DataParallelTrainer(conv(0), sgd, cross_entropy, comm)
    trainer.save(folder)
    before = (folder / "latest").read_text()
    comm.barrier()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "write_atomically", fail)
    with pytest.raises(
        CommError, match="rank 0: the checkpoint in .* cannot be written: no space left"
    ):
        trainer.save(folder)
    monkeypatch.undo()
    comm.barrier()
    assert (folder / "latest").read_text() == before
    trainer.load(folder)


def test_one_rank_that_cannot_write(comm, tmp_path, monkeypatch) -> None:
    folder = shared_folder(comm, tmp_path)
    trainer = pycomm.ModelParallelTrainer(dense(0), sgd, cross_entropy, comm, 2)
    trainer.save(folder)
    expected = named(comm, trainer.module)
    last = comm.size - 1
    trainer.step(*samples(4, 1))
    write = checkpoint.write_atomically

    def fail(path, content):
        if path.name == f"part-{last}.pt":
            raise OSError("no space left")
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_atomically", fail)
    with pytest.raises(
        CommError, match=f"rank {last}: the checkpoint in .* cannot be written: no space.*unchanged"
    ):
        trainer.save(folder)
    monkeypatch.undo()
    trainer.load(folder)
    for name, value in named(comm, trainer.module).items():
        assert torch.equal(value, expected[name])
    trainer.save(folder)
    comm.barrier()
    assert len(list(folder.glob("step-*"))) == 1


def test_one_rank_that_cannot_read(comm, tmp_path) -> None:
    folder = shared_folder(comm, tmp_path)
    trainer = pycomm.ModelParallelTrainer(dense(0), sgd, cross_entropy, comm, 2)
    trainer.save(folder)
    last = comm.size - 1
    if comm.rank == 0:
        next(folder.glob(f"step-*/part-{last}.pt")).unlink()
    comm.barrier()
    with pytest.raises(ArgumentError, match=rf"rank {last}: '.*part-{last}.pt' cannot be read"):
        trainer.load(folder)


def test_loading_another_model(comm, tmp_path) -> None:
    folder = shared_folder(comm, tmp_path)
    pycomm.ModelParallelTrainer(dense(0), sgd, cross_entropy, comm).save(folder)

    def load(model: nn.Sequential, match: str) -> None:
        trainer = pycomm.ModelParallelTrainer(model, sgd, cross_entropy, comm, balance="params")
        with pytest.raises(ArgumentError, match=match):
            trainer.load(folder)

    load(dense(0).append(nn.Linear(4, 4).double()), "is of another model: it has no '7.weight'")
    load(dense(0)[:6], "it has '6.weight', which this model has not")
    wide = dense(0)
    wide[0] = nn.Linear(5, 8).double()
    load(wide, r"'0.weight' is \('torch.float64', \[8, 6\]\) there and .*\[8, 5\]")
    with pytest.raises(ArgumentError, match=r"holds no checkpoint .*check the path"):
        pycomm.ModelParallelTrainer(dense(0), sgd, cross_entropy, comm).load(folder / "nowhere")


@pytest.mark.parametrize("first", ["data", "model"])
def test_a_checkpoint_fits_the_other_trainer(comm, tmp_path, first: str) -> None:
    def trainer(kind: str):
        if kind == "data":
            return pycomm.DataParallelTrainer(dense(5), adamw, cross_entropy, comm)
        return pycomm.ModelParallelTrainer(dense(5), adamw, cross_entropy, comm, 2)

    folder = shared_folder(comm, tmp_path)
    data = TensorDataset(*samples(12, 9))
    one, other = trainer(first), trainer("model" if first == "data" else "data")
    one.fit(data, epochs=1, batch_size=4, checkpoint=folder, progress=False)
    other.load(folder)
    assert other.progress == one.progress
    loss, again = one.fit(data, epochs=2, batch_size=4), other.fit(data, epochs=2, batch_size=4)
    assert abs(loss - again) < 1e-9
    for a, b in zip(named(comm, one.module).values(), named(comm, other.module).values()):
        assert (a - b).abs().max() < 1e-9


def test_a_checkpoint_from_another_number_of_ranks(comm, tmp_path) -> None:
    folder = shared_folder(comm, tmp_path)
    alone = comm.split(comm.rank)
    data = TensorDataset(*samples(12, 9))
    if comm.rank == 0:
        one = pycomm.ModelParallelTrainer(dense(0), adamw, cross_entropy, alone, 2, shard=False)
        one.fit(data, epochs=1, batch_size=4, checkpoint=folder, progress=False)
        expected = {n: p.detach() for n, p in one.module.named_parameters()}
        moments = one.optimizer.state[next(one.module.parameters())]["exp_avg"]
    comm.barrier()
    trainer = pycomm.ModelParallelTrainer(dense(1), adamw, cross_entropy, comm, 2, shard=False)
    trainer.load(folder)
    weights = named(comm, trainer.module)
    assert trainer.progress.step == 3
    if comm.rank == 0:
        assert all(torch.equal(weights[name], value) for name, value in expected.items())
        state = trainer.optimizer.state[next(trainer.module.parameters())]
        assert torch.equal(state["exp_avg"], moments)
        assert float(state["step"]) == 3
    alone.close()


def test_files_that_cannot_be_written_are_said_on_all_ranks_before_training(comm, tmp_path) -> None:
    folder = shared_folder(comm, tmp_path)
    file = folder / "file"
    if comm.rank == 0:
        file.write_text("not metrics")
    comm.barrier()
    data = TensorDataset(*images(8, 1))
    trainer = pycomm.DataParallelTrainer(conv(0), sgd, cross_entropy, comm)
    for wrong in ({"metrics": file}, {"metrics": file / "x"}, {"checkpoint": file / "x"}):
        with pytest.raises(ArgumentError, match=f"rank 0: {next(iter(wrong))}="):
            trainer.fit(data, steps=1, batch_size=4, progress=False, **wrong)
    assert trainer.progress.step == 0
