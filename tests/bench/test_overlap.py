"""What hides behind computing, as it is worked out and as it is launched."""

import dataclasses
import json

import pytest

from bench import overlap
from tests.launch import mpirun


@pytest.mark.parametrize(
    ("both", "percent"), [(20.0, 100.0), (19.0, 100.0), (25.0, 50.0), (30.0, 0.0), (35.0, 0.0)]
)
def test_hidden_is_what_does_not_show_beside_computing(both, percent):
    assert overlap.hidden_percent(comm=10.0, compute=20.0, both=both) == percent


@pytest.mark.mpirun
def test_a_run_has_the_documented_fields_and_nothing_is_wrong(tmp_path):
    file = tmp_path / "overlap.json"
    names = ["pycomm", "pycomm-symmetric", "mpi4py", "gloo"]
    arguments = ["--sizes", "300K", "--iterations", 2, "--json", file]
    result = mpirun(2, "bench/overlap.py", *arguments, "--impl", ",".join(names))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "\n# spare cores: " in result.stdout
    meta, *found = [json.loads(line) for line in file.read_text().splitlines()]
    assert meta["ranks"] == 2
    fields = {f.name for f in dataclasses.fields(overlap.Overlap)} | {"record"}
    assert all(set(record) == fields for record in found)
    assert [(r["size_bytes"], r["compute"], r["peers"], r["impl"]) for r in found] == [
        (307200, compute, peers, name)
        for compute in ("python", "matmul")
        for peers in ("even", "late")
        for name in names
    ]
    assert all(r["wrong"] == 0 and r["t_both_us"] > 0 and r["samples"] == 2 for r in found)
