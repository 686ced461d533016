"""Ranks that disagree, are late, or wait for each other: all are told who and where."""

from __future__ import annotations

import re

import pytest

from tests.launch import run

pytestmark = pytest.mark.mpirun


DIFFERENT = [
    ("comm.all_reduce(np.zeros(4))", "comm.all_reduce(np.zeros(8))"),
    ("comm.all_reduce(np.zeros(4))", "comm.all_reduce(np.zeros(4, np.float32))"),
    ("comm.all_reduce(np.zeros(4))", "comm.all_reduce(np.zeros(4), 'max')"),
    ("comm.all_reduce(np.zeros(4))", "comm.all_reduce(np.zeros(4), algorithm='pairwise')"),
    ("comm.broadcast(np.zeros(4), 0)", "comm.broadcast(np.zeros(4), 1)"),
    ("comm.broadcast(np.zeros(4))", "comm.all_reduce(np.zeros(4))"),
    ("comm.barrier()", "comm.all_gather(np.zeros(4))"),
    ("x = np.ones(10**6); comm.all_reduce(x, pycomm.premul_sum(2))",
     "x = np.ones(10**6); comm.all_reduce(x, pycomm.premul_sum(3))"),
]  # fmt: skip


@pytest.fixture(scope="module", params=["1", "0"], ids=["shared memory", "wire"])
def told(request):
    """What every rank is told of each pair of calls, a communicator each."""
    program = f"""
        world = comm
        for k, calls in enumerate({DIFFERENT}):
            comm, x = world.split(0), np.ones(1)
            try:
                exec(calls[comm.rank > 0])
            except pycomm.MismatchError as error:
                assert (x == 1).all()
                sys.stdout.write(f"{{k}}|" + str(error).replace(chr(10), "|") + chr(10))
            try:
                comm.barrier()
            except pycomm.CommError as error:
                assert "failed before" in str(error), error
    """
    result, _ = run(3, program, env={"PYCOMM_SHARED_MEMORY": request.param})
    assert result.returncode == 0, result.stderr
    return [line.split("|") for line in result.stdout.splitlines()]


@pytest.mark.parametrize("k", range(len(DIFFERENT)), ids=[pair[1] for pair in DIFFERENT])
def test_ranks_that_make_different_calls_are_all_told_both_sides(k, told):
    first, others = DIFFERENT[k]
    lines = [parts for number, *parts in told if number == str(k)]
    assert len(lines) == 3
    for *parts, flight in lines:
        assert flight.startswith("what this rank did last is in ")
        kinds = [call.split("comm.")[1].split("(")[0] for call in (first, others, others)]
        assert [part.split("(")[0] for part in parts[1:]] == [
            f"  rank {rank}: {kind}" for rank, kind in enumerate(kinds)
        ]
        assert all("<string>:" in part for part in parts[1:]), "the call site"


