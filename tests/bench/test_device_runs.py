"""collectives.py and p2p.py with --device cuda: on doubles of a GPU, and where there is none."""

import json

import pytest

from bench.operations import COLLECTIVES
from tests.bench.test_kernels import gpu_is_missing
from tests.launch import mpirun

pytestmark = pytest.mark.mpirun

SHORT = ["--device", "cuda", "--iterations", 2, "--sample-us", 1]


def run(ranks, script, *arguments):
    return mpirun(ranks, "-m", "tests.bench.doubles", script, *arguments, *SHORT, timeout=120)


def rows(result):
    return [line.split() for line in result.stdout.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_collective_is_verified_on_the_gpu(ranks, tmp_path):
    file = tmp_path / "all.json"
    found = run(ranks, "collectives", "--op", "all", "--sizes", "4,50K", "--json", file)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "\n# gpu: 1 for " in found.stdout
    assert "# not measured: gloo: this torch is not built for CUDA" in found.stdout
    meta, *records = [json.loads(line) for line in file.read_text().splitlines()]
    assert meta["device"] == "cuda" and meta["gpu"].startswith(f"1 for {ranks} rank(s)")
    for impl in ("pycomm", "pycomm-symmetric", "mpi4py-staged"):
        own = [r for r in records if r["impl"] == impl]
        assert {r["op"] for r in own} == set(COLLECTIVES)
        assert all(r["wrong"] == 0 and r["t_med_us"] > 0 for r in own)
    limits = [r for r in records if r["impl"] == "n_in_n_out"]
    assert {(r["op"], r["wrong"]) for r in limits} == {("all_reduce", None)}
    staged = [r["vs_best_peer"] for r in records if r["impl"] == "mpi4py-staged"]
    assert set(staged) == {1.0}, "the only peer; limits are none"


@pytest.mark.parametrize("redop", ["prod", "max", "avg"])
def test_other_operations_and_dtypes_are_verified_on_the_gpu(redop):
    arguments = ["--op", "all_reduce,reduce_scatter", "--place", "both", "--redop", redop]
    dtype = {"prod": "float64", "max": "int16", "avg": "bfloat16"}[redop]
    found = run(2, "collectives", *arguments, "--dtype", dtype, "--sizes", "10K")
    assert found.returncode == 0, found.stdout + found.stderr
    own = {(r[0], r[1], r[7]) for r in rows(found) if r[1].startswith("pycomm")}
    names = ("pycomm", "pycomm-symmetric")
    cases = [("all_reduce", "in"), ("reduce_scatter", "in"), ("reduce_scatter", "out")]
    assert own == {(op, name, place) for op, place in cases for name in names}


@pytest.mark.parametrize("impl", ["pycomm", "pycomm-symmetric", "mpi4py-staged"])
def test_one_wrong_element_on_the_gpu_fails_the_run(impl):
    arguments = ["--sizes", "1K", "--impl", impl, "--plant", 77]
    found = run(2, "collectives", *arguments)
    assert found.returncode != 0
    assert "# FAILED: 1 wrong elements" in found.stdout


def test_messages_are_verified_on_the_gpu():
    found = run(2, "p2p", "--sizes", "4,300K")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "# not measured: gloo: gloo sends no CUDA tensors" in found.stdout
    impl = ("pycomm", "pycomm-symmetric", "mpi4py-staged", "copy")
    assert [(r[0], r[1], r[14]) for r in rows(found)] == [
        (op, name, "-" if name == "copy" else "0")
        for op in ("ping_pong", "stream")
        for _ in range(2)
        for name in impl
    ]


@pytest.mark.parametrize("impl", ["pycomm", "pycomm-symmetric", "mpi4py-staged"])
def test_one_wrong_element_of_a_message_on_the_gpu_fails_the_run(impl):
    found = run(2, "p2p", "--sizes", "1K", "--impl", impl, "--plant", 77)
    assert found.returncode != 0
    assert "# FAILED: 2 wrong elements" in found.stdout


def test_what_has_no_arrays_there_is_said():
    found = run(2, "collectives", "--sizes", "1K", "--impl", "mpi4py,limit,deepspeed")
    assert found.returncode != 0 and "# FAILED: nothing was measured" in found.stdout
    for name in ("mpi4py", "limit", "deepspeed"):
        assert f"# not measured: {name}: it has no arrays on cuda" in found.stdout


@pytest.mark.skipif(not gpu_is_missing(), reason="there is a GPU")
@pytest.mark.parametrize("script", ["collectives.py", "p2p.py", "trainers.py"])
def test_without_a_gpu_one_sentence_says_what_is_missing(script):
    found = mpirun(2, f"bench/{script}", "--device", "cuda")
    assert (found.returncode, found.stdout) == (1, "")
    said = [line for line in found.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1 and said[0].startswith("Error: CUDA kernels need ")
    assert "Traceback" not in found.stderr
