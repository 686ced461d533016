"""bench/trainers.py --parallel model: what it counts and compares, and a run as launched."""

import dataclasses
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from bench import trainers
from bench.sampling import Samples
from bench.training import timed
from bench.training.activations import activation_bytes
from bench.training.bound import bound_step
from bench.training.busy import Busy
from bench.training.cut import cut
from bench.training.jobs import PipelineJob
from bench.training.pipelined import WIDTHS, Known, Pipelined, compared, pipelined, row
from bench.training.variants import Training, variants_of
from bench.training.variants.one_process import added_up
from tests.launch import mpirun

ROOT = Path(__file__).resolve().parent.parent.parent
MICROBATCHES = 4
PIPELINES = [name for name in variants_of("model") if not name.startswith("one-process")]


def job(rank=0, size=2, model="cnn", microbatches=MICROBATCHES):
    ranks = SimpleNamespace(rank=rank, size=size)
    return PipelineJob(model, "sgd", ranks, "cpu", 2, microbatches)


def made(impl, us):
    known = Known(1e-7, 0, [300_000, 100_000], [2_000_000, 1_000_000], [5.0, 25.0])
    samples = Samples(1, np.full((2, 5), float(us)))
    return pipelined(job(), impl, "MPI", known, samples, 1000.0)


def test_microbatches_make_the_global_batch_and_their_losses_its_mean():
    work = job()
    inputs, targets = work.whole
    assert len(inputs) == len(targets) == 8
    assert torch.equal(torch.cat([x for x, _ in work.pieces]), inputs)
    module = work.module()
    parts = [work.mean_of_pieces(module(x), y) for x, y in work.pieces]
    assert len(parts) == MICROBATCHES
    assert sum(parts).item() == pytest.approx(work.loss(module(inputs), targets).item())
    before = [p.detach().clone() for p in module.parameters()]
    added_up(work, module)()
    whole = work.module()
    work.loss(whole(inputs), targets).backward()
    for p, start, q in zip(module.parameters(), before, whole.parameters()):
        assert torch.allclose(p, start - 1e-3 * q.grad, atol=1e-7)


def test_the_cut_has_every_layer_once_and_parts_of_like_many_parameters():
    parts = cut(job(size=2, model="gpt8-words-15"))
    assert [name for part in parts for name, _ in part] == [str(n) for n in range(10)]
    sizes = [sum(p.numel() for _, layer in part for p in layer.parameters()) for part in parts]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_bound_is_m_plus_p_minus_1_passes_of_the_own_stage(rank):
    with torch.autograd.profiler.profile() as profile:
        bound_step(job(rank, size=3))()
    ran = {e.key: e.count for e in profile.key_averages()}
    layers = [layer for _, part in cut(job(rank, size=3))[rank] for layer in part.modules()]
    weights = sum(isinstance(m, (nn.Linear, nn.Conv2d)) for m in layers)
    backward = ran.get("ConvolutionBackward0", 0) + ran.get("AddmmBackward0", 0)
    assert backward == weights * (MICROBATCHES + 2)


def test_activations_are_what_autograd_holds_at_once_without_parameters():
    linear, x = nn.Linear(6, 5), torch.ones(3, 6)
    of_one = 3 * 6 * 4 + 3 * 5 * 4  # the input, for the weight; what ReLU gives, for itself

    def forward():
        return torch.relu(linear(x.clone())).sum()

    def one_by_one():
        forward().backward()
        forward().backward()

    def both_held():
        first, second = forward(), forward()
        first.backward()
        second.backward()

    assert activation_bytes(Training(one_by_one, linear)) == of_one
    assert activation_bytes(Training(both_held, linear)) == 2 * of_one


class Slow(nn.Module):
    def forward(self, x):
        time.sleep(0.02)
        return x * 1


def test_busy_is_the_time_in_modules_autograd_and_optimizers_each_once():
    plain = torch.autograd.backward
    x = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([x])
    start = time.perf_counter()
    with Busy() as busy:
        y = nn.Sequential(Slow(), Slow())(x).sum()  # one inside the other: 40 ms, not 80
        time.sleep(0.1)
        y.register_hook(lambda g: time.sleep(0.02))
        y.backward()
        after_backward = busy.seconds
        optimizer.register_step_pre_hook(lambda *_: time.sleep(0.02))
        optimizer.step()
    elapsed = time.perf_counter() - start
    assert after_backward >= 0.06 and busy.seconds >= after_backward + 0.02
    assert busy.seconds <= elapsed - 0.1
    Slow()(x).sum().backward()
    assert torch.autograd.backward is plain and busy.seconds <= elapsed - 0.1


