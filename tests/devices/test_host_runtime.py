"""The device's double is as treacherous as CUDA: what is not ordered by events has no order."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from pycomm.devices.base import HANDLE_BYTES, DeviceError
from pycomm.kernels.device import DeviceView
from pycomm.types import DTYPES, SUM
from tests.devices.host_array import FREED, HostArray
from tests.devices.host_runtime import HostRuntime


@pytest.fixture
def runtime() -> HostRuntime:
    return HostRuntime(delay_s=0.002, seed=1)


def test_a_stream_does_things_in_order_and_the_host_does_not_wait(runtime):
    stream, order, gate = runtime.new_stream(), [], threading.Event()
    stream.owner.put(gate.wait)
    for k in range(20):
        stream.owner.put(lambda k=k: order.append(k))
    assert order == []
    gate.set()
    event = runtime.event()
    runtime.record(event, stream)
    runtime.synchronize(event)
    assert order == list(range(20))


def test_what_is_captured_is_done_by_replays_only(runtime):
    x, done = HostArray.put(np.zeros(3)), []
    with runtime.capture() as replay:
        assert runtime.is_capturing(runtime.stream())
        assert not runtime.is_capturing(runtime.new_stream())
        x[1:] = 5
        runtime.current.put(lambda: done.append(1))
    assert not runtime.is_capturing(runtime.stream())
    assert x.get().tolist() == [0, 0, 0] and done == []
    replay()
    replay()
    assert x.get().tolist() == [0, 5, 5] and done == [1, 1]


def test_two_streams_have_no_order_without_events(runtime):
    first, second = runtime.new_stream(), runtime.new_stream()
    gate, seen = threading.Event(), []
    first.owner.put(gate.wait)
    first.owner.put(lambda: seen.append("first"))
    second.owner.put(lambda: seen.append("second"))
    second.owner.put(gate.set)
    event = runtime.event()
    runtime.record(event, first)
    runtime.synchronize(event)
    assert seen == ["second", "first"]


def test_an_event_orders_two_streams(runtime):
    first, second = runtime.new_stream(), runtime.new_stream()
    for _ in range(20):
        x = HostArray.put(np.zeros(1000))
        with runtime.using(first):
            x[:] = 7
        event = runtime.event()
        runtime.record(event, first)
        runtime.wait(second, event)
        with runtime.using(second):
            assert (x.get() == 7).all()


def test_waiting_for_an_event_that_was_not_recorded_is_no_waiting(runtime):
    first, second = runtime.new_stream(), runtime.new_stream()
    gate, event, done = threading.Event(), runtime.event(), []
    runtime.wait(second, event)
    first.owner.put(gate.wait)
    runtime.record(event, first)
    second.owner.put(lambda: done.append(1))
    end = time.monotonic() + 10
    while not done and time.monotonic() < end:
        time.sleep(0.001)
    assert done and not runtime.query(event)
    gate.set()
    runtime.synchronize(event)
    assert runtime.query(event)


def test_a_wait_means_the_record_before_it_and_no_later_one(runtime):
    first, second = runtime.new_stream(), runtime.new_stream()
    gate, event, last = threading.Event(), runtime.event(), runtime.event()
    runtime.record(event, first)
    runtime.wait(second, event)
    first.owner.put(gate.wait)
    runtime.record(event, first)
    runtime.record(last, second)
    runtime.synchronize(last)
    assert not runtime.query(event)
    gate.set()


def test_events_and_memory_are_opened_by_handles(runtime):
    memory, event = runtime.allocate(4096), runtime.event(shared=True)
    handle = runtime.handle_of(event)
    assert max(len(memory.handle), len(handle)) <= HANDLE_BYTES
    other, seen = runtime.open_memory(memory.handle), runtime.open_event(handle)
    assert other.address != memory.address
    memory.owner[:] = 3
    assert (other.owner == 3).all()
    gate, stream = threading.Event(), runtime.new_stream()
    stream.owner.put(gate.wait)
    runtime.record(event, stream)
    assert not runtime.query(seen)
    gate.set()
    runtime.synchronize(seen)
    assert runtime.query(event)


def test_kernels_run_behind_what_is_on_their_stream(runtime):
    stream = runtime.new_stream()
    x, y = (HostArray.put(np.zeros(1000, np.float32)) for _ in range(2))
    with runtime.using(stream):
        x[:] = 2
        y[:] = 3
    views = [DeviceView(a.data.ptr, a.nbytes, runtime.device) for a in (x, y)]
    with runtime.on(stream):
        runtime.kernels.reduce_into(views, views, DTYPES["float32"], SUM)
    with runtime.using(stream):
        assert (x.get() == 5).all() and (y.get() == 5).all()
    assert runtime.kernels_launched == 1


def test_memory_ends(runtime):
    small = HostRuntime(capacity=10_000)
    memory = small.allocate(8000)
    with pytest.raises(DeviceError, match="cannot allocate 8000 bytes on the double: 2000 left"):
        small.allocate(8000)
    small.free(memory)
    small.allocate(8000)


def test_contents_come_and_go_by_the_current_stream(runtime):
    x = HostArray.put(np.arange(12.0).reshape(3, 4))
    assert not x[:, ::2].flags.c_contiguous
    packed = x[:, ::2].copy()
    x[:, ::2] = 0
    assert packed.get().tolist() == [[0, 2], [4, 6], [8, 10]]
    assert x.get()[0].tolist() == [0, 1, 0, 3]


def test_memory_that_was_freed_is_others_once_its_stream_gets_there(runtime):
    x, gate = HostArray.put(np.ones(1000)), threading.Event()
    memory = x._memory
    runtime.current.put(gate.wait)
    del x
    assert (memory == 1).all()
    gate.set()
    runtime.finish()
    assert (memory.view(np.uint8) == FREED).all()
