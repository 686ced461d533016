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

folder, metrics, at, how = sys.argv[1:]
comm = pycomm.init()
torch.manual_seed(0)
torch.set_num_threads(1)

class Asking(torch.nn.Module):
    def forward(self, x):
        if self.training and trainer.progress.step == int(at) and comm.rank == comm.size - 1:
            target = os.getpid() if how == "rank" else os.getsid(0)  # the launcher
            os.kill(target, signal.SIGTERM if how == "rank" else signal.SIGUSR1)
        return x

module = torch.nn.Sequential(Asking(), torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
adam = lambda named: torch.optim.AdamW([p for _, p in named])
trainer = pycomm.DataParallelTrainer(module, adam, torch.nn.functional.cross_entropy, comm)
generator = torch.Generator().manual_seed(1)
x = torch.randn(4000, 3, generator=generator)
data = TensorDataset(x, (x.sum(1) > 0).long())
trainer.fit(data, epochs=1, batch_size=40, checkpoint=folder, metrics=metrics, progress=False)
print(f"rank {comm.rank}: stopped={trainer.stopped} step={trainer.progress.step}")
"""


def losses(file) -> list[float]:
    return [json.loads(line)["loss"] for line in file.read_text().splitlines()]


@pytest.mark.mpirun
@pytest.mark.parametrize("how", ["rank", "launcher"])
def test_a_signal_saves_and_the_same_call_goes_on(tmp_path, how: str) -> None:
    def run(name: str, at: int):
        files = [tmp_path / name, tmp_path / f"{name}.jsonl"]
        result = mpirun(2, "-c", PROGRAM, *files, str(at), how, timeout=120)
        assert result.returncode == 0, result.stderr
        return re.findall(r"rank (\d): stopped=(\w+) step=(\d+)", result.stdout)

    whole = run("whole", at=-1)
    assert sorted(whole) == [("0", "False", "100"), ("1", "False", "100")]
    first = sorted(run("stopped", at=5))
    assert [stopped for _, stopped, _ in first] == ["True", "True"]
    assert first[0][2] == first[1][2]
    assert 6 <= int(first[0][2]) < 100  # a signal through the launcher takes its time
    assert sorted(run("stopped", at=-1)) == sorted(whole)
    assert losses(tmp_path / "stopped.jsonl") == losses(tmp_path / "whole.jsonl")
