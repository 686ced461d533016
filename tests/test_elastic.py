"""Under ULFM a rank that is killed costs the step under way: the others go on without it."""

from __future__ import annotations

import json
import re

import pytest

from tests.hosts.network import is_open_mpi
from tests.launch import mpirun

PROGRAM = """
import json, os, shutil, sys, torch
import pycomm
import pycomm.neighbours
from pycomm.parallel.copies import Copies
from pycomm.parallel.flat_parameters import FlatParameters
from pycomm.parallel.fused_update import _Table
from pycomm.parallel.generation import Generation
from pycomm.parallel.whole_update import WholeUpdate
from pycomm.transport.mpi import MpiWire

folder, how = sys.argv[1], json.loads(sys.argv[2])
if "ranks_on_a_host" in how:  # as if it were several
    name, *rest = pycomm.neighbours.host_identity()
    host = int(os.environ["OMPI_COMM_WORLD_RANK"]) // how["ranks_on_a_host"]
    pycomm.neighbours.host_identity = lambda: (f"{name}-{host}", *rest)
comm = pycomm.init()
torch.manual_seed(0)
torch.set_num_threads(1)
began_as, trainer, then = comm.rank, None, folder + "-then"
pids = comm.all_gather_object(os.getpid())

def die(where):
    for ranks, step, there in how["deaths"]:
        if trainer and (ranks[0], step, there) == (began_as, trainer.progress.step, where):
            shutil.rmtree(then, ignore_errors=True)
            shutil.copytree(folder, then)
            for rank in reversed(ranks):
                os.kill(pids[rank], 9)

def then_die(cls, method, where):
    whole = getattr(cls, method)
    def called(*args, **options):
        result = whole(*args, **options)
        die(where)
        return result
    setattr(cls, method, called)

def first_die(cls, method, where):
    whole = getattr(cls, method)
    def called(*args, **options):
        die(where)
        return whole(*args, **options)
    setattr(cls, method, called)

def write_half(self, tensors):
    write(self, tensors[: len(tensors) // 2])
    die("copying")
    write(self, tensors)

write, Generation.write = Generation.write, write_half
then_die(_Table, "update", "own pieces updated")
then_die(Copies, "_send", "copies sent")
first_die(MpiWire, "shrink", "before the shrink")
then_die(MpiWire, "shrink", "after the shrink")
then_die(pycomm.neighbours.Neighbours, "_watch", "survivors meet")
then_die(Generation, "put_together", "copies are read")
then_die(FlatParameters, "__init__", "rebuilding")
first_die(WholeUpdate, "__init__", "rebuilding")
first_die(WholeUpdate, "recover", "state is taken over")
then_die(pycomm.DataParallelTrainer, "survive", "recovered")

class Dies(torch.nn.Module):
    def forward(self, x):
        die("forward")
        return x

RULES = {
    "adamw": lambda named: torch.optim.AdamW(named, lr=0.05),
    "sgd": lambda named: torch.optim.SGD([p for _, p in named], lr=0.1, momentum=0.9),
    "rmsprop": lambda named: torch.optim.RMSprop([p for _, p in named], lr=0.01),
}

def make(comm):
    layers = torch.nn.Linear(3, 128), torch.nn.Tanh(), torch.nn.Linear(128, 128), torch.nn.Tanh()
    module = torch.nn.Sequential(Dies(), *layers, torch.nn.Linear(128, 2))
    loss = torch.nn.functional.cross_entropy
    return pycomm.DataParallelTrainer(module, RULES[how["rule"]], loss, comm, **how["options"])

def fit(trainer, folder):
    saved = {"checkpoint": folder, "checkpoint_every": 1, "keep": 2, "metrics": folder + ".jsonl"}
    trainer.fit(data, epochs=1, batch_size=12, progress=False, **saved)

x = torch.randn(120, 3, generator=torch.Generator().manual_seed(1))
data = torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())
trainer = make(comm)
fit(trainer, folder)
parameters = [p.detach().numpy().tobytes() for p in trainer.module.parameters()]
assert set(map(str, trainer.comm.all_gather_object(parameters))) == {str(parameters)}
rows = trainer.report()
state, copies = (sum(row.get(key, 0) for row in rows) for key in ("state_bytes", "copy_bytes"))
ended = f"rank {trainer.comm.rank} of {trainer.comm.size}"
sys.stdout.write(f"{ended}, state {state} bytes, copies {copies} bytes\\n")
how["deaths"] = []
fit(make(trainer.comm), then)
"""
ULFM = ["--with-ft", "ulfm"]
pytestmark = pytest.mark.mpirun


def train(ranks, folder, deaths, *, rule="adamw", options=(), shared_memory=True, ulfm=ULFM, **how):
    """Train for 10 steps, some ranks dying; return who ended, exit code and what was logged.

    Those that are left then train once more, from the checkpoint of when the last one died.

    Args:
        deaths: (ranks that die together, numbered as they began; after which step; where in the
            next one the first of them is).
    """
    how |= {"rule": rule, "options": dict(options), "deaths": [*deaths]}
    result = mpirun(
        ranks,
        *("-c", PROGRAM, folder, json.dumps(how)),
        timeout=120,
        env={"PYCOMM_SHARED_MEMORY": str(int(shared_memory))},
        options=ulfm,
    )
    ended = sorted(re.findall(r"rank (\d of \d)", result.stdout))
    return ended, result.returncode, result.stdout + result.stderr


def losses(file) -> dict[int, float]:
    records = map(json.loads, file.read_text().splitlines())
    return {record["step"]: record["loss"] for record in records}