@pytest.mark.parametrize("shared", ["1", "0"], ids=["shared memory", "wire"])
def test_every_kind_of_disagreement_is_told_to_all(shared):
    program = """
        calls = [
            ("all_gather(np.zeros(4))", "all_gather(np.zeros(5))"),
            ("all_gather(np.zeros(3), counts=[3, 4, 4])",
             "all_gather(np.zeros(3), counts=[3, 3, 3])"),
            ("reduce_scatter(np.zeros(9))", "reduce_scatter(np.zeros(9), counts=[1, 4, 4])"),
            ("reduce(np.zeros(4), 0)", "reduce(np.zeros(4), 1)"),
            ("gather(np.zeros(4))", "gather(np.zeros((2, 2)))"),
            ("scatter(np.zeros((3, 4)), 0)", "scatter(np.zeros((3, 4)), 1)"),
            ("scatter(np.zeros((3, 4)))", "scatter(None, out=np.zeros(5))"),
            ("all_to_all(np.zeros((3, 4)))", "all_to_all(np.zeros((3, 5)))"),
            ("all_to_all(np.zeros(3), None, [1, 1, 1], [2, 0, 1])",
             "all_to_all(np.zeros(3), None, [1, 1, 1])"),
            ("broadcast(np.zeros(10**6))", "all_reduce(np.zeros(10**6))"),
        ]
        for pair in calls:
            call = pair[comm.rank > 0]
            try:
                eval("comm.split(0)." + call)
            except pycomm.MismatchError:
                continue
            raise AssertionError(call)
    """
    result, _ = run(3, program, env={"PYCOMM_SHARED_MEMORY": shared})
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("shared", ["1", "0"], ids=["shared memory", "wire"])
def test_what_mpi_does_wrong_in_silence_is_done_right(shared):
    """Types that MPI reinterprets, adds as bytes, or sends in the order of memory."""
    program = """
        import torch
        if comm.rank == 0:
            comm.send(np.ones(3), 1)
            comm.send(torch.arange(6.0).reshape(2, 3).t(), 1)
        else:
            kept = np.full(3, 7, np.float32)
            try:
                comm.recv(0, out=kept)
            except pycomm.MismatchError as error:
                assert "of float64" in str(error) and "of float32" in str(error)
                assert (kept == 7).all()
                print("refused")
            assert comm.recv(0).tolist() == [[0, 3], [1, 4], [2, 5]]
        assert (comm.all_reduce(torch.ones(5, dtype=torch.bfloat16)) == 2).all()
        t = torch.zeros(3, 2).t() if comm.rank else torch.arange(6.0).reshape(3, 2).t()
        assert comm.broadcast(t).tolist() == [[0, 2, 4], [1, 3, 5]]
        for wrong in (np.zeros(2, "U3"), np.zeros(2, ">f8"), torch.zeros(2).to_sparse(), [1.0]):
            try:
                comm.all_reduce(wrong)
            except TypeError:
                continue
            raise AssertionError(wrong)
        comm.barrier()
    """
    result, _ = run(2, program, env={"PYCOMM_SHARED_MEMORY": shared})
    assert result.returncode == 0, result.stderr
    assert result.stdout == "refused\n"


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
    waits = {"1": "rank 1 did not come", "0": "waits for messages from or to rank 1"}
    assert waits[shared] in result.stderr
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
    program = """
        time.sleep(2.5 * comm.rank)
        comm.barrier()
        if comm.rank == 1: time.sleep(2.5)
        comm.recv(1) if comm.rank == 0 else comm.send(np.ones(3), 0)
    """
    result, _ = run(2, program, comm_timeout=4.0)
    assert result.returncode == 0, result.stderr
    assert "rank 0 has waited 2.0 s for rank 1" in result.stderr, "a warning at half"
    assert "rank 0 receives from rank 1 with tag 0, and has waited 2.0 s" in result.stderr


def test_an_asynchronous_operation_says_the_same_of_a_late_rank():
    program = """
        if comm.rank == 0:
            work = comm.all_reduce(np.ones(3), async_op=True)
            while not work.done(): pass
            assert isinstance(work.exception(), pycomm.CommTimeoutError)
            try:
                comm.barrier()
            except pycomm.CommError as error:
                assert "failed before" in str(error)
            work.wait()
        time.sleep(30)
    """
    result, _ = run(2, program, comm_timeout=1.0)
    assert result.returncode == 86
    assert "rank 0 has waited 0.5 s for rank 1" in result.stderr, "from a busy program, too"
    assert "CommTimeoutError: rank 0: rank 1 did not come to all_reduce within 1 s" in result.stderr
    assert "rank 1: process" in result.stderr, "where everyone is"


def test_who_waits_for_an_asynchronous_operation_is_told_of_a_rank_that_has_left():
    program = """
        if comm.rank == 0: sys.exit(0)
        try:
            comm.all_reduce(np.ones(3), async_op=True).wait()
        except pycomm.DepartedError as error:
            print(error, flush=True)
    """
    result, _ = run(2, program)
    assert "rank 1 waits in all_reduce, but rank 0 has left" in result.stdout, result.stderr


def test_a_rank_that_was_itself_stopped_goes_on_if_the_others_came_meanwhile():
    program = """
        import signal
        other = comm.all_gather(np.array([os.getpid()]))[0, 0]
        if comm.rank == 1:
            time.sleep(0.5)
            os.kill(other, signal.SIGSTOP)
            threading.Timer(3, os.kill, (other, signal.SIGCONT)).start()
            time.sleep(1.5)
        comm.all_reduce(np.ones(3))
    """
    result, _ = run(2, program, comm_timeout=2.5)
    assert result.returncode == 0, result.stderr
