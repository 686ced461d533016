"""Blocks of symmetric memory: where they lie, when they are reused, and who waits then."""

from __future__ import annotations

import gc
import random
import threading

import numpy as np
import pytest

from pycomm.devices.base import DeviceError
from pycomm.devices.slabs import ALIGNMENT, Mapped, Slabs
from pycomm.types import DTYPES
from tests.devices.host_array import HostArray
from tests.devices.host_runtime import HostRuntime

MIB = 1 << 20


@pytest.fixture
def runtime() -> HostRuntime:
    return HostRuntime(capacity=16 * MIB)


@pytest.fixture
def slabs(runtime) -> Slabs:
    return Slabs(runtime, MIB)


def test_blocks_are_aligned_and_found_by_any_address_in_them(runtime, slabs):
    blocks = [slabs.take(n, runtime.stream()) for n in (1, 0, 513, ALIGNMENT)]
    assert [b.nbytes for b in blocks] == [512, 512, 1024, 512]
    places = [slabs.find(b.address, b.nbytes) for b in blocks]
    assert places == [(0, 0), (0, 512), (0, 1024), (0, 2048)]
    assert slabs.find(blocks[2].address + 5, 100) == (0, 1029)
    assert slabs.find(HostArray.put(np.ones(3)).data.ptr, 24) is None


def test_the_smallest_place_that_is_large_enough_is_used_again(runtime, slabs):
    blocks = [slabs.take(k * 1024, runtime.stream()) for k in (4, 1, 2, 1, 3, 1)]
    addresses = [b.address for b in blocks]
    blocks[0] = blocks[2] = blocks[4] = None
    gc.collect()
    assert slabs.take(2048, runtime.stream()).address == addresses[2]
    assert slabs.take(2560, runtime.stream()).address == addresses[4]
    assert slabs.nbytes == MIB


def test_neighbours_that_are_free_become_one_place(runtime, slabs):
    blocks = [slabs.take(MIB // 4, runtime.stream()) for _ in range(4)]
    first = blocks[0].address
    random.Random(0).shuffle(blocks)
    blocks.clear()
    gc.collect()
    whole = slabs.take(MIB, runtime.stream())
    assert whole.address == first and slabs.nbytes == MIB


def test_many_blocks_never_overlap_and_leave_no_memory_behind(runtime, slabs):
    choose, live = random.Random(1), []
    for _ in range(2000):
        if live and choose.random() < 0.5:
            live.pop(choose.randrange(len(live)))
        else:
            live.append(slabs.take(choose.randrange(60_000), runtime.stream()))
        if len(live) > 30:
            live.clear()
        spans = sorted((b.address, b.address + b.nbytes) for b in live)
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:]))
    assert slabs.nbytes <= 4 * MIB


def test_large_blocks_get_a_slab_of_their_own(runtime, slabs):
    block = slabs.take(3 * MIB + 1, runtime.stream())
    assert slabs.find(block.address, block.nbytes) == (0, 0)
    assert slabs.nbytes == 3 * MIB + 512
    with pytest.raises(DeviceError, match="cannot allocate 20971520 bytes"):
        slabs.take(20 * MIB, runtime.stream())


@pytest.mark.parametrize("waits", [True, False])
def test_who_reuses_memory_waits_for_the_streams_of_its_last_use(runtime, slabs, waits):
    """Without waiting, what is still to be written there spoils the new contents."""
    runtime.waits = waits
    used, gate = runtime.new_stream(), threading.Event()
    block = slabs.take(4096, runtime.stream())
    slabs.note_use(slabs.find(block.address + 100, 1), used)
    old = runtime.array(block, (1024,), DTYPES["float32"], False)
    used.owner.put(gate.wait)
    with runtime.using(used):
        old[:] = 1
    address = block.address
    del block, old
    done = runtime.event()
    runtime.record(done, used)
    gc.collect()
    if waits:
        threading.Timer(0.05, gate.set).start()
    block = slabs.take(4096, runtime.stream())
    assert block.address == address
    new = runtime.array(block, (1024,), DTYPES["float32"], False)
    new[:] = 2
    new.get()
    gate.set()
    runtime.synchronize(done)
    assert (new.get() == 2).all() == waits


def test_the_stream_that_used_it_last_need_not_wait(runtime, slabs):
    runtime.event = None
    address = slabs.take(4096, runtime.stream()).address
    gc.collect()
    assert slabs.take(4096, runtime.stream()).address == address


def test_slabs_are_mapped_once(runtime, slabs):
    block, mapped = slabs.take(4096, runtime.stream()), Mapped(runtime)
    place = slabs.find(block.address, 1)
    address = mapped.open(slabs.handle(place.slab))
    assert address == mapped.open(slabs.handle(place.slab)) != block.address
    with pytest.raises(DeviceError, match="cannot open memory"):
        mapped.open(bytes(24))
