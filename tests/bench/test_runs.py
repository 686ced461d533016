"""Benchmarks as they are launched."""

import dataclasses
import json
import textwrap

import pytest

from bench.operations import COLLECTIVES
from bench.records import Record
from tests.launch import mpirun

pytestmark = pytest.mark.mpirun

SHORT = ["--iterations", 2, "--sample-us", 1]


def results(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["record"] for line in lines] == ["meta"] + ["result"] * (len(lines) - 1)
    return lines[0], lines[1:]


def test_records_have_the_documented_fields_and_nothing_is_wrong(tmp_path):
    file = tmp_path / "all.json"
    known = "all_reduce,reduce_scatter,all_gather,broadcast,barrier"
    arguments = ["--op", known, "--sizes", "4,100K", "--place", "both", "--json", file]
    impl = ["--impl", "pycomm,pycomm-symmetric,pycomm-torch,mpi4py,limit"]
    result = mpirun(3, "bench/collectives.py", *arguments, *impl, *SHORT)
    assert result.returncode == 0, result.stdout + result.stderr
    meta, found = results(file)
    assert (meta["ranks"], meta["hosts"], len(meta["affinity"])) == (3, 1, 3)
    assert "environ" not in meta and meta["argv"][0].endswith("collectives.py")
    fields = {f.name for f in dataclasses.fields(Record)} | {"record"}
    assert all(set(record) == fields for record in found)
    assert {r["op"] for r in found} == set(known.split(","))
    assert {r["impl"] for r in found} == set(impl[1].split(",")) - {"limit"}, "too small for it"
    assert all(r["wrong"] == 0 and r["t_med_us"] > 0 and r["samples"] == 2 for r in found)
    assert {r["place"] for r in found if r["op"] == "all_gather"} == {"in", "out"}
    assert {r["size_bytes"] for r in found if r["op"] == "all_gather"} == {12, 102396}


@pytest.mark.parametrize(
    ("script", "impl"),
    [
        ("collectives.py", "pycomm"),
        ("collectives.py", "pycomm-symmetric"),
        ("collectives.py", "mpi4py"),
        ("p2p.py", "pycomm"),
        ("p2p.py", "pycomm-alloc"),
    ],
)
def test_one_wrong_element_fails_the_run(script, impl):
    arguments = [f"bench/{script}", "--sizes", "1K", "--impl", impl, *SHORT]
    assert mpirun(2, *arguments).returncode == 0
    result = mpirun(2, *arguments, "--plant", 77)
    assert result.returncode != 0
    operations = 1 if script == "collectives.py" else 2
    assert f"# FAILED: {operations} wrong elements" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if not line.startswith("#")]
    assert [row[14] for row in rows if len(row) == 17] == ["1"] * operations


def test_messages_are_right_among_two_pairs():
    impl = "pycomm,pycomm-alloc,mpi4py"
    result = mpirun(4, "bench/p2p.py", "--sizes", "4,300K", "--impl", impl, *SHORT)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if not line.startswith("#")]
    assert [(row[0], row[1]) for row in rows] == [
        (op, name) for op in ("ping_pong", "stream") for _ in range(2) for name in impl.split(",")
    ]


def test_the_columns_of_nccl_tests_are_printed():
    arguments = ["--sizes", "1K", "--impl", "pycomm", "--format", "nccl", *SHORT]
    result = mpirun(2, "bench/collectives.py", *arguments)
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if not line.startswith("#")]
    assert rows[0][:9] == ["1024", "256", "float", "sum", "-1", *["N/A"] * 4]
    assert len(rows[0]) == 13 and rows[0][-1] == "0"


def test_what_cannot_be_measured_is_said():
    arguments = ["--sizes", "1K", "--impl", "mpi4py,pycomm", "--dtype", "bfloat16", *SHORT]
    result = mpirun(2, "bench/collectives.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert "# not measured: mpi4py: MPI does not reduce bfloat16" in result.stdout
    alone = mpirun(2, "bench/collectives.py", "--op", "broadcast", "--impl", "limit", *SHORT)
    assert alone.returncode != 0 and "# FAILED: nothing was measured" in alone.stdout


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_other_implementations_give_what_the_table_says(ranks):
    """The expected results are right: MPI and Gloo, which share no code with pycomm, agree."""
    program = """
        import dataclasses
        from bench import options, runner
        from bench.operations import COLLECTIVES
        from pathlib import Path
        chosen = runner.Options(
            list(COLLECTIVES.values()), [64, 100_000], "float32", "sum", 1, None,
            ["mpi4py", "gloo"], 1.0, 1, 1.0, "table", None, None, None)
        code = runner.Runner(chosen).run()
        chosen = dataclasses.replace(chosen, dtype="int8", redop="max", impl=["mpi4py"])
        raise SystemExit(code or runner.Runner(chosen).run())
    """
    result = mpirun(ranks, "-c", textwrap.dedent(program), timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if not line.startswith("#")]
    for dtype, impl in (("float32", "mpi4py"), ("float32", "gloo"), ("int8", "mpi4py")):
        assert {r[0] for r in rows if r[1] == impl and r[4] == dtype} == set(COLLECTIVES)
    assert all(row[14] == "0" for row in rows)
