"""Threads, meters, the log of a run, and the table at its end."""

from __future__ import annotations

import io
import json
import os
import time
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

import pycomm
from pycomm.errors import ArgumentError
from pycomm.trainers.report import Log, Meter, print_rows
from pycomm.trainers.threads import share_cores


@pytest.fixture
def threads():
    """Leave torch's number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("ranks", "expected"), [(1, 8), (3, 2), (20, 1)])
@pytest.mark.usefixtures("threads")
def test_ranks_share_the_cores(monkeypatch, ranks: int, expected: int) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    share_cores(SimpleNamespace(local=SimpleNamespace(size=ranks)))
    assert torch.get_num_threads() == expected


@pytest.mark.usefixtures("threads")
def test_omp_num_threads_is_respected(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    share_cores(SimpleNamespace(local=SimpleNamespace(size=1)))
    assert torch.get_num_threads() == 3


def test_a_meter_separates_computing_communicating_and_idle() -> None:
    stats = SimpleNamespace(busy_s=5.0, idle_s=1.0, bytes_sent=100)
    meter = Meter(SimpleNamespace(rank=2, stats=stats))
    for _ in range(2):
        with meter:
            time.sleep(0.02)
            stats.busy_s += 0.01
            stats.idle_s += 0.004
            stats.bytes_sent += 7
            meter.samples += 3
        stats.busy_s += 1  # outside the meter
    row = meter.row()
    assert row["rank"] == 2
    assert row["bytes_sent"] == 14
    assert row["communicating_s"] == pytest.approx(0.012)
    assert row["idle_s"] == pytest.approx(0.008)
    assert 0.02 <= row["computing_s"] < 1
    total = row["computing_s"] + row["communicating_s"] + row["idle_s"]
    assert row["samples_per_s"] == pytest.approx(6 / total)


def test_a_meter_that_never_ran() -> None:
    assert Meter(pycomm.init()).row()["samples_per_s"] == 0


def test_the_table() -> None:
    row = {"samples_per_s": 1234.56, "computing_s": 1, "communicating_s": 0.5, "idle_s": 0.25}
    out = io.StringIO()
    rows = [{"rank": rank, "bytes_sent": 2_500_000, **row} for rank in range(2)]
    print_rows(rows, Console(file=out, width=100))
    text = out.getvalue()
    for word in ("samples/s", "computing", "communicating", "idle", "1234.6", "0.25", "2.5"):
        assert word in text


def test_metrics_of_steps_that_are_made_again_are_dropped(tmp_path) -> None:
    file = tmp_path / "deep" / "metrics.jsonl"
    with Log(0, 0, 3, file, progress=False) as log:
        for step in (1, 2, 3):
            log.step(step, 0, 0.5, 10)
    file.write_text(file.read_text() + '{"step": 4, "lo')  # killed while writing
    with Log(0, 2, 3, file, progress=False) as log:
        log.step(3, 1, 0.25, 10)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(r["step"], r["epoch"], r["loss"]) for r in records] == [
        (1, 0, 0.5),
        (2, 0, 0.5),
        (3, 1, 0.25),
    ]


def test_a_file_that_holds_something_else_is_kept(tmp_path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("my thoughts\n")
    with pytest.raises(ArgumentError, match="holds no metrics: name another file"):
        Log(0, 0, 1, file, progress=False)
    assert file.read_text() == "my thoughts\n"


def test_only_rank_0_writes(tmp_path, capfd) -> None:
    with Log(1, 0, 1, tmp_path / "metrics.jsonl", progress=True) as log:
        log.step(1, 0, 0.5, 10)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_rank_0_shows_progress(capfd) -> None:
    with Log(0, 1, 2, None, progress=True) as log:
        log.step(2, 0, 0.5, 10)
    shown = capfd.readouterr().err
    assert "2/2" in shown
    assert "loss=0.5000" in shown
    assert "samples_per_s=" in shown


@pytest.mark.parametrize("wrong", [{"accumulate": 0}, {"accumulate": 1.5}, {"clip_norm": 0.0}])
def test_bad_arguments(wrong) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(ArgumentError, match=f"{name}={value} must be"):
        pycomm.DataParallelTrainer(
            nn.Linear(1, 1), torch.optim.SGD, nn.functional.mse_loss, pycomm.init(), **wrong
        )
