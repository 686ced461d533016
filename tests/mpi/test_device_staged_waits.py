"""Device arrays through the hosts: who waits for whom, and who does not."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import numpy as np
import pytest

import pycomm
from pycomm.devices.base import Stream
from pycomm.host_meeting import HostMeeting
from pycomm.transport.job import Job
from pycomm.transport.staged import SLOTS
from tests.devices.host_array import HostArray
from tests.mpi.devices import apart, ordinary, runtime, several, symmetric, transport_of

PATIENCE_S = 10.0


def held() -> threading.Event:
    """Hold the current stream until the event returned is set."""
    gate = threading.Event()
    runtime().current.put(gate.wait)
    return gate


def wrong_results(dev, used: list[HostArray], rounds: int = 12) -> int:
    """Return in how many of so many collectives, one after the other, something is wrong.

    Args:
        used: gets all arrays, which without waits are written to after they would be gone.
    """
    total, wrong = dev.size * (dev.size + 1) // 2, 0
    for k in range(rounds):
        x = ordinary(dev, np.full(3000, dev.rank + 1.0 + k))
        dev.all_reduce(x)
        y = dev.all_gather(x)
        x[...] = -1.0
        used += [x, y]
        wrong += not (y.get() == total + dev.size * k).all()
    return wrong


def test_results_are_ordered_by_the_callers_stream(comm):
    with apart(comm, delay_s=0.001) as dev:
        assert wrong_results(dev, []) == 0


@pytest.mark.parametrize("missing", ["of streams", "of hosts"])
def test_without_its_waits_results_would_be_wrong(comm, missing, monkeypatch):
    """The doubles do show a missing wait."""
    several(comm)
    used: list[HostArray] = []
    with apart(comm, delay_s=0.003) as dev:
        dev.all_reduce(ordinary(dev, np.ones(3)))
        with monkeypatch.context() as patch:
            if missing == "of streams":
                patch.setattr(runtime(), "waits", False)
            else:
                downs, real = transport_of(dev)._is_down, runtime().synchronize
                patch.setattr(runtime(), "synchronize", lambda e: None if e in downs else real(e))
            wrong = wrong_results(dev, used)
        assert comm.all_reduce(np.array([wrong]))[0] > 0


def test_a_segment_comes_down_and_one_goes_up_while_the_hosts_are_between(comm, monkeypatch):
    """By the order of events: hosts begin with one, one comes down, one goes up, the hosts end."""
    several(comm)
    with apart(comm) as dev:
        dev.all_reduce(ordinary(dev, np.ones(3)))
        transport, x = transport_of(dev), ordinary(dev, np.full(3000, dev.rank + 1.0))
        segments = x.nbytes // transport.segment_bytes + 1
        at_hosts, down, up = ([threading.Event() for _ in range(segments)] for _ in range(3))
        copy, collective = runtime().copy, HostMeeting.collective
        in_time: list[bool] = []
        copied, begun = {transport._down: iter(down), transport._up: iter(up)}, iter(at_hosts)

        def copy_in_order(target: int, source: int, nbytes: int, stream: Stream) -> None:
            event = next(copied[stream])
            if event in up[:-1]:
                later = at_hosts[up.index(event) + 1]
                stream.owner.put(lambda: in_time.append(later.wait(PATIENCE_S)))
            copy(target, source, nbytes, stream)
            stream.owner.put(event.set)

        def collective_in_order(meeting: HostMeeting, job: Job) -> None:
            event = next(begun)
            event.set()
            for other in (*down[at_hosts.index(event) + 1 :][:1], *up[: at_hosts.index(event)]):
                in_time.append(other.wait(PATIENCE_S))
            collective(meeting, job)

        with monkeypatch.context() as patch:
            patch.setattr(runtime(), "copy", copy_in_order)
            patch.setattr(HostMeeting, "collective", collective_in_order)
            dev.all_reduce(x, order="rank")
        assert segments > SLOTS + 1 and (x.get() == dev.size * (dev.size + 1) // 2).all()
        assert len(in_time) > 2 * segments and all(in_time)


def test_work_is_done_behind_the_callers_back(comm):
    several(comm)
    with apart(comm) as dev:
        dev.all_reduce(ordinary(dev, np.ones(3)))
        x, other = ordinary(dev, np.full(3000, dev.rank + 1.0)), runtime().new_stream()
        gate = held()
        work = dev.all_reduce(x, async_op=True)
        assert work.exception() is None and not work.done()
        with pytest.raises(pycomm.CommTimeoutError, match=r"not complete after 0.01 s"):
            work.wait(0.01)
        threading.Timer(0.02, gate.set).start()
        with runtime().using(other):
            assert work.wait() is x
            assert (x.get() == dev.size * (dev.size + 1) // 2).all()
        assert work.wait(host=True) is x and work.wait(5.0, host=True) is x
        assert work.done() and work.exception() is None


def test_wait_makes_the_current_stream_wait(comm):
    several(comm)
    with apart(comm, delay_s=0.003) as dev:
        for k in range(5):
            x, other = ordinary(dev, np.full(3000, dev.rank + 1.0 + k)), runtime().new_stream()
            work = dev.all_reduce(x, async_op=True)
            with runtime().using(other):
                work.wait()
                y = HostArray(x.shape, x.dtype)
                y[...] = x
                want = dev.size * (dev.size + 1) // 2 + dev.size * k
                assert (y.get() == want).all()


def test_what_the_caller_enqueues_later_is_not_waited_for(comm):
    several(comm)
    with apart(comm) as dev:
        dev.all_reduce(ordinary(dev, np.ones(3)))
        x = ordinary(dev, np.full(3000, 1.0))
        before = dev.all_reduce(x, async_op=True)
        work = dev.all_reduce(x, async_op=True)
        gate = held()
        end = time.monotonic() + 10
        while not (work.done() or time.monotonic() > end):
            time.sleep(0.001)
        assert work.done() and before.done()
        gate.set()
        assert (work.wait().get() == dev.size**2).all()


def test_operations_keep_their_order(comm):
    with apart(comm) as dev:
        x = ordinary(dev, np.full(2000, 1.0))
        for _ in range(4):
            work = dev.all_reduce(x, async_op=True)
            y, host = ordinary(dev, np.full(2000, dev.rank + 1.0)), np.ones(5)
            dev.all_reduce(y)
            dev.all_reduce(host)
            work.wait()
            assert (y.get() == dev.size * (dev.size + 1) // 2).all() and (host == dev.size).all()
        assert (x.get() == dev.size**4).all()


def test_arrays_that_are_let_go_early_are_still_used(comm):
    with apart(comm, delay_s=0.002) as dev:
        works = []
        for k in range(4):
            x = symmetric(dev, np.full(600, dev.rank + 1.0 + k))
            works.append(dev.all_gather(x, async_op=True))
            del x
            gc.collect()
            filler = symmetric(dev, np.full(600, -1.0))
        want = np.arange(1.0, dev.size + 1)[:, None]
        for k, work in enumerate(works):
            assert (work.wait().get() == want + k).all()
        assert (filler.get() == -1).all()


def test_memory_that_is_freed_is_not_reused_before_the_copies_into_it(comm):
    several(comm)
    with apart(comm, delay_s=0.002) as dev:
        other = runtime().new_stream()
        for _ in range(5):
            x = symmetric(dev, np.full(3000, dev.rank + 1.0))
            runtime().finish()
            address = x.data.ptr
            with runtime().using(other):
                dev.all_reduce(x)
                y = HostArray(x.shape, x.dtype)
                y[...] = x
            del x
            gc.collect()
            z = symmetric(dev, np.full(3000, -1.0))
            assert z.data.ptr == address and (z.get() == -1).all()
            del z
            with runtime().using(other):
                assert (y.get() == dev.size * (dev.size + 1) // 2).all()


def test_a_result_that_nobody_wants_is_kept_until_it_is_written(comm):
    several(comm)
    with apart(comm) as dev:
        dev.all_gather(ordinary(dev, np.ones(3)))
        gate = threading.Event()
        transport_of(dev)._up.owner.put(gate.wait)
        out = ordinary(dev, np.zeros((dev.size, 50)))
        kept, x = weakref.ref(out), ordinary(dev, np.ones(50))
        work = dev.all_gather(x, out, async_op=True)
        work._finished.wait()
        del out, work
        dev.all_gather(ordinary(dev, np.ones(3)))  # has a slot of its own, and waits for no copy up
        gc.collect()
        assert kept() is not None
        gate.set()
        for _ in range(2):
            dev.all_gather(ordinary(dev, np.ones(3))).get()
        assert kept() is None


def test_strided_results_are_copied_back_by_wait(comm):
    with apart(comm) as dev:
        x = ordinary(dev, np.full((40, 40), 1.0))
        work = dev.all_reduce(x[::2, ::2], async_op=True)
        assert work.wait().shape == (20, 20)
        assert (x.get()[::2, ::2] == dev.size).all() and (x.get()[1::2] == 1).all()
