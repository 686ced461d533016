"""A checkpoint is the old or the new one, whatever is killed when."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import pycomm
from pycomm.errors import ArgumentError
from pycomm.trainers import checkpoint
from pycomm.trainers.checkpoint import Checkpoint
from pycomm.trainers.named_state import random_state, restore_random


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def save(directory: Path, value: float, step: int = 1) -> None:
    part = {"model": {"w": torch.full((3,), value)}, "optimizer": {"state": {}, "groups": []}}
    checkpoint.save(directory, pycomm.init(), part, random_state(), {"step": step, "value": value})


def read(directory: Path) -> tuple[float, float]:
    saved = Checkpoint(directory)
    assert saved.random(0) is not None
    return saved.read(["w"])["model"]["w"][2].item(), saved.progress["value"]


def save_until_line(directory: Path, value: float, line: int, step: int) -> bool:
    """Save, but be killed before the given number of lines of checkpoint.py; say if it was."""
    left = line

    def count(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename != checkpoint.__file__:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                raise Killed
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        save(directory, value, step)
    except Killed:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("step", [1, 2])
def test_killed_between_any_two_lines(tmp_path, step: int) -> None:
    save(tmp_path, 0.0)
    outcomes, line, value = [], 0, 1.0
    while save_until_line(tmp_path, value, line, step):
        found = read(tmp_path)
        assert found in {(value, value), (value - 1, value - 1)}
        outcomes.append(found[0] == value)
        if found[0] != value:
            save(tmp_path, value)
        line, value = line + 1, value + 1
    assert line > 30
    assert set(outcomes) == {False, True}
    assert read(tmp_path) == (value, value)
    assert len(list(tmp_path.glob("step-*"))) == 1


def test_killed_before_the_first_is_complete(tmp_path) -> None:
    line = 0
    while save_until_line(tmp_path / str(line), 1.0, line, 1):
        if checkpoint.exists(tmp_path / str(line)):
            assert read(tmp_path / str(line)) == (1.0, 1.0)
        line += 1


def test_no_checkpoint(tmp_path) -> None:
    assert not checkpoint.exists(tmp_path)
    with pytest.raises(ArgumentError, match="holds no checkpoint"):
        Checkpoint(tmp_path / "missing")


def test_damaged_checkpoints(tmp_path) -> None:
    save(tmp_path, 1.0)
    folder = Checkpoint(tmp_path).folder
    index = (folder / "index.json").read_text()
    (folder / "part-0.pt").write_bytes(b"nothing")
    with pytest.raises(ArgumentError, match=r"part-0.pt' cannot be read"):
        read(tmp_path)
    (folder / "index.json").write_text(index.replace('"format": 1', '"format": 9'))
    with pytest.raises(ArgumentError, match="has format 9, this version of pycomm reads 1"):
        Checkpoint(tmp_path)
    (folder / "index.json").write_text("{")
    with pytest.raises(ArgumentError, match="is damaged"):
        Checkpoint(tmp_path)


def test_what_is_read_cannot_run_code(tmp_path) -> None:
    save(tmp_path, 1.0)

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"model": Evil()}, Checkpoint(tmp_path).folder / "part-0.pt")
    with pytest.raises(ArgumentError, match="cannot be read"):
        read(tmp_path)


def test_random_generators_are_restored(tmp_path) -> None:
    def draw() -> tuple:
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    save(tmp_path, 1.0)
    expected = draw()
    restore_random(Checkpoint(tmp_path).random(0))
    assert draw() == expected
    assert Checkpoint(tmp_path).random(1) is None


# ---- through a trainer --------------------------------------------------------------------------


def make(**arguments):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))

    def optimizer(named):
        decayed = [p for name, p in named if name.endswith("weight")]
        rest = [p for name, p in named if not name.endswith("weight")]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=0.05)

    loss_fn = nn.functional.cross_entropy
    return pycomm.DataParallelTrainer(model, optimizer, loss_fn, pycomm.init(), **arguments)


@pytest.fixture
def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(20, 3, generator=generator)
    return TensorDataset(x, torch.randint(0, 2, (20,), generator=generator))


def test_resuming_restores_everything(tmp_path, data) -> None:
    straight = make()
    loss = straight.fit(data, epochs=4, batch_size=6, progress=False)
    make().fit(data, steps=6, batch_size=6, checkpoint=tmp_path, progress=False)
    resumed = make()
    again = resumed.fit(data, epochs=4, batch_size=6, checkpoint=tmp_path, progress=False)
    assert again == loss
    assert resumed.progress == straight.progress
    for (name, a), b in zip(
        resumed.module.state_dict().items(), straight.module.state_dict().values()
    ):
        assert torch.equal(a, b), name
    for group in resumed.optimizer.param_groups:
        assert group["weight_decay"] == (0.1 if group is resumed.optimizer.param_groups[0] else 0)


def test_settings_of_groups_are_restored(tmp_path) -> None:
    trainer = make()
    trainer.optimizer.param_groups[1]["lr"] = 0.25
    trainer.save(tmp_path)
    other = make()
    other.load(tmp_path)
    assert [group["lr"] for group in other.optimizer.param_groups] == [0.05, 0.25]


def test_resuming_over_other_data(tmp_path, data) -> None:
    make().fit(data, steps=2, batch_size=6, checkpoint=tmp_path, progress=False)
    with pytest.raises(
        ArgumentError, match=r"stopped at batch 2 of epoch 0 with .*'batch_size': 6"
    ):
        make().fit(data, steps=4, batch_size=5, checkpoint=tmp_path, progress=False)


def test_nothing_is_done_twice(tmp_path, data, caplog) -> None:
    trainer = make()
    loss = trainer.fit(data, epochs=1, batch_size=6, progress=False)
    assert trainer.fit(data, epochs=1, batch_size=6, progress=False) == loss
    assert trainer.progress.step == 4
    assert "nothing to do in fit" in caplog.text


def test_saving_inside_a_group(tmp_path, data) -> None:
    trainer = make(accumulate=2)
    trainer.step(*data[:3])
    with pytest.raises(ArgumentError, match="save after 1 of accumulate=2 batches would lose"):
        trainer.save(tmp_path)
    with pytest.raises(ArgumentError, match="fit after 1 of accumulate=2 batches would lose"):
        trainer.fit(data, epochs=1, batch_size=4)
    trainer.step(*data[3:6])
    trainer.save(tmp_path)


def test_the_last_checkpoints_stay(tmp_path, data) -> None:
    make().fit(data, steps=5, batch_size=6, checkpoint=tmp_path, checkpoint_every=2, keep=2)
    steps = sorted(folder.name for folder in tmp_path.iterdir() if folder.is_dir())
    assert steps == ["step-00000004", "step-00000005"]
    assert Checkpoint(tmp_path).progress["step"] == 5


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"keep": 0, "checkpoint": "x"}, "keep=0 must be an integer ≥ 1"),
        ({"checkpoint_every": 0, "checkpoint": "x"}, "checkpoint_every=0 must be an integer"),
        ({"checkpoint_every": 3}, "checkpoint_every=3 needs checkpoint="),
    ],
)
def test_bad_saving(data, wrong, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        make().fit(data, steps=1, batch_size=6, **wrong)
