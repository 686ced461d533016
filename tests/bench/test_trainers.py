"""bench/trainers.py: jobs, ratios and memory as they are worked out, and runs as launched."""

import dataclasses
import json
import re
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.sampling import Samples
from bench.training import timed
from bench.training.footprint import OnHost
from bench.training.jobs import MODELS, Job
from bench.training.results import WIDTHS, Checked, Trained, compared, row, trained
from bench.training.variants import VARIANTS, variants_of
from tests.launch import mpirun

ROOT = Path(__file__).resolve().parent.parent.parent
RANKS = SimpleNamespace(rank=1, size=3)


def made(impl, us):
    job = Job("cnn", "sgd", RANKS, "cpu", 2)
    checked = Checked(off=1e-7, wrong=0, wire_bytes=10_000_000, peak_bytes=None)
    return trained(job, impl, "MPI", checked, Samples(1, np.full((3, 5), float(us))))


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("gpt")])
def test_gpts_are_called_after_the_size_of_their_gradients(name):
    model = MODELS[name]
    with torch.device("meta"):
        module = model.build(model.task())
    nbytes = sum(p.numel() * p.element_size() for p in module.parameters())
    assert nbytes / 1e6 == pytest.approx(int(name.split("-")[-1]), abs=1)


def test_ranks_take_shares_of_one_batch_and_start_from_the_same_weights():
    job = Job("gpt-13", "sgd", RANKS, "cpu", 2)
    inputs, targets = job.whole
    assert inputs.shape == targets.shape == (6, 64)
    assert torch.equal(job.share[0], inputs[2:4]) and torch.equal(job.share[1], targets[2:4])
    first, second = (dict(job.module().named_parameters()) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_ratios_are_to_no_synchronisation_and_to_the_best_peer():
    found = compared([made("no-sync", 100), made("ddp-gloo", 150), made("pycomm-trainer", 120)])
    assert [r.over_no_sync for r in found] == pytest.approx([1.0, 1.5, 1.2])
    assert [r.vs_best_peer for r in found] == pytest.approx([1.5, 1.0, 1.25])
    assert compared([made("pycomm-trainer", 1)])[0].over_no_sync is None


def test_the_columns_of_the_table():
    line = row(compared([made("no-sync", 2000)])[0])
    expected = "cnn sgd no-sync 0.4 2 2.00 2.00 2.00 0.0 1.000 - 10.0 - 1e-07 0 0"
    assert line.split() == expected.split()
    assert len(timed.titles(WIDTHS).split()) == len(expected.split())


def test_the_readme_has_every_field_of_a_record_and_every_variant():
    text = (ROOT / "bench" / "README.md").read_text()
    documented = set(re.findall(r"(?<!`)`([^`\n]+)`", text))
    assert {f.name for f in dataclasses.fields(Trained)} | set(VARIANTS) <= documented


def test_memory_is_the_peak_above_what_was_there():
    kept = np.ones(40_000_000, np.uint8)
    with OnHost() as memory:
        np.ones(60_000_000, np.uint8).sum()
    assert kept.all()
    assert memory.nbytes is None or 55e6 < memory.nbytes < 80e6


def test_a_run_has_the_documented_fields_and_every_variant_learns_the_same(tmp_path):
    file = tmp_path / "trainers.json"
    arguments = ["--model", "cnn", "--batch", 4, "--iterations", 2, "--json", file]
    found = mpirun(3, "bench/trainers.py", *arguments, timeout=180)
    assert found.returncode == 0, found.stdout + found.stderr
    meta, *records = [json.loads(line) for line in file.read_text().splitlines()]
    assert meta["ranks"] == 3 and meta["missing"] == {}
    fields = {f.name for f in dataclasses.fields(Trained)} | {"record"}
    assert all(set(r) == fields for r in records)
    assert [(r["optimizer"], r["impl"]) for r in records] == [
        (optimizer, impl) for optimizer in ("sgd", "adamw") for impl in variants_of("data")
    ]
    assert all(r["wrong"] == 0 and r["samples"] == 2 for r in records)
    sent = {r["impl"]: r["wire_bytes"] for r in records}
    least = 4 / 3 * records[0]["gradient_bytes"]
    assert sent.pop("no-sync") == 0
    for half in ("pycomm-shared", "pycomm-bf16"):  # only gradients; 16 bits of all
        assert least / 2 * 0.9 < sent.pop(half) < least / 2 * 1.1
    assert all(0.9 * least <= nbytes < 1.1 * least for nbytes in sent.values())


def test_a_variant_more_is_one_function_and_who_does_not_synchronise_is_found():
    """Nor is a falsified weight overlooked; both in one job."""
    program = """
        import sys
        from bench.training.variants import VARIANTS, variant

        @variant("forgetful")
        def forgetful(job):
            "Claims to synchronise."
            return VARIANTS["no-sync"].build(job)

        from bench import trainers
        common = "--model cnn --batch 4 --iterations 1".split()
        for more in (
            "--optimizer adamw --impl no-sync,pycomm-wrapper,forgetful",
            "--optimizer sgd --impl pycomm-trainer --plant",
        ):
            try:
                trainers.main([*common, *more.split()])
            except SystemExit as exit:
                assert exit.code == 1
    """
    found = mpirun(2, "-c", textwrap.dedent(program), timeout=120)
    assert found.returncode == 0, found.stdout + found.stderr
    rows = [line.split() for line in found.stdout.splitlines() if not line.startswith("#")]
    wrong = {r[2]: (int(r[14]), float(r[13])) for r in rows}
    assert wrong["no-sync"][0] == wrong["pycomm-wrapper"][0] == 0
    assert wrong["forgetful"][0] == 2 and wrong["forgetful"][1] > 0.1
    assert "# FAILED: 2 models are wrong" in found.stdout
    assert wrong["pycomm-trainer"][0] == 1 and "# FAILED: 1 models are wrong" in found.stdout
