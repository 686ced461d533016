"""When a rank fails, leaves, disagrees or is late, the job ends, and says who and why."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import time

import pytest

from tests.launch import REPO, find_mpirun, mpirun

pytestmark = pytest.mark.mpirun

START = """
import sys, os, time, threading
import numpy as np
import pycomm
comm = pycomm.init(timeout={timeout})
comm.barrier()
start = time.perf_counter()
"""


def run(ranks, program, timeout=20.0, comm_timeout=60.0, **options):
    """Run a program on ranks that have `comm`; return its result and the seconds it took."""
    start = time.perf_counter()
    code = START.format(timeout=comm_timeout) + textwrap.dedent(program)
    result = mpirun(ranks, "-c", code, timeout=timeout, **options)
    return result, time.perf_counter() - start


OTHERS = {
    "in a collective": "comm.all_reduce(np.ones(10))",
    "in a large collective": "comm.all_reduce(np.ones(10_000_000))",
    "in a receive": "comm.recv((comm.rank + 1) % comm.size, tag=5)",
    "in an asynchronous collective": "comm.all_reduce(np.ones(10), async_op=True).wait()",
    "computing": "time.sleep(30)",
}


@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS.keys())
def test_a_rank_that_raises_ends_the_job_with_its_traceback(others):
    result, seconds = run(3, f"if comm.rank == 1: raise ValueError('seven')\n{others}")
    assert result.returncode != 0
    assert "ValueError: seven" in result.stderr
    assert "rank 1 of 3 raised ValueError: the job ends" in result.stderr
    assert seconds < 5, "import and start-up take about 1 s; the job must end within 2 s"


@pytest.mark.parametrize("others", ["comm.all_reduce(np.ones(10))", "time.sleep(30)"])
@pytest.mark.parametrize("leave", ["sys.exit(3)", "raise SystemExit(3)", "exit(3)"])
def test_a_rank_that_exits_with_a_failure_ends_the_job_with_its_code(others, leave):
    result, seconds = run(3, f"if comm.rank == 2: {leave}\n{others}")
    version = subprocess.run([find_mpirun(), "--version"], capture_output=True, text=True).stdout
    assert result.returncode == 3 or (result.returncode != 0 and "Open MPI" not in version), (
        "MPICH may return the code of a rank that it killed"
    )
    assert seconds < 5


def test_a_message_as_exit_status_is_a_failure_too():
    result, _ = run(2, "if comm.rank == 1: sys.exit('no such file')\ntime.sleep(30)")
    assert result.returncode != 0
    assert "no such file" in result.stderr


def test_another_thread_does_not_keep_a_failed_rank_alive():
    program = """
        if comm.rank == 1:
            threading.Thread(target=time.sleep, args=(30,)).start()
            raise KeyError("lost")
        comm.barrier()
    """
    result, seconds = run(2, program)
    assert result.returncode != 0 and "KeyError: 'lost'" in result.stderr
    assert seconds < 5


def test_hooks_that_were_there_before_still_run():
    program = """
        import sys
        sys.excepthook = lambda kind, error, traceback: print("mine:", error, file=sys.stderr)
        import pycomm
        comm = pycomm.init()
        if comm.rank == 0: raise RuntimeError("boom")
        comm.barrier()
    """
    result = mpirun(2, "-c", textwrap.dedent(program), timeout=20)
    assert result.returncode != 0
    assert "mine: boom" in result.stderr
    assert "rank 0 of 2 raised RuntimeError" in result.stderr


def test_all_ranks_that_finish_leave_cleanly_in_any_order():
    result, _ = run(
        3, "time.sleep(0.3 * comm.rank); sys.stdout.write(f'done {comm.rank}\\n'); sys.exit(0)"
    )
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.split()) == ["0", "1", "2", "done", "done", "done"]


@pytest.mark.parametrize("shared", ["1", "0"], ids=["shared memory", "wire"])
@pytest.mark.parametrize(
    ("first", "others"),
    [
        ("comm.all_reduce(np.zeros(4))", "comm.all_reduce(np.zeros(8))"),
        ("comm.all_reduce(np.zeros(4))", "comm.all_reduce(np.zeros(4, np.float32))"),
        ("comm.all_reduce(np.zeros(4))", "comm.all_reduce(np.zeros(4), 'max')"),
        ("comm.all_reduce(np.zeros(4))", "comm.all_reduce(np.zeros(4), algorithm='pairwise')"),
        ("comm.broadcast(np.zeros(4), 0)", "comm.broadcast(np.zeros(4), 1)"),
        ("comm.broadcast(np.zeros(4))", "comm.all_reduce(np.zeros(4))"),
        ("comm.barrier()", "comm.all_gather(np.zeros(4))"),
        ("x = np.ones(10**6); comm.all_reduce(x, pycomm.premul_sum(2))",
         "x = np.ones(10**6); comm.all_reduce(x, pycomm.premul_sum(3))"),
    ],
)  # fmt: skip
def test_ranks_that_make_different_calls_are_all_told_both_sides(first, others, shared):
    program = f"""
        x = np.ones(1)
        try:
            if comm.rank == 0:
                {first}
            else:
                {others}
        except pycomm.MismatchError as error:
            assert (x == 1).all()
            sys.stdout.write(str(error).replace(chr(10), "|") + chr(10))
        try:
            comm.barrier()
        except pycomm.CommError as error:
            assert "failed before" in str(error), error
    """
    result, _ = run(3, program, env={"PYCOMM_SHARED_MEMORY": shared})
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        parts = line.split("|")
        kinds = [call.split("comm.")[1].split("(")[0] for call in (first, others, others)]
        assert [part.split("(")[0] for part in parts[1:]] == [
            f"  rank {rank}: {kind}" for rank, kind in enumerate(kinds)
        ]
        assert all("<string>:" in part for part in parts[1:]), "the call site"


def test_who_waits_for_a_rank_that_has_left_is_told_at_once():
    program = """
        if comm.rank == 0: sys.exit(0)
        try:
            comm.all_reduce(np.ones(3)) if comm.rank == 1 else comm.recv(0)
        except pycomm.DepartedError as error:
            print(error, flush=True)
            assert time.perf_counter() - start < 3
    """
    result, _ = run(3, program)
    assert "rank 1 waits in all_reduce, but rank 0 has left" in result.stdout, result.stderr
    assert "rank 2 receives from rank 0 with tag 0, but rank 0 has left" in result.stdout


@pytest.mark.parametrize("shared", ["1", "0"], ids=["shared memory", "wire"])
@pytest.mark.parametrize(
    ("late", "state"),
    [("time.sleep(30)", "running|waiting"), ("os.kill(os.getpid(), signal.SIGSTOP)", "stopped")],
)
def test_a_rank_that_does_not_come_is_a_timeout_and_ends_the_job_with_code_86(late, state, shared):
    program = f"""
        import signal
        def dawdle():
            {late}
        if comm.rank == 1: dawdle()
        comm.all_reduce(np.ones(3))
    """
    env = {"PYCOMM_SHARED_MEMORY": shared}
    result, seconds = run(2, program, comm_timeout=1.0, env=env)
    assert result.returncode == 86
    assert "CommTimeoutError: rank 0" in result.stderr
    if shared == "1":
        where = re.search(rf"rank 1: process \d+ is ({state})(.*)", result.stderr, re.S)
        assert where, result.stderr
        assert state == "stopped" or "in dawdle" in where[2], "its stack"
    assert seconds < 8


CYCLES = {
    "receives head to head": "comm.recv(1 - comm.rank)",
    "two communicators in opposite order": """
        [first.barrier, lambda: second.all_reduce(np.ones(5))][comm.rank]()""",
    "a receive and a collective": "comm.recv(1) if comm.rank == 0 else comm.barrier()",
}


@pytest.mark.parametrize("block", CYCLES.values(), ids=CYCLES.keys())
def test_ranks_that_wait_for_each_other_are_told_at_once(block):
    program = f"""
        first, second = comm.split(0), comm.split(0)
        start = time.perf_counter()
        try:
            {block.strip()}
        except pycomm.DeadlockError as error:
            assert time.perf_counter() - start < 2
            sys.stdout.write(str(error).splitlines()[0] + chr(10))
            assert "File" in str(error), "everyone's stack"
    """
    result, _ = run(2, program)
    assert result.returncode == 0, result.stderr
    assert sorted(line[:24] for line in result.stdout.splitlines()) == [
        "rank 0: processes wait f",
        "rank 1: processes wait f",
    ]


def test_a_cycle_of_three():
    program = """
        try:
            comm.recv((comm.rank + 1) % 3)
        except pycomm.DeadlockError:
            sys.stdout.write("told ")
    """
    result, _ = run(3, program)
    assert result.stdout.count("told") == 3, result.stderr


def test_waiting_that_will_end_is_no_deadlock():
    """A chain of waiting ranks, and a cycle that an asynchronous operation opens after a while."""
    program = """
        other = comm.split(0)
        if comm.rank == 0:
            work = other.all_reduce(np.ones(4), async_op=True)
            assert comm.recv(1).size == 3
            assert work.wait()[0] == 3
        if comm.rank == 1:
            assert comm.recv(2).size == 1
            time.sleep(1)
            assert other.all_reduce(np.ones(4))[0] == 3
            comm.send(np.ones(3), 0)
        if comm.rank == 2:
            time.sleep(1.5)
            comm.send(np.ones(1), 1)
            time.sleep(1)
            assert other.all_reduce(np.ones(4))[0] == 3
        comm.barrier()
    """
    result, _ = run(3, program)
    assert result.returncode == 0, result.stderr


def test_a_slow_rank_within_the_timeout_is_no_error():
    result, _ = run(2, "time.sleep(2.5 * comm.rank)\ncomm.barrier()", comm_timeout=5.0)
    assert result.returncode == 0, result.stderr


def test_a_forked_child_is_refused_and_may_exit():
    program = """
        child = os.fork()
        if child == 0:
            try:
                comm.barrier()
            except pycomm.CommError as error:
                assert "was forked from a rank" in str(error)
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        x = comm.empty(1000, "int8")
        x[:] = 5
        if os.fork() == 0:
            del x
            sys.exit(0)
        os.wait()
        comm.barrier()
        assert (x == 5).all(), "the child gave its parent's memory back"
    """
    result, _ = run(2, program)
    assert result.returncode == 0, result.stderr


def test_another_timeout_the_second_time_is_refused():
    program = """
        assert pycomm.init() is comm and pycomm.init(60.0) is comm
        try:
            pycomm.init(timeout=1.0)
        except ValueError as error:
            print(error)
    """
    result, _ = run(1, program)
    assert result.stdout.strip() == "timeout=1 is not the 60 s of the first call"


def test_nothing_is_left_behind_by_many_operations():
    program = """
        def state():
            maps = sum("memfd:pycomm" in line for line in open("/proc/self/maps"))
            return len(os.listdir("/proc/self/fd")), threading.active_count(), maps
        def work():
            for i in range(300):
                comm.all_reduce(comm.empty(1000 + i))
                comm.all_reduce(np.ones(2), async_op=True).wait()
                s = comm.split(0)
                s.barrier()
                s.all_reduce(np.ones(1), async_op=True).wait()
                s.close()
                del s
        work()
        before = state()
        work()
        assert state() == before, (before, state())
        assert pycomm._native.symmetric_bytes() == 0
    """
    result, _ = run(2, program, timeout=60)
    assert result.returncode == 0, result.stderr
    assert not [name for name in os.listdir("/dev/shm") if "pycomm" in name]


def test_a_killed_job_leaves_no_process():
    code = (
        START.format(timeout=60)
        + "sys.stdout.write(f'{os.getpid()}\\n')\nsys.stdout.flush()\ntime.sleep(60)"
    )
    command = [find_mpirun(), "-np", "3", sys.executable, "-uc", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPO) as job:
        pids = [int(job.stdout.readline()) for _ in range(3)]
        os.kill(pids[1], 9)
        assert job.wait(timeout=10) != 0
    end = time.monotonic() + 5
    while alive := [pid for pid in pids if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < end, alive
        time.sleep(0.05)


def test_mpi_communicators_of_others_can_be_used():
    program = """
        from mpi4py import MPI
        import numpy as np, pycomm, sys
        half = MPI.COMM_WORLD.Split(MPI.COMM_WORLD.rank % 2)
        comm = pycomm.Communicator.from_mpi(half)
        assert (comm.rank, comm.size) == (half.rank, half.size)
        assert comm.all_reduce(np.ones(3))[0] == half.size
        assert pycomm.init().size == 3
    """
    result = mpirun(3, "-c", textwrap.dedent(program), timeout=20)
    assert result.returncode == 0, result.stderr
