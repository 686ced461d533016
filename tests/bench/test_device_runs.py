"""collectives.py and p2p.py with --device cuda: on doubles of a GPU, and where there is none."""

import json

import pytest

from bench.operations import COLLECTIVES
from tests.bench.jobs import launched
from tests.bench.test_kernels import gpu_is_missing
from tests.launch import mpirun

SHORT = ["--device", "cuda", "--iterations", 2, "--sample-us", 1]
IMPL = ("pycomm", "pycomm-symmetric", "mpi4py-staged")
OTHERS = {"prod": "float64", "max": "int16", "avg": "bfloat16"}


@pytest.fixture(scope="module")
def pair():
    """The runs on two ranks."""
    reducing = ["collectives", "--op", "all_reduce,reduce_scatter", "--place", "both"]
    runs = {
        "messages": ["p2p", "--sizes", "4,300K"],
        "missing": ["collectives", "--sizes", "1K", "--impl", "mpi4py,limit,deepspeed"],
    }
    for script in ("collectives", "p2p"):
        for name in IMPL:
            runs[script, name] = [script, "--sizes", "1K", "--impl", name, "--plant", 77]
    for redop, dtype in OTHERS.items():
        runs[redop] = [*reducing, "--redop", redop, "--dtype", dtype, "--sizes", "10K"]
    return launched(2, {name: [*run, *SHORT] for name, run in runs.items()}, doubles=True)


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_collective_is_verified_on_the_gpu(ranks, tmp_path):
    file = tmp_path / "all.json"
    run = ["collectives", "--op", "all", "--sizes", "4,50K", "--json", file, *SHORT]
    found = launched(ranks, {"all": run}, doubles=True)["all"]
    assert found.returncode == 0, found.stdout
    assert "\n# gpu: 1 for " in found.stdout
    assert "# not measured: gloo: this torch is not built for CUDA" in found.stdout
    meta, *records = [json.loads(line) for line in file.read_text().splitlines()]
    assert meta["device"] == "cuda" and meta["gpu"].startswith(f"1 for {ranks} rank(s)")
    for impl in IMPL:
        own = [r for r in records if r["impl"] == impl]
        assert {r["op"] for r in own} == set(COLLECTIVES)
        assert all(r["wrong"] == 0 and r["t_med_us"] > 0 for r in own)
    limits = [r for r in records if r["impl"] == "n_in_n_out"]
    assert {(r["op"], r["wrong"]) for r in limits} == {("all_reduce", None)}
    staged = [r["vs_best_peer"] for r in records if r["impl"] == "mpi4py-staged"]
    assert set(staged) == {1.0}, "the only peer; limits are none"


@pytest.mark.parametrize("redop", OTHERS)
def test_other_operations_and_dtypes_are_verified_on_the_gpu(redop, pair):
    assert pair[redop].returncode == 0, pair[redop].stdout
    own = {(r[0], r[1], r[7]) for r in pair[redop].rows if r[1].startswith("pycomm")}
    names = ("pycomm", "pycomm-symmetric")
    cases = [("all_reduce", "in"), ("reduce_scatter", "in"), ("reduce_scatter", "out")]
    assert own == {(op, name, place) for op, place in cases for name in names}


@pytest.mark.parametrize("impl", IMPL)
@pytest.mark.parametrize(("script", "operations"), [("collectives", 1), ("p2p", 2)])
def test_one_wrong_element_on_the_gpu_fails_the_run(script, operations, impl, pair):
    found = pair[script, impl]
    assert found.returncode != 0
    assert f"# FAILED: {operations} wrong elements" in found.stdout


def test_messages_are_verified_on_the_gpu(pair):
    found = pair["messages"]
    assert found.returncode == 0, found.stdout
    assert "# not measured: gloo: gloo sends no CUDA tensors" in found.stdout
    assert [(r[0], r[1], r[14]) for r in found.rows] == [
        (op, name, "-" if name == "copy" else "0")
        for op in ("ping_pong", "stream")
        for _ in range(2)
        for name in (*IMPL, "copy")
    ]


def test_what_has_no_arrays_there_is_said(pair):
    found = pair["missing"]
    assert found.returncode != 0 and "# FAILED: nothing was measured" in found.stdout
    for name in ("mpi4py", "limit", "deepspeed"):
        assert f"# not measured: {name}: it has no arrays on cuda" in found.stdout


@pytest.mark.skipif(not gpu_is_missing(), reason="there is a GPU")
@pytest.mark.parametrize("script", ["collectives.py", "trainers.py"])
def test_without_a_gpu_one_sentence_says_what_is_missing(script):
    found = mpirun(2, f"bench/{script}", "--device", "cuda")
    assert (found.returncode, found.stdout) == (1, "")
    said = [line for line in found.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1 and said[0].startswith("Error: CUDA kernels need ")
    assert "Traceback" not in found.stderr
