"""Numbers, columns and files that come out of samples."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from bench import merge, records, report
from bench.operations import COLLECTIVES, MESSAGES, Case
from bench.sampling import Samples

ROOT = Path(__file__).resolve().parent.parent.parent
META = {"record": "meta", "ranks": 2}


def case(op="all_reduce", count=1000, ranks=4, place="in", redop="sum"):
    known = COLLECTIVES | MESSAGES
    return Case(known[op], "float32", redop, -1, place, count, 0, ranks)


def made(impl, us, mpi="Open MPI 5", **options):
    samples = Samples(1, np.full((4, 5), float(us)))
    return records.record(case(**options), impl, mpi, samples, 0)


def test_a_sample_is_the_maximum_over_ranks():
    samples = Samples(3, np.array([[1.0, 2.0, 9.0], [4.0, 5.0, 3.0]]))
    assert samples.slowest_us.tolist() == [4.0, 5.0, 9.0]
    assert samples.quantile_us(0.5) == 5.0
    assert samples.slow_rank == 1


def test_statistics_of_a_record():
    samples = Samples(7, np.arange(1.0, 102.0)[None])
    found = records.record(case(), "pycomm", "MPI", samples, 3)
    assert (found.t_min_us, found.t_q25_us, found.t_med_us, found.t_q75_us) == (1, 26, 51, 76)
    assert found.t_p95_us == 96
    assert found.iqr_percent == pytest.approx(100 * 50 / 51)
    assert (found.batch, found.samples, found.wrong) == (7, 101, 3)
    assert found.algbw_gbps == pytest.approx(4000 / 51e3)


@pytest.mark.parametrize(
    ("op", "factor"),
    [
        ("all_reduce", 1.5),
        ("all_gather", 0.75),
        ("reduce_scatter", 0.75),
        ("all_to_all", 0.75),
        ("broadcast", 1.0),
        ("ping_pong", 1.0),
        ("stream", 1.0),
    ],
)
def test_bus_bandwidth_on_four_ranks(op, factor):
    found = made("pycomm", 10, op=op)
    assert found.algbw_gbps == pytest.approx(0.4)
    assert found.busbw_gbps == pytest.approx(0.4 * factor)


def test_the_best_peer_is_the_fastest_that_competes():
    found = [made("pycomm", 10), made("mpi4py", 40), made("gloo", 30), made("limit", 1)]
    ratios = [r.vs_best_peer for r in records.compared(found, {"mpi4py", "gloo"})]
    assert ratios == pytest.approx([3.0, 0.75, 1.0, 30.0])
    assert records.compared(found, set())[0].vs_best_peer is None


def test_files_are_read_as_they_were_written(tmp_path):
    found = [made("pycomm", 10), dataclasses.replace(made("limit", 3), wrong=None)]
    records.write(tmp_path / "new" / "a.json", META, found)
    assert records.read(tmp_path / "new" / "a.json") == (META, found)


def test_the_readme_has_every_field_of_a_record_and_every_column():
    text = (ROOT / "bench" / "README.md").read_text()
    documented = set(re.findall(r"(?<!`)`([^`\n]+)`", text))
    fields = {f.name for f in dataclasses.fields(records.Record)}
    assert fields - documented == set()
    assert set(report.titles().lstrip("#").split()) - documented == set()


def test_the_columns_of_the_table():
    columns = "op impl size(B) count type redop root place t_min t_med t_p95(us) iqr% algbw"
    columns += " busbw(GB/s) #wrong slow_rank vs_best_peer"
    assert report.titles().lstrip("#").split() == columns.split()
    line = report.row(dataclasses.replace(made("pycomm", 12), wrong=None))
    assert (
        line.split()
        == (
            "all_reduce pycomm 4000 1000 float32 sum -1 in 12.00 12.00 12.00 0.0 0.333 0.500 - 0 -"
        ).split()
    )


def test_the_columns_of_nccl_tests():
    inside, outside = made("pycomm", 10), made("pycomm", 20, place="out")
    lines = report.nccl([inside, outside, made("gloo", 30)])
    assert [line for line in lines if line.startswith("# all_reduce")] == [
        "# all_reduce: pycomm",
        "# all_reduce: gloo",
    ]
    assert lines[2].split() == (
        "# size count type redop root time algbw busbw #wrong time algbw busbw #wrong".split()
    )
    rows = [line.split() for line in lines if not line.startswith("#")]
    left = ["4000", "1000", "float", "sum", "-1"]
    assert rows[0] == [*left, "20.00", "0.20", "0.30", "0", "10.00", "0.40", "0.60", "0"]
    assert rows[1] == [*left, "N/A", "N/A", "N/A", "N/A", "30.00", "0.13", "0.20", "0"]
    assert "# Out of bounds values : 0 OK" in lines


def test_runs_are_compared_within_themselves():
    first = (META, [made("pycomm", 10), made("mpi4py", 20), made("limit", 9)])
    slow = (META, [made("pycomm", 100), made("mpi4py", 150, mpi="MPICH 5")])
    where = merge.places([first, slow])[0]
    assert merge.ratios([first, slow], where, "pycomm") == {4000: ("MPICH 5", 1.5)}
    assert merge.ratios([first, slow], where, "pycomm", merge.limits) == {4000: ("limit", 0.9)}
    curves = merge.curves([first, slow], where)
    assert {name: points[0].t_med_us for name, points in curves.items()} == {
        "pycomm": 10,
        "Open MPI 5": 20,
        "limit": 9,
        "MPICH 5": 150,
    }
    rows = [line.split() for line in merge.table([first, slow])]
    assert "all_reduce 4 pycomm 4000 MPICH 5 1.50".split() in rows
    assert "all_reduce 4 pycomm all geometric mean 1.50".split() in rows
    assert "all_reduce 4 pycomm 4000 limit 0.90".split() in rows
