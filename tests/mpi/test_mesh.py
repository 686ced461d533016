"""Ranks arranged as dp × pp × tp."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import pycomm
from pycomm.errors import ArgumentError, CommError, MismatchError


def layouts(ranks: int) -> list[tuple[int, int, int]]:
    numbers = range(1, ranks + 1)
    return [
        (dp, pp, tp) for dp in numbers for pp in numbers for tp in numbers if dp * pp * tp == ranks
    ]


def test_every_layout(comm) -> None:
    for dp, pp, tp in layouts(comm.size):
        mesh = pycomm.Mesh(comm, dp=dp, pp=pp, tp=tp)
        assert mesh.comm is comm
        assert mesh.shape == {"dp": dp, "pp": pp, "tp": tp}
        rank = comm.rank
        assert mesh.coords == {"dp": rank // (pp * tp), "pp": rank // tp % pp, "tp": rank % tp}
        strides = {"dp": pp * tp, "pp": tp, "tp": 1}
        for name, size in mesh.shape.items():
            along = mesh[name]
            assert (along.rank, along.size) == (mesh.coords[name], size)
            first = rank - mesh.coords[name] * strides[name]
            expected = [first + k * strides[name] for k in range(size)]
            assert along.all_gather(np.array([rank]))[:, 0].tolist() == expected
        mesh.close()


def test_what_is_left(comm) -> None:
    for name in ("dp", "pp", "tp"):
        mesh = pycomm.Mesh(comm, **{name: None})
        assert mesh.shape == {**dict.fromkeys(("dp", "pp", "tp"), 1), name: comm.size}
        mesh.close()


def test_the_default_is_one_each(comm) -> None:
    if comm.size == 1:
        assert pycomm.Mesh(comm).shape == {"dp": 1, "pp": 1, "tp": 1}
    else:
        match = f"dp=1 × pp=1 × tp=1 is not {comm.size}, the number of ranks"
        with pytest.raises(ArgumentError, match=match):
            pycomm.Mesh(comm)


def test_products_that_do_not_fit(comm) -> None:
    divisors = {1: "1", 2: "1, 2", 3: "1, 3", 4: "1, 2, 4", 5: "1, 5"}[comm.size]
    wrong = {"dp": comm.size + 1}, {"dp": None, "tp": comm.size + 1}, {"dp": 2, "pp": comm.size}
    for sizes in wrong:
        with pytest.raises(ArgumentError, match=f"one of {divisors}, such that their product"):
            pycomm.Mesh(comm, **sizes)


@pytest.mark.parametrize("sizes", [{"dp": 0}, {"pp": -1}, {"tp": 1.0}, {"dp": None, "pp": None}])
def test_what_are_no_sizes(comm, sizes) -> None:
    with pytest.raises(ArgumentError, match="pass integers ≥ 1, and None for one of them at most"):
        pycomm.Mesh(comm, **sizes)


def test_sizes_that_differ(comm) -> None:
    if comm.size == 1:
        pytest.skip("one rank cannot differ")
    sizes = {"dp": comm.size} if comm.rank == 0 else {"tp": comm.size}
    with pytest.raises(MismatchError, match=rf"\(1, 1, {comm.size}\) on rank 1"):
        pycomm.Mesh(comm, **sizes)


def test_no_such_dimension(comm) -> None:
    mesh = pycomm.Mesh(comm, dp=None)
    with pytest.raises(ArgumentError, match="no dimension 'sp': use 'dp', 'pp' or 'tp'"):
        mesh["sp"]
    mesh.close()


def test_closing(comm) -> None:
    mesh = pycomm.Mesh(comm, dp=None)
    mesh.close()
    with pytest.raises(CommError):
        mesh["dp"].barrier()
    comm.barrier()


def test_the_table_of_places(comm) -> None:
    mesh = pycomm.Mesh(comm, pp=None)
    head, names, *rows = mesh.describe().splitlines()
    assert head == f"{comm.size} ranks as dp=1 × pp={comm.size} × tp=1"
    assert names.split() == ["rank", "host", "dp", "pp", "tp"]
    host = comm.hosts[comm.rank]
    assert [row.split() for row in rows] == [
        [str(r), host, "0", str(r), "0"] for r in range(comm.size)
    ]
    mesh.close()


@pytest.mark.parametrize("hosts", ["abab", "aabb"])
def test_tensor_parallel_groups_share_a_host(comm, monkeypatch, caplog, hosts: str) -> None:
    if comm.size != 4:
        pytest.skip("for four ranks")
    monkeypatch.setattr(type(comm), "hosts", property(lambda _: [*hosts]))
    with caplog.at_level(logging.WARNING):
        mesh = pycomm.Mesh(comm, dp=2, tp=2)
    groups = {0: "a", 1: "b"}
    assert groups[mesh.coords["dp"]] == hosts[comm.rank]
    assert not caplog.records
    mesh.close()


def test_tensor_parallel_groups_on_several_hosts(comm, monkeypatch, caplog) -> None:
    if comm.size != 4:
        pytest.skip("for four ranks")
    monkeypatch.setattr(type(comm), "hosts", property(lambda _: [*"abbb"]))
    with caplog.at_level(logging.WARNING):
        mesh = pycomm.Mesh(comm, dp=2, tp=2)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (comm.rank == 0)
    assert all("ranks 0 on a, 3 on b; use tp=1," in line for line in told)
    mesh.close()