def check_goes_on(tmp_path, ranks: int, deaths, **how) -> str:
    """Check that the losses are those of the ranks that are left; return what was logged."""
    ended, _, log = train(ranks, tmp_path / "run", deaths, **how)
    left = ranks - sum(len(together) for together, _, _ in deaths)
    assert ended == [f"{rank} of {left}" for rank in range(left)], log
    found = losses(tmp_path / "run.jsonl")
    assert list(found) == list(range(1, 11)), log
    expected = losses(tmp_path / "run-then.jsonl")
    assert expected == {step: loss for step, loss in found.items() if step > deaths[-1][1]}
    return log


@pytest.fixture
def open_mpi():
    if not is_open_mpi():
        pytest.skip("MPICH ends all ranks when one dies")


SHARD = {"shard": True}
SHARE = {"share": True}


@pytest.mark.parametrize(
    ("dies", "where", "how"),
    [
        (2, "forward", {"options": {"shard": False}}),
        (1, "own pieces updated", {}),
        (0, "own pieces updated", {"options": SHARE}),
    ],
)
def test_the_others_go_on_as_fewer_ranks_would(open_mpi, tmp_path, dies, where, how) -> None:
    log = check_goes_on(tmp_path, 3, [([dies], 5, where)], **how)
    went_on = rf"rank {dies}.*; 2 ranks go on from step 5, ready in \d+\.\d\d s"
    assert re.search(went_on, log, re.DOTALL)
    state, copies = map(int, re.search(r"state (\d+) bytes, copies (\d+) bytes", log).groups())
    if how == {}:  # two generations of state and parameters, which are half as large as the state
        assert copies == pytest.approx(2 * 1.5 * state, rel=0.05)
    assert re.search(r"step 6 is done: \d+\.\d\d s after it was known", log)


@pytest.mark.parametrize(
    ("deaths", "how"),
    [
        ([([0], 3, "forward"), ([2], 6, "copying")], {"rule": "sgd"}),
        (
            [([0], 3, "copying"), ([1], 6, "copies sent")],
            {"rule": "rmsprop", "shared_memory": False},
        ),
    ],
)
def test_one_after_the_other(open_mpi, tmp_path, deaths, how) -> None:
    log = check_goes_on(tmp_path, 4, deaths, options=SHARD, **how)
    assert "3 ranks go on from step 3" in log
    assert "2 ranks go on from step 6" in log
    assert len(re.findall(r"step [47] is done: \d+\.\d\d s after it was known", log)) == 2


def test_all_but_one_at_once(open_mpi, tmp_path) -> None:
    check_goes_on(tmp_path, 4, [([1, 2, 3], 4, "forward")], options=SHARD)


def test_all_of_a_host_at_once(open_mpi, tmp_path) -> None:
    check_goes_on(tmp_path, 4, [([2, 3], 4, "forward")], options=SHARD, ranks_on_a_host=2)


PLAIN = {"shard": False}
APART = {"options": SHARD, "shared_memory": False}


@pytest.mark.parametrize(
    ("dies", "where", "how"),
    [
        (1, "before the shrink", {"options": SHARD}),
        (0, "after the shrink", {"options": PLAIN}),
        (1, "after the shrink", APART),
        (2, "survivors meet", {"options": SHARD}),
        (0, "copies are read", {"options": SHARE}),
        (1, "state is taken over", {"options": PLAIN}),
        (0, "rebuilding", {"options": SHARD, "rule": "rmsprop"}),
        (1, "rebuilding", {"options": PLAIN}),
        (2, "copying", {"options": SHARD}),
        (1, "copies sent", APART),
        (0, "recovered", {"options": SHARD, "rule": "sgd"}),
    ],
)
def test_another_one_while_the_others_recover(open_mpi, tmp_path, dies, where, how) -> None:
    log = check_goes_on(tmp_path, 4, [([3], 5, "forward"), ([dies], 5, where)], **how)
    assert re.search(r"2 ranks go on from step 5, ready in \d+\.\d\d s", log)


def test_all_others_while_the_others_recover(open_mpi, tmp_path) -> None:
    deaths = [([3], 5, "forward"), ([1], 5, "copies are read"), ([2], 5, "rebuilding")]
    log = check_goes_on(tmp_path, 4, deaths, options=SHARD)
    assert re.search(r"rank 3 .*; meanwhile .*; 1 ranks go on from step 5", log, re.DOTALL)


@pytest.mark.parametrize(
    ("deaths", "lost"),
    [
        ([([1, 2], 4, "forward")], "rank 1, whose copy rank 2 had"),
        ([([3], 4, "forward"), ([0], 4, "copies are read")], "rank 3, whose copy rank 0 had"),
    ],
)
def test_what_only_the_dead_had_is_lost(open_mpi, tmp_path, deaths, lost) -> None:
    folder, dead = tmp_path / "run", sorted(rank for ranks, _, _ in deaths for rank in ranks)
    ended, status, log = train(4, folder, deaths, **APART)
    assert not ended
    assert status != 0
    for survivor in {0, 1, 2, 3} - {*dead}:
        told = (
            f"StateLostError: ranks {dead[0]}, {dead[1]} of 4 are dead (this was rank {survivor}), "
            f"and parts of parameters and optimizer state are lost, those of {lost}: start again "
            f"with checkpoint='{folder}', to go on from the last one"
        )
        assert told in log, log


def test_without_ulfm_the_job_ends(tmp_path) -> None:
    ended, status, _ = train(3, tmp_path / "run", [([1], 5, "forward")], ulfm=())
    assert not ended
    assert status != 0
