"""Offers of one process to itself: what is waited for, and what is used again."""

from __future__ import annotations

import threading
import time

import pytest

from pycomm.devices.offers import Offers
from pycomm.devices.pinned import Pinned
from pycomm.devices.process import Device
from tests.devices.host_runtime import HostRuntime, memory_at


@pytest.fixture
def device():
    return Device.of(HostRuntime())


@pytest.fixture
def offers(device):
    return Offers(device.runtime, device.slabs, device.mapped)


def test_a_reader_waits_for_the_offerer_and_the_other_way_round(device, offers):
    runtime = device.runtime
    writer, reader, after = (runtime.new_stream() for _ in range(3))
    block = device.slabs.take(512, writer)
    place, memory = device.slabs.find(block.address, 512), memory_at(block.address, 512)
    gate, later, seen = threading.Event(), threading.Event(), []
    writer.owner.put(gate.wait)
    writer.owner.put(lambda: memory.fill(7))
    ticket, offer = offers.make(3, place, writer)
    assert offers.address(offer) == block.address
    offers.wait_for_offer(offer, reader)
    reader.owner.put(later.wait)
    reader.owner.put(lambda: seen.append(int(memory[0])))
    done = offers.read(offer, 3, reader)
    offers.wait_for_reader(ticket, 3, done, after)
    after.owner.put(lambda: memory.fill(9))
    event = runtime.event()
    runtime.record(event, after)
    gate.set()
    assert not runtime.query(event)
    later.set()
    runtime.synchronize(event)
    assert seen == [7] and (memory == 9).all()


def test_a_ticket_is_used_again_for_the_same_reader_only(device, offers):
    stream = device.runtime.new_stream()
    block = device.slabs.take(512, stream)
    place = device.slabs.find(block.address, 512)
    first, second = (offers.make(1, place, stream)[0] for _ in range(2))
    assert first.number != second.number and first.handle != second.handle
    offers.wait_for_reader(first, 1, b"", stream)
    other = offers.make(2, place, stream)[0]
    assert other.handle not in (first.handle, second.handle)
    assert offers.make(1, place, stream)[0] is first


def test_page_locked_rooms_are_used_again(device):
    pinned = Pinned(device.runtime, 4096)
    first, second = pinned.take(), pinned.take()
    assert len(device.runtime.pinned) == 2
    pinned.give_back(first)
    assert pinned.take() is first and second is not first
    assert all(address % 4096 == 0 for address in device.runtime.pinned)


def test_a_ticket_used_again_on_another_stream_stands_for_no_less(device, offers):
    """Who waited for it before, and who read by it before, was first."""
    runtime = device.runtime
    slow, fast, reader = (runtime.new_stream() for _ in range(3))
    block = device.slabs.take(512, slow)
    place, gate = device.slabs.find(block.address, 512), threading.Event()
    slow.owner.put(gate.wait)
    ticket, offer = offers.make(1, place, slow)
    offers.wait_for_offer(offer, reader)
    done = offers.read(offer, 1, reader)
    offers.wait_for_reader(ticket, 1, done, runtime.new_stream())
    assert offers.make(1, place, fast)[0] is ticket
    offers.read(offer, 1, fast)
    event = runtime.event()
    runtime.record(event, reader)
    time.sleep(0.01)
    assert not runtime.query(event)
    gate.set()
    runtime.synchronize(event)
    runtime.check()


def test_a_room_that_nobody_gives_back_stays(device):
    pinned = Pinned(device.runtime, 4096)
    addresses = {pinned.take().ctypes.data for _ in range(20)}
    assert len(addresses) == 20 == len(device.runtime.pinned)
