"""Asynchronous collectives: progress by themselves, order, errors, and whose the arrays are."""

from __future__ import annotations

import gc
import itertools
import random
import re
import sys
import time
import weakref

import numpy as np
import pytest

import pycomm


def total(comm):
    return comm.size * (comm.size + 1) // 2


def needs_shared_memory(comm):
    if len(comm.world.mailbox.mates) < comm.size:
        pytest.skip("over MPI a thread of Python runs what is asynchronous")


def test_many_operations_on_several_communicators_in_a_different_order_on_every_rank(comm):
    others = [comm.split(0) for _ in range(3)]
    counts = [1, 100, 40_000, 5, 300_000, 1]
    arrays = {(c, i): np.full(n, comm.rank + 1) for c in range(3) for i, n in enumerate(counts)}
    left = {c: list(range(len(counts))) for c in range(3)}
    shuffled = random.Random(comm.rank)
    works = []
    while any(left.values()):
        c = shuffled.choice([c for c in left if left[c]])
        x = arrays[c, left[c].pop(0)]
        works.append((others[c].all_reduce(x, async_op=True), x))
    shuffled.shuffle(works)
    for work, x in works:
        assert work.wait() is x and work.done() and work.exception() is None
        assert (x == total(comm)).all()
    for other in others:
        other.close()


@pytest.mark.parametrize("count", [10, 1_000_000])
def test_a_thread_that_keeps_the_interpreter_does_not_stop_progress(comm, count):
    """Of rank 0 nothing but its arrays is looked at until the result is there."""
    needs_shared_memory(comm)
    x = np.full(count, comm.rank + 1)
    before = sys.getswitchinterval()
    if comm.rank > 0:
        assert (comm.all_reduce(x) == total(comm)).all()
        return
    sys.setswitchinterval(1000.0)
    try:
        work = comm.all_reduce(x, async_op=True)
        end = time.monotonic() + 20
        while x[-1] != total(comm) and time.monotonic() < end:
            pass
        arrived = time.monotonic() < end
    finally:
        sys.setswitchinterval(before)
    assert arrived
    assert (work.wait() == total(comm)).all()


def reduced(comm, x, async_op):
    result = comm.all_reduce(x, async_op=async_op)
    return result.wait() if async_op else result


KINDS = {
    "all_reduce": lambda comm, x: comm.all_reduce(x, async_op=True),
    "premul_sum": lambda comm, x: comm.all_reduce(x, pycomm.premul_sum(1), async_op=True),
    "reduce": lambda comm, x: comm.reduce(x, async_op=True),
    "broadcast": lambda comm, x: comm.broadcast(x, async_op=True),
    "all_gather": lambda comm, x: comm.all_gather(x, async_op=True),
    "reduce_scatter": lambda comm, x: comm.reduce_scatter(x, async_op=True),
    "gather": lambda comm, x: comm.gather(x, async_op=True),
    "scatter": lambda comm, x: comm.scatter(x, async_op=True),
    "all_to_all": lambda comm, x: comm.all_to_all(x, async_op=True),
    "all_to_all with counts": lambda comm, x: comm.all_to_all(
        x, None, [1] * comm.size, async_op=True
    ),
    "barrier": lambda comm, x: comm.barrier(async_op=True),
    "ring": lambda comm, x: comm.all_reduce(x, algorithm="ring", async_op=True),
}


def test_all_kinds_keep_their_order_also_those_of_several_parts(comm):
    kinds = [*KINDS.values(), *reversed(KINDS.values())]
    inputs = [np.full((comm.size, 50), 1.0 * i + comm.rank) for i in range(len(kinds))]
    alone = [kind(comm, x.copy()).wait() for kind, x in zip(kinds, inputs)]
    works = [kind(comm, x) for kind, x in zip(kinds, inputs)]
    last = comm.all_reduce(np.array([comm.rank]))
    assert all([work.done() for work in works]), "a synchronous call comes behind all of them"
    assert last[0] == comm.size * (comm.size - 1) // 2
    for work, expected in zip(works, alone):
        result = work.wait()
        assert (result is None and expected is None) or (result == expected).all()


def test_a_strided_result_is_there_when_wait_returns_and_then_belongs_to_the_caller(comm):
    x = np.full((30, 20), comm.rank + 1)
    work = comm.all_reduce(x[:, ::2], async_op=True)
    work.wait()
    assert (x[:, ::2] == total(comm)).all() and (x[:, 1::2] == comm.rank + 1).all()
    x[:] = 0
    work.wait()
    assert (x == 0).all()


