"""A signal ends training after the step under way, saved; the same call goes on from there."""

from __future__ import annotations

import json
import re

import pytest

from tests.launch import mpirun

PROGRAM = """
import os, signal, sys, torch
import pycomm
from torch.utils.data import TensorDataset

comm = pycomm.init()
torch.set_num_threads(1)

class Asking(torch.nn.Module):
    def forward(self, x):
        if self.training and trainer.progress.step == int(at) and comm.rank == comm.size - 1:
            target = os.getpid() if how == "rank" else os.getsid(0)  # the launcher
            os.kill(target, signal.SIGTERM if how == "rank" else signal.SIGUSR1)
        return x

for run in sys.argv[1:]:
    folder, steps, at, how = run.split(",")
    torch.manual_seed(0)
    module = torch.nn.Sequential(Asking(), torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    adam = lambda named: torch.optim.AdamW([p for _, p in named])
    trainer = pycomm.DataParallelTrainer(module, adam, torch.nn.functional.cross_entropy, comm)
    x = torch.randn(40 * int(steps), 3, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(x, (x.sum(1) > 0).long())
    files = {"checkpoint": folder, "metrics": folder + ".jsonl"}
    trainer.fit(data, epochs=1, batch_size=40, progress=False, **files)
    print(f"rank {comm.rank}: stopped={trainer.stopped} step={trainer.progress.step}")
"""
WHOLE = [("0", "False", "20"), ("1", "False", "20")]


def run(*runs: str) -> list[tuple[str, str, str]]:
    """Train for each "FOLDER,STEPS,AT,HOW" in one job; return rank, stopped and last step."""
    result = mpirun(2, "-c", PROGRAM, *runs, timeout=120)
    assert result.returncode == 0, result.stderr
    return sorted(re.findall(r"rank (\d): stopped=(\w+) step=(\d+)", result.stdout))


def losses(file) -> list[float]:
    return [json.loads(line)["loss"] for line in file.read_text().splitlines()]


def assert_stopped(ended: list[tuple[str, str, str]], steps: int) -> None:
    """Check that both ranks stopped, after the same step, before the last."""
    assert [stopped for _, stopped, _ in ended] == ["True", "True"]
    assert ended[0][2] == ended[1][2]
    assert 6 <= int(ended[0][2]) < steps  # a signal through the launcher takes its time


@pytest.mark.mpirun
def test_a_signal_saves_and_the_same_call_goes_on(tmp_path) -> None:
    ended = run(f"{tmp_path}/whole,20,-1,rank", f"{tmp_path}/stopped,20,5,rank")
    assert [e for e in ended if e[1] == "False"] == WHOLE
    assert_stopped([e for e in ended if e[1] == "True"], 20)
    assert run(f"{tmp_path}/stopped,20,-1,rank") == WHOLE
    assert losses(tmp_path / "stopped.jsonl") == losses(tmp_path / "whole.jsonl")


@pytest.mark.mpirun
def test_launchers_pass_a_signal_on(tmp_path) -> None:
    assert_stopped(run(f"{tmp_path}/stopped,100,5,launcher"), 100)
