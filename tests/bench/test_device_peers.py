"""Buffers on a GPU as a double has them, and where the host waits for it."""

from types import SimpleNamespace

import numpy as np
import pytest

from bench.device_memory import DeviceMemory
from bench.gpu import Gpu
from bench.operations import COLLECTIVES, MESSAGES, WINDOW, Case
from bench.patterns import Pattern
from bench.peers import PEERS
from bench.peers.base import Peer
from bench.verify import count_wrong
from pycomm.devices import process
from pycomm.devices.process import Device
from tests.devices.host_runtime import HostRuntime


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(process, "_device", Device.of(HostRuntime(delay_s=0.001, seed=3)))
    return Gpu(SimpleNamespace(local=SimpleNamespace(rank=0)))


def case(op, count=100, place="out", rank=1, ranks=2):
    known = COLLECTIVES | MESSAGES
    redop = "sum" if known[op].reduces else "none"
    return Case(known[op], "float32", redop, 0, place, count, rank, ranks)


def enqueued(gpu, target, values, nbytes=None):
    """Write to an address on the stream, and do not wait."""

    def batch(times):
        batch.kept = np.ascontiguousarray(values)
        gpu.copy(target, batch.kept.ctypes.data, nbytes or batch.kept.nbytes)

    return batch


def test_a_result_that_is_on_its_way_is_waited_for(gpu):
    moved = case("all_to_all")
    pattern = Pattern("float32", "none", 2)
    buffers = DeviceMemory(gpu, 400).buffers(moved, "ordinary")
    right = moved.op.result(moved, pattern)
    batch = enqueued(gpu, buffers.out_part.address, right)
    assert count_wrong(moved, buffers, pattern, batch) == 0
    assert count_wrong(moved, buffers, pattern, batch, plant=3) == 1
    assert count_wrong(moved, buffers, pattern, lambda times: None) == 100, "it is poisoned"


def test_what_is_written_beyond_or_over_the_input_is_counted(gpu):
    moved = case("all_to_all")
    pattern = Pattern("float32", "none", 2)
    buffers = DeviceMemory(gpu, 400).buffers(moved, "ordinary")
    right = moved.op.result(moved, pattern)
    beyond = enqueued(gpu, buffers.out_part.address, np.append(right, np.float32(0)))
    assert count_wrong(moved, buffers, pattern, beyond) == 4, "bytes of a guard"
    into_input = enqueued(gpu, buffers.x_part.address, right[:5])
    got = count_wrong(moved, buffers, pattern, into_input)
    assert got == 100 + int((right[:5] != pattern.of(1, 0, 5)).sum())


def test_in_place_a_chunk_lies_in_the_whole(gpu):
    gathered = case("all_gather", place="in")
    buffers = DeviceMemory(gpu, 400).buffers(gathered, "ordinary")
    assert buffers.out_part.nbytes == 400
    assert (buffers.x_part.address - buffers.out_part.address, buffers.x_part.nbytes) == (200, 200)
    buffers.clear(7)
    assert (buffers.output(None) == 7).all() and buffers.input().size == 50


class Recording(Peer):
    def __init__(self):
        self.log = []

    def collective(self, case, buffers):
        return lambda: self.log.append("call")

    def message(self, case, buffers):
        word = "answer" if case.count == 1 else ""
        return lambda: self.log.append(word or "send"), lambda: self.log.append(word or "receive")


def recorded(of, waits=True):
    peer = Recording()
    wait = (lambda: peer.log.append("wait")) if waits else None
    peer.batch(of, SimpleNamespace(wait=wait))(2)
    return peer.log


def test_the_host_waits_for_each_operation_and_for_a_stream_of_messages_together():
    assert recorded(case("all_reduce")) == ["call", "wait"] * 2
    assert recorded(case("all_reduce"), waits=False) == ["call"] * 2
    assert recorded(case("ping_pong")) == ["receive", "wait", "send"] * 2 + ["wait"]
    assert recorded(case("ping_pong", rank=0)) == ["send", "receive", "wait"] * 2 + ["wait"]
    assert recorded(case("stream")) == [*["receive"] * WINDOW, "wait", "answer"] * 2
    assert recorded(case("stream", rank=0)) == [*["send"] * WINDOW, "wait", "answer"] * 2


@pytest.mark.parametrize(("op", "copies"), [("ping_pong", 2), ("stream", WINDOW)])
def test_the_limit_of_messages_copies_as_often_as_they_are_sent(gpu, monkeypatch, op, copies):
    copied = []
    monkeypatch.setattr(gpu, "copy", lambda *arguments: copied.append(arguments))
    ranks = SimpleNamespace(comm=None)
    for rank in (0, 1):
        moved = case(op, rank=rank)
        buffers = DeviceMemory(gpu, 400).buffers(moved, "ordinary")
        PEERS["copy"](ranks).batch(moved, buffers)(3)
        wanted = (buffers.out_part.address, buffers.x_part.address, 400)
        assert copied == ([wanted] * 3 * copies if rank == 0 else [])
        copied.clear()


def test_one_process_reduces_n_buffers_into_all(gpu):
    reduced = case("all_reduce", rank=0, ranks=4, place="in")
    peer = PEERS["n_in_n_out"](SimpleNamespace(comm=None))
    call = peer.collective(reduced, DeviceMemory(gpu, 400).buffers(reduced, "ordinary"))
    for k, part in enumerate(peer._parts):
        gpu.put(part.address, np.full(100, 10.0**k, np.float32))
    call()
    sums = [gpu.get(part).view(np.float32) for part in peer._parts]
    assert len(sums) == 4 and all((s == 1111).all() for s in sums)
    assert gpu.runtime.kernels_launched == 1
    assert peer.collective(case("all_reduce", ranks=4), None)() is None
    assert gpu.runtime.kernels_launched == 1