def test_ratios_are_to_the_faster_process_the_best_peer_and_the_bound():
    times = {"one-process": 2400, "one-process-whole": 2000, "torch-gpipe": 1500}
    times |= {"torch-1f1b": 1250, "pycomm-1f1b": 1000}
    found = compared([made(impl, us) for impl, us in times.items()])
    assert [r.over_one_process for r in found] == pytest.approx([1.2, 1.0, 0.75, 0.625, 0.5])
    assert [r.vs_best_peer for r in found][2:] == pytest.approx([1250 / 1500, 1.0, 1.25])
    assert [r.over_bound for r in found] == pytest.approx([2.4, 2.0, 1.5, 1.25, 1.0])
    assert [r.bubble_percent for r in found][1:3] == pytest.approx([50, 20])
    alone = compared([made("pycomm-1f1b", 1)])[0]
    assert alone.over_one_process is None and alone.vs_best_peer is None


def test_the_columns_of_the_table():
    line = row(compared([made("torch-1f1b", 2000)])[0])
    expected = "cnn sgd torch-1f1b 4×2 2.00 2.00 2.00 0.0 - 1.000 2.000 20.0 5/25 0.3/0.1 2.0/1.0"
    assert line.split() == [*expected.split(), "1e-07", "0", "0"]
    assert len(timed.titles(WIDTHS).split()) == len(line.split())


def test_the_readme_has_every_field_of_a_record():
    documented = set(re.findall(r"(?<!`)`([^`\n]+)`", (ROOT / "bench" / "README.md").read_text()))
    assert {f.name for f in dataclasses.fields(Pipelined)} <= documented


@pytest.mark.parametrize(("mode", "impl"), [("model", "ddp-gloo"), ("data", "torch-1f1b")])
def test_a_variant_of_the_other_mode_is_refused(mode, impl):
    result = CliRunner().invoke(trainers.main, ["--parallel", mode, "--impl", impl])
    assert result.exit_code == 2
    assert f"--impl {impl} is not one of --parallel {mode}: " in result.output


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    file = tmp_path_factory.mktemp("pipelines") / "trainers.json"
    arguments = ["--parallel", "model", "--model", "cnn", "--optimizer", "adamw", "--batch", 4]
    arguments += ["--microbatches", MICROBATCHES, "--iterations", 1, "--json", file]
    passive = {"OMP_WAIT_POLICY": "passive"}  # threads that do not spin in each other's way
    found = mpirun(2, "bench/trainers.py", *arguments, timeout=180, env=passive)
    assert found.returncode == 0, found.stdout + found.stderr
    meta, *records = [json.loads(line) for line in file.read_text().splitlines()]
    assert meta["parallel"] == "model" and meta["missing"] == {}
    return {r["impl"]: r for r in records}


def test_a_run_has_the_documented_fields_and_every_variant_learns_the_same(launched):
    fields = {f.name for f in dataclasses.fields(Pipelined)} | {"record"}
    assert list(launched) == list(variants_of("model"))
    for r in launched.values():
        assert set(r) == fields and r["wrong"] == 0 and r["samples"] == 1
        assert r["over_bound"] == pytest.approx(r["t_med_us"] / r["bound_us"])
        assert sum(r["part_bytes"]) == r["gradient_bytes"]
        assert all(0 <= idle <= 100 for idle in r["idle_percent"])


def test_one_process_computes_while_the_other_waits(launched):
    for name in set(variants_of("model")) - set(PIPELINES):
        idle = launched[name]["idle_percent"]
        assert idle[0] < idle[1] == 100
        assert launched[name]["activation_bytes"][1] == launched[name]["part_bytes"][1] == 0


def test_gpipe_keeps_all_microbatches_and_1f1b_as_many_as_ranks_follow(launched):
    kept = {name: r["activation_bytes"] for name, r in launched.items()}
    for rank in range(2):
        expected = (2 - rank) / MICROBATCHES * kept["pycomm-gpipe"][rank]
        assert kept["pycomm-1f1b"][rank] == pytest.approx(expected, rel=0.1)
    assert kept["torch-1f1b"][0] == pytest.approx(kept["pycomm-1f1b"][0], rel=0.1)
    assert kept["torch-gpipe"][0] == pytest.approx(kept["pycomm-gpipe"][0], rel=0.1)


def test_bubbles_are_those_of_the_schedules(launched):
    expected = {"torch-1f1b": 20, "torch-gpipe": 20, "pycomm-1f1b": 20, "pycomm-gpipe": 20}
    expected |= {"pycomm-sequential": 50, "one-process": 50}
    for name, percent in expected.items():
        assert launched[name]["bubble_percent"] == pytest.approx(percent), name
    assert launched["pycomm-zb-h1"]["bubble_percent"] < 20
    assert launched["pycomm-interleaved"]["bubble_percent"] < 20
