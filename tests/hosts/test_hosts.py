"""Between hosts: results, bytes on the links, and failures that reach every host."""

from __future__ import annotations

import json
import subprocess
import textwrap
import time
from collections.abc import Mapping

import pytest

from tests.hosts.network import hosts, require

pytestmark = pytest.mark.mpirun

LAYOUTS = [(2, 1), (2, 2), (3, 1)]
"""Hosts, and ranks on each."""

START = """
import json, socket, sys, time
import numpy as np
import pycomm
comm = pycomm.init(timeout=20)
n, rank = comm.size, comm.rank

def tell(x):
    everyone = comm.all_gather_object(x)
    if rank == 0:
        print(json.dumps(everyone), flush=True)

def link_bytes():
    '''Return the bytes that this host has sent.'''
    with open("/proc/net/dev") as file:
        counters = next(line for line in file if "eth0:" in line)
    return int(counters.split(":")[1].split()[8])

def sent_by(operation):
    '''Return the bytes that this host sends in an operation.'''
    comm.barrier()
    before = link_bytes()
    comm.barrier()
    operation()
    comm.barrier()
    return link_bytes() - before
"""


def run(
    number: int,
    ranks: int,
    program: str,
    comm_timeout: float = 20,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program that has `comm` on so many hosts with so many ranks each."""
    require()
    start = START.replace("timeout=20", f"timeout={comm_timeout}")
    with hosts(number) as network:
        return network.mpirun(ranks, "-c", start + textwrap.dedent(program), timeout=90, env=env)


def told(number: int, ranks: int, program: str, env: Mapping[str, str] | None = None) -> list[list]:
    """Run a program that must succeed; return what its `tell`s gathered, a list of ranks each."""
    result = run(number, ranks, program, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(("number", "ranks"), LAYOUTS)
def test_every_rank_gets_what_it_should(number, ranks):
    program = """
        mine = np.arange(7, dtype=np.int64) + 100 * rank
        rows = np.stack([mine + 100 * (r - rank) for r in range(n)])
        for count in (0, 1, 7, 100_000):
            for dtype in ("int32", "float64", "float16"):
                x = np.full(count, rank + 1, dtype)
                assert (comm.all_reduce(x) == n * (n + 1) // 2).all()
                out = comm.reduce_scatter(np.full((n * 3, count), rank, dtype))
                assert (out == n * (n - 1) // 2).all()
        symmetric = comm.empty(100_000)
        symmetric[:] = rank
        assert (comm.all_reduce(symmetric, "avg") == (n - 1) / 2).all()
        assert (comm.all_gather(mine) == rows).all()
        counts = list(range(n))
        assert comm.all_gather(np.full(rank, rank), counts=counts).tolist() == [
            r for r in range(n) for _ in range(r)
        ]
        for root in range(n):
            assert (comm.broadcast(mine.copy(), root) == rows[root]).all()
        for count in (3, 1_000_000):
            sent = comm.isend(np.full(count, rank), (rank + 1) % n, tag=count)
            got = comm.recv((rank - 1) % n, tag=count)
            sent.wait()
            assert got.size == count and (got == (rank - 1) % n).all()
        comm.barrier()
        tell([socket.gethostname(), comm.local.size, comm.local.rank])
    """
    expected = [[f"h{h + 1}", ranks, local] for h in range(number) for local in range(ranks)]
    assert told(number, ranks, program) == [expected]


def test_sums_of_hosts_are_added_in_the_documented_orders():
    """Small and large, in all three orders: the bits of one process that adds in that order."""
    program = """
        for count in (5, 300_001):
            x = [np.random.default_rng(r).standard_normal(count, np.float32) for r in range(n)]
            orders = {
                None: (x[0] + x[1]) + (x[2] + x[3]),
                "rank": ((x[0] + x[1]) + x[2]) + x[3],
            }
            for order, total in orders.items():
                got = comm.all_reduce(x[rank].copy(), order=order)
                assert got.tobytes() == total.tobytes(), (count, order)
            got = comm.reduce_scatter(np.tile(x[rank], (n, 1)))
            assert got.tobytes() == orders[None].tobytes(), count
            same = [comm.all_reduce(x[rank].copy(), algorithm=a).tobytes()
                    for a in ("ring", "ring_gather")]
            assert same[0] == same[1]
            tell(comm.explain("all_reduce", count * 4).split()[7])
    """
    assert told(2, 2, program) == [["hierarchical_gather"] * 4, ["hierarchical"] * 4]


@pytest.mark.parametrize(
    ("number", "ranks", "algorithm", "dtype", "share"),
    [
        (2, 1, "ring", "float32", 1),
        (3, 1, "ring", "float32", 4 / 3),
        (2, 2, "ring", "float32", 1.5),
        (2, 2, "hierarchical", "float32", 1),
        (3, 2, "hierarchical", "float32", 4 / 3),
        (2, 2, "hierarchical", "float16", 1.5),
    ],
)
def test_a_host_sends_no_more_bytes_than_the_algorithm_needs(
    number, ranks, algorithm, dtype, share
):
    """2(h−1)/h of S, in a ring 2(n−1)/n; sums of hosts that are narrow travel as float32."""
    program = f"""
        x = np.ones(4_000_000, {dtype!r})
        sent = sent_by(lambda: comm.all_reduce(x, algorithm={algorithm!r}))
        assert (x == n).all()
        tell(sent / x.nbytes)
    """
    for sent in told(number, ranks, program)[0]:
        assert share <= sent < 1.05 * share


@pytest.mark.parametrize(("number", "ranks"), [(2, 2), (3, 2)])
@pytest.mark.parametrize(
    ("kind", "x", "share"),
    [
        ("reduce_scatter", "x", lambda h: (h - 1) / h),
        ("all_gather", "x[0]", lambda h: (h - 1) / h),
        ("broadcast", "x", lambda h: (h - 1).bit_length()),
    ],
)
def test_a_host_sends_no_more_than_other_hosts_need(number, ranks, kind, x, share):
    """Of a broadcast that is the root's host; and it is what large calls do by themselves."""
    program = f"""
        x = np.ones((n, 1_000_000), np.float32)
        assert "hierarchical (cheapest" in comm.explain({kind!r}, x.nbytes)
        tell(sent_by(lambda: comm.{kind}({x})) / x.nbytes)
    """
    sent = max(told(number, ranks, program)[0])
    assert share(number) <= sent < 1.05 * share(number)


@pytest.mark.parametrize("others", [(0,), (3,), (0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("shared", ["1", "0"])
def test_whoever_calls_something_else_all_ranks_say_so(others, shared):
    """One rank, a host, counterparts: and what a hierarchical call checks in its first step."""
    program = f"""
        calls = [("all_reduce", 10), ("all_reduce", 1 << 18), ("all_reduce", 1 << 18, "pairwise"),
                 ("reduce_scatter", 1 << 18), ("all_gather", 1 << 18)]
        pairs = [(a, b) for a in calls for b in calls if a != b]
        groups = [comm.split(0) for _ in pairs]
        for (a, b), group in zip(pairs, groups):
            kind, count, *name = a if rank in {others} else b
            x = np.full((4, count // 4), rank)
            try:
                getattr(group, kind)(x, algorithm=name[0] if name else None)
                assert False, (a, b)
            except pycomm.MismatchError as error:
                assert all(f"rank {{r}}: " in str(error) for r in range(n))
            assert (x == rank).all()
        tell(len(pairs))
    """
    assert told(2, 2, program, {"PYCOMM_SHARED_MEMORY": shared}) == [[20] * 4]


def test_different_calls_raise_on_all_hosts_and_name_both():
    program = """
        comm, failing = comm.split(0), comm
        x = np.ones(10)
        try:
            if rank == 0:
                failing.all_reduce(x)       # here
            else:
                failing.broadcast(x)        # there
        except pycomm.MismatchError as error:
            assert (x == 1).all()
            tell(str(error))
    """
    answers = told(2, 2, program)[0]
    lines = (START + textwrap.dedent(program)).splitlines()
    here, there = (
        next(i for i, line in enumerate(lines, 1) if word in line) for word in ("# here", "# there")
    )
    assert len(answers) == 4
    for text in answers:
        assert "rank 0: all_reduce(op='sum', float64, elements=10" in text
        assert f"<string>:{here}" in text
        assert "rank 3: broadcast(root=0, float64, elements=10" in text
        assert f"<string>:{there}" in text


@pytest.mark.parametrize("raising", [0, 3])
def test_a_rank_that_raises_ends_the_job_on_all_hosts(raising):
    program = f"""
        if rank == {raising}:
            raise ValueError("seven")
        comm.all_reduce(np.ones(100_000))
        time.sleep(60)
    """
    start = time.perf_counter()
    result = run(2, 2, program)
    assert result.returncode != 0
    assert "ValueError: seven" in result.stderr
    assert f"rank {raising} of 4 raised ValueError: the job ends" in result.stderr
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ("comm.all_reduce(np.ones(10))", "waits for messages from or to rank 1: no progress"),
        ("comm.recv(1)", "receives from rank 1 with tag 0: no progress"),
    ],
)
def test_a_stopped_rank_on_another_host_is_named(operation, words):
    program = f"""
        import os, signal
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        {operation}
    """
    start = time.perf_counter()
    result = run(2, 1, program, comm_timeout=2)
    assert result.returncode == 86
    assert "CommTimeoutError: rank 0 " + words in result.stderr
    assert time.perf_counter() - start < 10


def test_a_killed_rank_is_named_by_its_node_mate():
    """MPICH's launcher may be faster than the node-mate, on a busy machine."""
    program = """
        import os
        if rank == 3:
            os.kill(os.getpid(), 9)
        time.sleep(60)
    """
    for _ in range(4):
        start = time.perf_counter()
        result = run(2, 2, program)
        assert result.returncode != 0 and time.perf_counter() - start < 10
        if "pycomm:" in result.stderr:
            break
    assert "pycomm: rank 2: rank 3 of 4 (process " in result.stderr
    assert "on host h2) was killed by signal 9" in result.stderr


def test_a_mesh_keeps_tensor_parallel_groups_on_a_host():
    program = """
        mesh = pycomm.Mesh(comm, dp=2, tp=2)
        tell([socket.gethostname(), mesh["tp"].hosts, mesh["dp"].hosts])
    """
    for host, along_tp, along_dp in told(2, 2, program)[0]:
        assert along_tp == [host, host]
        assert along_dp == ["h1", "h2"]


def test_a_mesh_says_where_a_tensor_parallel_group_is_apart():
    result = run(2, 1, "pycomm.Mesh(comm, tp=2)")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("between hosts is slow: ranks 0 on h1, 1 on h2; use tp=1, or") == 1
