"""A model that one rank has no memory for trains on several; each has a limit of the system's."""

from __future__ import annotations

import json
import textwrap

import pytest

from tests.launch import mpirun

pytestmark = pytest.mark.mpirun

PROGRAM = """
import json, resource, sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import mse_loss

import pycomm
from pycomm.errors import ArgumentError

LIMIT, WIDTH, LAYERS = 192 << 20, 1024, 30  # of 4 MiB; with AdamW 16 MiB each
torch.set_num_threads(1)
comm = pycomm.init()
adamw = lambda named: torch.optim.AdamW(named, lr=1e-3, foreach=False)
layers = lambda: [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)]
x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))
small = lambda: [nn.Linear(4, 4) for _ in range(comm.size)]
first = pycomm.ModelParallelTrainer(small, adamw, mse_loss, comm, 2, sample=x[:2, :4], shard=False)
first.step(x[:, :4], x[:, :4])  # everything is loaded and started now
status = Path("/proc/self/status").read_text()
used = int(next(l for l in status.splitlines() if l.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT + (128 << 20), -1))

with torch.device("meta"):
    whole = nn.Sequential(*layers())
try:
    pycomm.DataParallelTrainer(whole, adamw, mse_loss, comm, memory_limit=LIMIT, shard=False)
except ArgumentError as error:
    refused = str(error)
try:
    kept = [torch.ones(WIDTH, WIDTH) for _ in range(4 * LAYERS)]
    room = True
except RuntimeError:
    kept, room = None, False

torch.manual_seed(3)
trainer = pycomm.ModelParallelTrainer(
    layers, adamw, mse_loss, comm, 2, sample=x[:2], balance="memory", memory_limit=LIMIT,
    shard=False,
)
losses = [trainer.step(x, x) for _ in range(3)]
own = sum(p.nbytes for p in trainer.module.parameters())
rows = comm.all_gather_object([refused, room, own >> 20, losses[0] > losses[-1]])
if comm.rank == 0:
    print(json.dumps(rows))
"""

PLAIN_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""Memory that is given back counts no more, and threads reserve none."""


def test_a_model_beyond_one_ranks_limit_trains_on_three() -> None:
    done = mpirun(3, "-c", textwrap.dedent(PROGRAM), timeout=150, env=PLAIN_MALLOC)
    assert done.returncode == 0, done.stdout + done.stderr
    refused, room, trained_mb, learnt = zip(*json.loads(done.stdout))
    assert len(refused) == 3
    assert "memory_limit=192.00 MiB is not enough on 3 of 3 ranks" in refused[0]
    assert "needs 480.00 MiB (parameters 120.00 MiB, gradients 120.00 MiB" in refused[0]
    assert "split over 3 ranks by ModelParallelTrainer it fits" in refused[0]
    assert room == (False, False, False)
    assert trained_mb == (40, 40, 40)
    assert learnt == (True, True, True)
