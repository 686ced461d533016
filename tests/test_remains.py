"""Nothing is left behind: by many operations, by many communicators, by jobs that were killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch import REPO, SETTINGS, START, find_mpirun, run

pytestmark = pytest.mark.mpirun

STATE = """
import gc
def state():
    gc.collect()
    maps = sum("memfd:pycomm" in line for line in open("/proc/self/maps"))
    symmetric = pycomm._native.symmetric_bytes()
    return len(os.listdir("/proc/self/fd")), threading.active_count(), maps, symmetric
def resident_kib():
    # The memory that operations share is counted elsewhere.
    return int(next(line for line in open("/proc/self/status") if "RssAnon" in line).split()[1])
"""

ROUND = """
def round(i):
    n, peer = 1 + i % 7 * 700, 1 - comm.rank
    x, y = np.ones(2 * n), comm.empty((2, n))
    y.fill(1)
    comm.all_reduce(x); comm.all_reduce(y, "max"); comm.broadcast(x, 1); comm.barrier()
    comm.all_gather(x); comm.reduce_scatter(y); comm.reduce(y, 1); comm.gather(x)
    comm.scatter(y); comm.all_to_all(y); comm.all_to_all(y, None, [1, 1])
    comm.broadcast_object({"round": i}); comm.all_gather_object("x" * n)
    works = [comm.all_reduce(x, async_op=True), comm.isend(y, peer, i), comm.irecv(peer, i)]
    comm.isend(x, comm.rank).wait(); comm.recv(comm.rank, out=x)
    for work in works: work.wait()
    try: comm.all_reduce([1.0])
    except TypeError: pass
"""
OPERATIONS_A_ROUND = 19


def test_ten_thousand_operations_leave_nothing():
    """What one operation in twenty left, if it were as little as 1 KiB, would be seen.

    The C library's heap and MPI's buffers wander within a fifth of that.
    """
    program = f"""
        for i in range(400): round(i)
        comm.isend(np.zeros(20_000), 1 - comm.rank).wait()  # the slot that is kept for the next
        comm.recv(1 - comm.rank)
        before, memory = state(), resident_kib()
        for i in range({10_000 // OPERATIONS_A_ROUND + 1}): round(i)
        grown = resident_kib() - memory
        assert state() == before, (before, state())
        assert grown < 500, grown
        sys.stdout.write(f"{{grown}}\\n")
    """
    result, _ = run(2, program, timeout=90, setup=STATE + ROUND)
    assert result.returncode == 0, result.stderr
    assert not [name for name in os.listdir("/dev/shm") if "pycomm" in name]


def test_thousands_of_communicators_come_and_go():
    """2 200 splits: MPI itself stops at 2 046 with MPICH. 300 of them live at once."""
    program = """
        def use(c):
            c.all_reduce(np.ones(1))
            c.close()
        for i in range(20): use(comm.split(0))
        comm.split(0).all_reduce(np.ones(1), async_op=True).wait()
        before = state()
        for i in range(1899): use(comm.split(i % 3, -comm.rank))
        alive = [comm.split(0) for i in range(300)]
        for c in alive: assert c.all_reduce(np.ones(1))[0] == 2
        for c in alive:
            work = c.all_reduce(np.ones(1), async_op=True)
            c.send(np.ones(1), comm.rank)
            assert c.recv(comm.rank)[0] == 1 and work.wait()[0] == 2
            c.close()
        del alive, c, work
        comm.barrier()
        assert state() == before, (before, state())
        sys.stdout.write(f"{comm.split(0)._context}\\n")
    """
    result, _ = run(2, program, timeout=120, setup=STATE)
    assert result.returncode == 0, result.stderr
    assert all(int(line) >= 2200 for line in result.stdout.split())


BUSY = {
    "asleep": "time.sleep(60)",
    "in a collective": "comm.barrier() if comm.rank else time.sleep(60)",
    "in a receive": "comm.recv((comm.rank + 1) % 3) if comm.rank else time.sleep(60)",
}


@pytest.mark.parametrize("whom", ["a rank", "mpirun"])
@pytest.mark.parametrize("busy", BUSY.values(), ids=BUSY.keys())
def test_a_killed_job_leaves_nothing_on_the_machine(whom, busy):
    code = START.format(timeout=60) + (
        "x = comm.empty(1000)\nsys.stdout.write(f'{os.getpid()}\\n')\nsys.stdout.flush()\n" + busy
    )
    command = [find_mpirun(), "-np", "3", sys.executable, "-uc", code]
    environment = {**os.environ, **SETTINGS}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPO,
        env=environment,
    ) as job:
        pids = [int(job.stdout.readline()) for _ in range(3)]
        os.kill(job.pid if whom == "mpirun" else pids[1], signal.SIGKILL)
        assert job.wait(timeout=10) != 0
    end = time.monotonic() + 10
    while alive := [pid for pid in pids if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < end, alive
        time.sleep(0.05)
    assert not [name for name in os.listdir("/dev/shm") if "pycomm" in name]
