"""When a rank fails, leaves, disagrees or is late, the job ends, and says who and why."""

from __future__ import annotations

import os
import subprocess
import textwrap

import pytest

from tests.launch import find_mpirun, mpirun, run

pytestmark = pytest.mark.mpirun

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


HOLDS = {
    "a thread": "threading.Thread(target=time.sleep, args=(30,)).start()",
    "an exit handler": "import atexit; atexit.register(time.sleep, 30)",
    "native code that keeps the interpreter": """
            import atexit, ctypes
            atexit.register(ctypes.PyDLL(None).sleep, 30)""",
}


@pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS.keys())
def test_nothing_keeps_a_failed_rank_from_ending_the_job(hold):
    program = f"""
        if comm.rank == 1:
            {hold.strip()}
            raise KeyError("lost")
        time.sleep(30)
    """
    result, seconds = run(2, program)
    assert result.returncode == 86 and "KeyError: 'lost'" in result.stderr
    assert "rank 1 of 2 raised KeyError, and 2 s later something keeps it" in result.stderr
    assert seconds < 8


def test_a_failed_rank_may_use_two_seconds_to_end():
    program = """
        if comm.rank == 1:
            threading.Thread(target=lambda: (time.sleep(0.5), print("saved", flush=True))).start()
            raise KeyError("lost")
        time.sleep(30)
    """
    result, _ = run(2, program)
    assert "saved" in result.stdout
    assert result.returncode not in (0, 86)


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


UNDER_WAY = {
    "waiting": "comm.all_reduce(np.ones(3), async_op=True)",
    "many": "works = [comm.all_reduce(np.ones(3 + i), async_op=True) for i in range(50)]",
    "of several parts": "work = comm.scatter(np.ones(2), async_op=True)",
    "in the middle": """
        halves = [np.ones(20_000_000) for _ in range(2)]
        for x in halves: comm.all_reduce(x, async_op=True)
        del x, halves""",
}


@pytest.mark.parametrize("leave", ["sys.exit(0)", "sys.exit(5)", "raise ValueError('seven')"])
@pytest.mark.parametrize("start", UNDER_WAY.values(), ids=UNDER_WAY.keys())
def test_a_rank_may_exit_with_operations_under_way(start, leave):
    program = f"""
        if comm.rank == 1 or {"del x" in start}:
            {start.strip()}
        {leave}
    """
    result, seconds = run(2, program)
    assert (result.returncode == 0) == (leave == "sys.exit(0)"), result.stderr
    assert "signal" not in result.stderr.lower(), result.stderr
    assert seconds < 8


def test_a_forked_child_leaves_its_parents_operations_alone():
    program = """
        x = np.full(10, 1.0)
        if comm.rank == 0: comm.recv(1)
        work = comm.all_reduce(x, async_op=True)
        if comm.rank == 1:
            child = os.fork()
            if child == 0:
                try:
                    work.wait()
                except RuntimeError as error:
                    assert "a forked child cannot wait" in str(error)
                del work
                comm.close()
                sys.exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            comm.send(x, 0)
        assert (work.wait() == 2).all()
    """
    result, _ = run(2, program)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("timeout", ["None", "20"])
def test_an_interrupt_ends_waiting_for_an_asynchronous_operation(timeout):
    program = f"""
        import signal
        other = comm.split(0)
        if comm.rank == 0:
            other.recv(1)
        else:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                comm.all_reduce(np.ones(10), async_op=True).wait({timeout})
            except KeyboardInterrupt:
                sys.stdout.write("interrupted")
            other.send(np.ones(1), 0)
    """
    result, _ = run(2, program)
    assert result.stdout == "interrupted" and result.returncode == 0, result.stderr


def test_a_rank_that_is_bound_to_a_core_lets_operations_run_on_a_spare_one():
    """And where all cores have a rank, they stay on its own."""
    program = """
        import sys, os
        launchers = os.sched_getaffinity(os.getppid())
        mine = {min(launchers)}
        os.sched_setaffinity(0, mine)
        import numpy as np, pycomm
        before = set(os.listdir("/proc/self/task"))
        comm = pycomm.init()
        comm.all_reduce(np.ones(1), async_op=True).wait()
        sets = [os.sched_getaffinity(int(t)) for t in set(os.listdir("/proc/self/task")) - before]
        spare = len(launchers) > comm.size
        assert (launchers if spare else mine) in sets, (launchers, sets)
        assert os.sched_getaffinity(0) == mine
        comm.barrier()
    """
    for ranks in (1, os.cpu_count() + 1):
        result = mpirun(ranks, "-c", textwrap.dedent(program), timeout=60)
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
