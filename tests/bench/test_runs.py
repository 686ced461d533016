"""Benchmarks as they are launched."""

import dataclasses
import json

import pytest

from bench import overlap
from bench.operations import COLLECTIVES
from bench.records import Record
from tests.bench.jobs import launched
from tests.launch import mpirun

SHORT = ["--iterations", 2, "--sample-us", 1]
KNOWN = "all_reduce,reduce_scatter,all_gather,broadcast,barrier"
IMPL = "pycomm,pycomm-symmetric,pycomm-torch,mpi4py,limit"
OVERLAPPING = ["pycomm", "pycomm-symmetric", "mpi4py", "gloo"]
VERIFIED = [
    ("collectives", "pycomm"),
    ("collectives", "pycomm-symmetric"),
    ("collectives", "mpi4py"),
    ("p2p", "pycomm"),
    ("p2p", "pycomm-alloc"),
]
AGREEING = {
    "float32": ["--impl", "mpi4py,gloo"],
    "int8": ["--impl", "mpi4py", "--dtype", "int8", "--redop", "max"],
}


def results(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["record"] for line in lines] == ["meta"] + ["result"] * (len(lines) - 1)
    return lines[0], lines[1:]


def agreeing():
    """Runs of every collective by those that share no code with pycomm."""
    common = ["collectives", "--op", "all", "--sizes", "64,100000", "--root", 1, *SHORT]
    return {dtype: [*common, *more] for dtype, more in AGREEING.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="module")
def pair(folder):
    """The runs on two ranks."""
    one = ["collectives", "--sizes", "1K", *SHORT]
    overlapping = ["--sizes", "300K", "--iterations", 2, "--impl", ",".join(OVERLAPPING)]
    runs = {
        "nccl": [*one, "--impl", "pycomm", "--format", "nccl"],
        "bfloat16": [*one, "--impl", "mpi4py,pycomm", "--dtype", "bfloat16"],
        "nothing": ["collectives", "--op", "broadcast", "--impl", "limit", *SHORT],
        "overlap": ["overlap", *overlapping, "--json", folder / "overlap.json"],
        **agreeing(),
    }
    for script, impl in VERIFIED:
        run = [script, "--sizes", "1K", "--impl", impl, *SHORT]
        runs |= {(script, impl, "right"): run, (script, impl, "wrong"): [*run, "--plant", 77]}
    return launched(2, runs)


@pytest.fixture(scope="module")
def three(folder):
    """The runs on three ranks."""
    arguments = ["--op", KNOWN, "--sizes", "4,100K", "--place", "both", "--impl", IMPL]
    run = ["collectives", *arguments, "--json", folder / "all.json", *SHORT]
    return launched(3, {"records": run, **agreeing()})


def test_records_have_the_documented_fields_and_nothing_is_wrong(three, folder):
    assert three["records"].returncode == 0, three["records"].stdout
    meta, found = results(folder / "all.json")
    assert (meta["ranks"], meta["hosts"], len(meta["affinity"])) == (3, 1, 3)
    assert "environ" not in meta and meta["argv"][0].endswith("collectives.py")
    fields = {f.name for f in dataclasses.fields(Record)} | {"record"}
    assert all(set(record) == fields for record in found)
    assert {r["op"] for r in found} == set(KNOWN.split(","))
    assert {r["impl"] for r in found} == set(IMPL.split(",")) - {"limit"}, "too small for it"
    assert all(r["wrong"] == 0 and r["t_med_us"] > 0 and r["samples"] == 2 for r in found)
    assert {r["place"] for r in found if r["op"] == "all_gather"} == {"in", "out"}
    assert {r["size_bytes"] for r in found if r["op"] == "all_gather"} == {12, 102396}


@pytest.mark.parametrize(("script", "impl"), VERIFIED)
def test_one_wrong_element_fails_the_run(script, impl, pair):
    assert pair[script, impl, "right"].returncode == 0
    found = pair[script, impl, "wrong"]
    assert found.returncode != 0
    operations = 1 if script == "collectives" else 2
    assert f"# FAILED: {operations} wrong elements" in found.stdout
    assert [row[14] for row in found.rows if len(row) == 17] == ["1"] * operations


@pytest.mark.mpirun
def test_a_script_ends_with_the_code_of_its_run():
    arguments = ["bench/collectives.py", "--sizes", "1K", "--impl", "pycomm,mpi4py", *SHORT]
    assert mpirun(2, *arguments).returncode == 0
    result = mpirun(2, *arguments, "--plant", 77)
    assert result.returncode != 0 and "# FAILED: 1 wrong elements" in result.stdout


def test_messages_are_right_among_two_pairs():
    impl = "pycomm,pycomm-alloc,mpi4py"
    found = launched(4, {"p2p": ["p2p", "--sizes", "4,300K", "--impl", impl, *SHORT]})["p2p"]
    assert found.returncode == 0, found.stdout
    assert [(row[0], row[1]) for row in found.rows] == [
        (op, name) for op in ("ping_pong", "stream") for _ in range(2) for name in impl.split(",")
    ]


def test_the_columns_of_nccl_tests_are_printed(pair):
    assert pair["nccl"].returncode == 0
    (row,) = pair["nccl"].rows
    assert row[:9] == ["1024", "256", "float", "sum", "-1", *["N/A"] * 4]
    assert len(row) == 13 and row[-1] == "0"


def test_what_cannot_be_measured_is_said(pair):
    assert pair["bfloat16"].returncode == 0
    assert "# not measured: mpi4py: MPI does not reduce bfloat16" in pair["bfloat16"].stdout
    assert pair["nothing"].returncode != 0
    assert "# FAILED: nothing was measured" in pair["nothing"].stdout


@pytest.mark.parametrize("ranks", ["pair", "three"])
def test_the_other_implementations_give_what_the_table_says(ranks, request):
    """The expected results are right: MPI and Gloo, which share no code with pycomm, agree."""
    found = request.getfixturevalue(ranks)
    for dtype, more in AGREEING.items():
        assert found[dtype].returncode == 0, found[dtype].stdout
        rows = found[dtype].rows
        for impl in more[1].split(","):
            assert {r[0] for r in rows if r[1] == impl and r[4] == dtype} == set(COLLECTIVES)
        assert all(row[14] == "0" for row in rows)


def test_what_hides_has_the_documented_fields_and_nothing_is_wrong(pair, folder):
    assert pair["overlap"].returncode == 0, pair["overlap"].stdout
    assert "\n# spare cores: " in pair["overlap"].stdout
    meta, found = results(folder / "overlap.json")
    assert meta["ranks"] == 2
    fields = {f.name for f in dataclasses.fields(overlap.Overlap)} | {"record"}
    assert all(set(record) == fields for record in found)
    assert [(r["size_bytes"], r["compute"], r["peers"], r["impl"]) for r in found] == [
        (307200, compute, peers, name)
        for compute in ("python", "matmul")
        for peers in ("even", "late")
        for name in OVERLAPPING
    ]
    assert all(r["wrong"] == 0 and r["t_both_us"] > 0 and r["samples"] == 2 for r in found)