def test_a_wait_that_ends_before_the_operation_lets_it_go_on(comm):
    """And messages do not wait for it: rank 0 sends one before it takes part."""
    x = np.full(10, comm.rank + 1)
    if comm.rank == 0:
        for rank in range(1, comm.size):
            comm.recv(rank, 3)
            comm.send(np.zeros(100_000), rank, 4)
    work = comm.all_reduce(x, async_op=True)
    if comm.rank > 0:
        with pytest.raises(pycomm.CommTimeoutError, match="not complete after 0.01 s; it goes on"):
            work.wait(0.01)
        assert not work.done() and work.exception() is None
        comm.send(np.zeros(1), 0, 3)
        assert comm.recv(0, 4).size == 100_000
    assert (work.wait(30) == total(comm)).all()


@pytest.mark.parametrize("first", ["synchronous", "asynchronous"])
def test_ranks_that_make_different_calls_are_told_at_once_and_through_the_work(comm, first):
    """Rank 0 has its error before the others wait: nobody needs their interpreter for it."""
    if comm.size == 1:
        pytest.skip("one rank agrees with itself")
    other = comm.split(0)
    x = np.ones(4 if comm.rank == 0 else 8)
    if comm.rank == 0:
        with pytest.raises(pycomm.MismatchError) as caught:
            reduced(other, x, async_op=first == "asynchronous")
        for rank in range(1, comm.size):
            comm.send(np.zeros(1), rank, 6)
    else:
        work = other.all_reduce(x, async_op=True)
        comm.recv(0, 6)
        with pytest.raises(pycomm.MismatchError) as caught:
            work.wait()
        assert work.done() and work.exception() is caught.value
    for rank, line in enumerate(str(caught.value).splitlines()[1 : comm.size + 1]):
        call = rf"all_reduce\(op='sum', float64, elements={4 if rank == 0 else 8}"
        assert re.fullmatch(rf"  rank {rank}: {call}, algorithm='\w+'\) at .*\.py:\d+", line)
    assert (x == 1).all()
    for async_op in (False, True):
        with pytest.raises(pycomm.CommError, match="failed before"):
            other.barrier(async_op=async_op)
    other.close()


def test_operations_behind_one_that_failed_fail_too(comm):
    if comm.size == 1:
        pytest.skip("one rank agrees with itself")
    other = comm.split(0)
    works = [other.all_reduce(np.ones(comm.rank + n), async_op=True) for n in (1, 9)]
    assert all([isinstance(error_of(work), pycomm.MismatchError) for work in works])
    other.close()


def error_of(work):
    try:
        work.wait()
    except pycomm.CommError as error:
        return error


def test_arrays_live_as_long_as_the_operation_also_when_nobody_else_wants_them(comm):
    x = np.ones(1000)
    known = weakref.ref(x)
    if comm.rank == 0:
        for rank in range(1, comm.size):
            comm.recv(rank, 2)
    comm.all_reduce(x, async_op=True)
    del x
    if comm.rank > 0:
        gc.collect()
        assert known() is not None
        comm.send(np.zeros(1), 0, 2)
    comm.barrier()
    comm.barrier(async_op=True).wait()
    assert known() is None


def test_a_work_that_was_waited_for_keeps_only_its_result(comm):
    needs_shared_memory(comm)
    x, y = np.ones(comm.size), np.zeros(1)
    given = sys.getrefcount(x)
    work = comm.reduce_scatter(x, out=y, async_op=True)
    assert work.wait() is y
    assert sys.getrefcount(x) == given
    del work
    work = comm.all_reduce(x, async_op=True)
    work.wait()
    del work
    assert sys.getrefcount(x) == given


def test_closing_finishes_what_is_under_way(comm):
    other = comm.split(0)
    arrays = [np.full(n, comm.rank + 1) for n in (3, 500_000)]
    works = [other.all_reduce(x, async_op=True) for x in arrays]
    other.close()
    for work, x in zip(works, arrays):
        assert work.done() and work.wait() is x and (x == total(comm)).all()
    with pytest.raises(pycomm.CommError, match="was closed"):
        other.all_reduce(arrays[0], async_op=True)


def test_a_communicator_that_is_dropped_ends_its_thread(comm):
    needs_shared_memory(comm)

    def threads():
        with open("/proc/self/status") as file:
            return int(next(line for line in file if line.startswith("Threads:")).split()[1])

    before = threads()
    for _ in range(3):
        other = comm.split(0)
        other.all_reduce(np.ones(3), async_op=True).wait()
        del other
        gc.collect()
    assert threads() == before


def test_the_counters_count_them(comm):
    needs_shared_memory(comm)
    before = comm.stats
    for x, async_op in itertools.product([np.ones(50), np.ones((5, 20))[:, ::2]], [False, True]):
        work = comm.all_reduce(x, async_op=async_op)
        assert not async_op or work.wait() is x
    assert comm.stats.operations == before.operations + 4
    share = 2 * (comm.size - 1) / comm.size
    sent = comm.stats.bytes_sent - before.bytes_sent
    assert sent == pytest.approx(4 * share * 400, abs=4), "rounded for each"
