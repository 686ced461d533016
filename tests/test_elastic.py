"""Under ULFM a rank that is killed costs the step under way: the others go on without it."""

from __future__ import annotations

import json
import re

import pytest

from tests.hosts.network import is_open_mpi
from tests.launch import mpirun

PROGRAM = """
import os, shutil, sys, time, torch
import pycomm
from torch.utils.data import TensorDataset

folder, metrics, dies, at = sys.argv[1:]
comm = pycomm.init()
torch.manual_seed(0)
torch.set_num_threads(1)

class Dies(torch.nn.Module):
    def forward(self, x):
        if trainer.progress.step == int(at) and comm.rank == int(dies):
            shutil.copytree(folder, folder + "-then")
            os.kill(os.getpid(), 9)
        times.append(time.perf_counter())
        return x

times = []
module = torch.nn.Sequential(Dies(), torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
adam = lambda named: torch.optim.AdamW([p for _, p in named], lr=0.05)
trainer = pycomm.DataParallelTrainer(module, adam, torch.nn.functional.cross_entropy, comm)
x = torch.randn(120, 3, generator=torch.Generator().manual_seed(1))
data = TensorDataset(x, (x.sum(1) > 0).long())
saved = {"checkpoint": folder, "checkpoint_every": 5, "metrics": metrics}
trainer.fit(data, epochs=1, batch_size=12, progress=False, **saved)
longest = max(b - a for a, b in zip(times, times[1:]))
sys.stdout.write(f"rank {trainer.comm.rank} of {trainer.comm.size}: {longest:.3f} s\\n")
"""
ULFM = ["--with-ft", "ulfm"]


def losses(file) -> dict[int, float]:
    records = map(json.loads, file.read_text().splitlines())
    return {record["step"]: record["loss"] for record in records}


@pytest.mark.mpirun
@pytest.mark.parametrize("dies", [2, 0])
def test_the_others_go_on_as_fewer_ranks_would(tmp_path, dies: int) -> None:
    def run(ranks: int, name: str, dies: int, options=()):
        files = [tmp_path / name, tmp_path / f"{name}.jsonl"]
        result = mpirun(ranks, "-c", PROGRAM, *files, str(dies), "5", timeout=120, options=options)
        return result, re.findall(r"rank (\d) of (\d)", result.stdout)

    if not is_open_mpi():
        pytest.skip("MPICH ends all ranks when one dies")
    result, ended = run(3, "elastic", dies, ULFM)
    assert sorted(ended) == [("0", "2"), ("1", "2")], result.stderr
    assert re.search(rf"rank {dies}.*; 2 ranks go on from step 5", result.stderr)
    found = losses(tmp_path / "elastic.jsonl")
    assert list(found) == list(range(1, 11))
    result, ended = run(2, "elastic-then", -1)
    assert sorted(ended) == [("0", "2"), ("1", "2")], result.stderr
    expected = losses(tmp_path / "elastic-then.jsonl")
    assert expected == {step: loss for step, loss in found.items() if step > 5}


@pytest.mark.mpirun
def test_without_ulfm_the_job_ends(tmp_path) -> None:
    files = [tmp_path / "saved", tmp_path / "metrics"]
    result = mpirun(3, "-c", PROGRAM, *files, "1", "5", timeout=120)
    assert result.returncode != 0
    assert "of 2" not in result.stdout
