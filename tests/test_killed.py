"""A rank that dies is named by a survivor, which goes on where the launcher lets it live."""

from __future__ import annotations

import re

import pytest

from tests.hosts.network import is_open_mpi
from tests.launch import run

pytestmark = pytest.mark.mpirun

OTHERS = {
    "in a collective": "comm.all_reduce(np.ones(10))",
    "in a receive": "comm.recv((comm.rank + 1) % comm.size, tag=5)",
    "in an asynchronous collective": "comm.all_reduce(np.ones(10), async_op=True).wait()",
    "computing": "time.sleep(30)",
}
DEATHS = {
    "os.kill(os.getpid(), 9)": r"was killed by signal 9 \(Killed\)",
    "import ctypes; ctypes.string_at(0)": r"was killed by signal 11 \(Segmentation fault\)",
    "os._exit(0)": "exited with status 0 in the middle of the job",
    "os._exit(3)": "exited with status 3 in the middle of the job",
    "sys.exit(3)": "exited with status 3 in the middle of the job",
}
ATTEMPTS = 4
"""MPICH's launcher ends the survivors within milliseconds: on a busy machine it may be faster."""


def is_named(death: str, others: str, words: str) -> None:
    for _ in range(ATTEMPTS):
        result, seconds = run(3, f"if comm.rank == 1:\n    {death}\n{others}")
        assert seconds < 8
        named = re.findall(r"pycomm: rank [02]: rank (\d) of 3 .*", result.stderr)
        if named or is_open_mpi():
            break
    assert named[0] == "1", result.stderr
    assert re.search(rf"rank 1 of 3 \(process \d+ on host \S+\) {words}", result.stderr)


@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS.keys())
def test_a_killed_rank_is_named_whatever_the_others_do(others):
    is_named("os.kill(os.getpid(), 9)", others, DEATHS["os.kill(os.getpid(), 9)"])


@pytest.mark.parametrize(("death", "words"), list(DEATHS.items())[1:])
def test_it_is_said_how_a_rank_died(death, words):
    is_named(death, OTHERS["computing"], words)


def test_a_rank_that_leaves_is_not_taken_for_dead():
    program = """
        from mpi4py import MPI
        half = pycomm.Communicator.from_mpi(MPI.COMM_WORLD.Split(comm.rank % 2))
        half.barrier()
        del half
        import gc; gc.collect()
        time.sleep(0.5 * comm.rank)
        if comm.rank == 0: comm.close()
    """
    result, _ = run(4, program)
    assert result.returncode == 0 and "pycomm:" not in result.stderr, result.stderr


PENDING = {
    "a collective": "comm.all_reduce(np.ones(10))",
    "a large collective": "comm.all_reduce(np.ones(10**6))",
    "an asynchronous collective": "comm.all_reduce(np.ones(10), async_op=True).wait()",
    "a receive": "comm.recv(1)",
    "a receive from another rank": "comm.recv((comm.rank + 1) % 3)",
    "a receive from anyone": "comm.recv(pycomm.ANY)",
    "a send": "comm.send(np.ones(34 * 10**6), 1)",
}


@pytest.mark.parametrize("shared", ["1", "0"], ids=["shared memory", "wire"])
@pytest.mark.parametrize("pending", PENDING.values(), ids=PENDING.keys())
def test_under_ulfm_survivors_get_an_error_and_go_on(pending, shared):
    if not is_open_mpi():
        pytest.skip("MPICH ends all ranks when one dies")
    program = f"""
        pair = comm.split(comm.rank % 2)
        comm.barrier()
        if comm.rank == 1:
            time.sleep(0.3)
            os.kill(os.getpid(), 9)
        start = time.perf_counter()
        for operation in (lambda: {pending}, comm.barrier, lambda: comm.send(np.ones(1), 0)):
            try:
                operation()
            except pycomm.RankFailedError as error:
                assert error.ranks == (1,) and "rank 1" in str(error)
            else:
                raise AssertionError("no error")
        assert time.perf_counter() - start < 5, "2 s, on an idle machine"
        for _ in range(100):
            assert pair.all_reduce(np.ones(1000))[0] == 2
        pair.send(np.ones(3), 1 - pair.rank)
        assert pair.recv(1 - pair.rank).sum() == 3
        sys.stdout.write(f"{{comm.rank}} goes on\\n")
    """
    env, ulfm = {"PYCOMM_SHARED_MEMORY": shared}, ["--with-ft", "ulfm"]
    result, _ = run(3, program, env=env, options=ulfm)
    assert sorted(result.stdout.splitlines()) == ["0 goes on", "2 goes on"], result.stderr
