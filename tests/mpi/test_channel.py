"""Messages between ranks of one host: slots, credits, both sides copying, no room, no waiting."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

import pycomm

LARGE = 1_000_003


def pattern(count, rank, k=0):
    """Return bytes that depend on place, rank and message."""
    mixed = np.arange(count, dtype=np.uint32) * np.uint32(2_654_435_761) >> 13
    return mixed.astype(np.uint8) ^ np.uint8((37 * rank + 11 * k) % 256)


def ring(comm):
    """Return the next and the previous rank."""
    return (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size


@pytest.mark.parametrize("count", [32_767, 32_768, 32_769, 65_537, 262_145, LARGE, 30_000_001])
@pytest.mark.parametrize("memory", ["ordinary", "symmetric", "to symmetric"])
def test_every_byte_of_a_large_message_arrives(comm, count, memory):
    after, before = ring(comm)
    x = comm.empty(count, "uint8") if memory == "symmetric" else np.empty(count, np.uint8)
    x[:] = pattern(count, comm.rank)
    out = comm.empty(count, "uint8") if memory != "ordinary" else np.empty(count, np.uint8)
    work = comm.isend(x, after)
    assert comm.recv(before, out=out) is out
    work.wait()
    assert (out == pattern(count, before)).all()


def test_a_pair_that_comes_at_any_time(comm):
    """Blocking sends and receives with delays on either side: slots, and taking straight over."""
    if comm.size == 1:
        pytest.skip("needs a peer")
    pairs = comm.size // 2 * 2
    for k in range(30):
        if comm.rank >= pairs:
            break
        if k % 3 == comm.rank % 2:
            time.sleep(0.003)
        count = 40_000 + 70_001 * k
        if comm.rank % 2 == 0:
            x = pattern(count, comm.rank, k)
            comm.send(x, comm.rank + 1, k)
            x[:] = 0
        else:
            y = comm.recv(comm.rank - 1, k, copy=k % 2 == 0)
            assert (y == pattern(count, comm.rank - 1, k)).all()
    comm.barrier()


def test_a_sender_does_not_wait_for_a_receiver_that_comes_late(comm):
    if comm.size == 1 or len(comm.world.mailbox.mates) == 1:
        pytest.skip("needs a peer that shares memory")
    if comm.rank == 0:
        x = pattern(LARGE, 0)
        comm.send(x, 1)
        x[:] = 0
        comm.send(np.array([1]), 1, tag=9)
    if comm.rank == 1:
        assert comm.recv(0, tag=9)[0] == 1, "the second message, as rank 0 was not held up"
        assert (comm.recv(0) == pattern(LARGE, 0)).all()
    comm.barrier()


def test_any_number_of_arrays_can_be_kept(comm):
    """More than the channel has blocks for, each sent before it is received."""
    if comm.size == 1:
        pytest.skip("needs a peer")
    kept = []
    for k in range(100):
        sent = comm.isend(np.full(100_000, k, np.uint8), 1) if comm.rank == 0 else None
        comm.barrier()
        if comm.rank == 1:
            kept.append(comm.recv(0, copy=False))
        if sent is not None:
            sent.wait()
    assert all((x == k).all() for k, x in enumerate(kept))


def test_a_kept_array_is_the_receivers_until_it_drops_it(comm):
    """More messages than there is memory for: those without credit are copied, nobody waits."""
    if comm.size == 1:
        pytest.skip("needs a peer")
    count, messages = 20_000_000, 20
    if comm.rank == 0:
        for k in range(messages):
            comm.send(np.full(count, k, np.uint8), 1)
    if comm.rank == 1:
        time.sleep(0.2)
        kept = [comm.recv(0, copy=False) for _ in range(messages)]
        for k, x in enumerate(kept):
            assert (x == k).all()
            x[:] = 255
    comm.barrier()


def test_a_slot_is_used_again_once_it_was_dropped(comm):
    if comm.size == 1:
        pytest.skip("needs a peer")
    before = pycomm._native.symmetric_bytes()
    for k in range(40):
        if comm.rank == 0:
            comm.send(pattern(LARGE, 0, k), 1)
        if comm.rank == 1:
            time.sleep(0.002)
            assert (comm.recv(0, copy=False) == pattern(LARGE, 0, k)).all()
        comm.barrier()
    assert pycomm._native.symmetric_bytes() - before <= 8 * LARGE


def test_tensors_can_be_kept(comm):
    after, before = ring(comm)
    work = comm.isend(torch.full((300, 400), float(comm.rank)), after)
    x = comm.recv(before, copy=False)
    work.wait()
    assert x.shape == (300, 400) and (x == before).all()
    x += 1
    assert (x == before + 1).all()


@pytest.mark.parametrize("count", [1, 5000, 200_000])
def test_many_messages_before_anybody_receives(comm, count):
    """More than the ring or the blocks hold."""
    after, before = ring(comm)
    messages = 150
    sends = [comm.isend(pattern(count, comm.rank, k), after) for k in range(messages)]
    comm.barrier()
    for k in range(messages):
        assert (comm.recv(before) == pattern(count, before, k)).all()
    for work in sends:
        work.wait()


def test_messages_move_while_their_receiver_waits_in_a_collective(comm):
    """Rank 1 has posted receives and waits in a barrier that rank 0 joins after its sends."""
    if comm.size == 1:
        pytest.skip("needs a peer")
    works = []
    if comm.rank == 1:
        works = [comm.irecv(0, k, np.empty(LARGE, np.uint8)) for k in range(3)]
        works.append(comm.irecv(0, 3))
    if comm.rank == 0:
        time.sleep(0.1)
        for k in range(4):
            comm.isend(pattern(LARGE, 0, k), 1, k).wait()
    comm.barrier()
    for k, work in enumerate(works):
        assert (work.wait() == pattern(LARGE, 0, k)).all()


def test_a_flood_drains_while_its_sender_waits_in_a_collective(comm):
    if comm.size == 1:
        pytest.skip("needs a peer")
    works = []
    if comm.rank == 0:
        works = [comm.isend(pattern(20_000, 0, k), 1) for k in range(100)]
    if comm.rank == 1:
        time.sleep(0.1)
        for k in range(100):
            assert (comm.recv(0) == pattern(20_000, 0, k)).all()
    comm.barrier()
    for work in works:
        work.wait()


def test_the_array_of_a_forgotten_send_lives_until_it_was_read(comm):
    after, before = ring(comm)
    for k in range(10):
        comm.isend(pattern(LARGE, comm.rank, k), after)
    for k in range(10):
        assert (comm.recv(before) == pattern(LARGE, before, k)).all()
    comm.barrier()


def test_from_anyone_large_and_in_order(comm):
    for k in range(5):
        comm.isend(pattern(LARGE, comm.rank, k), 0, 3)
    if comm.rank == 0:
        seen = [0] * comm.size
        for _ in range(5 * comm.size):
            x = comm.recv(pycomm.ANY, 3)
            rank = next(r for r in range(comm.size) if (x[:99] == pattern(99, r, seen[r])).all())
            seen[rank] += 1
        assert seen == [5] * comm.size
    comm.barrier()


def test_a_read_only_array_can_be_sent_but_not_received_into(comm):
    after, before = ring(comm)
    x = pattern(LARGE, comm.rank)
    x.flags.writeable = False
    work = comm.isend(x, after)
    with pytest.raises(pycomm.CommError, match="read-only"):
        comm.recv(before, out=x)
    assert (comm.recv(before) == pattern(LARGE, before)).all()
    work.wait()


def test_stats_count_messages_of_every_way(comm):
    after, before = ring(comm)
    start = comm.stats
    for x in (np.zeros(10, np.uint8), np.zeros(LARGE, np.uint8)):
        work = comm.isend(x, after)
        comm.recv(before)
        work.wait()
    if comm.rank < comm.size // 2 * 2:
        mate = comm.rank ^ 1
        if comm.rank < mate:
            comm.send(np.zeros(7, np.uint8), mate)
        else:
            comm.recv(mate)
    spent = comm.stats
    sent = spent.bytes_sent - start.bytes_sent
    assert sent in (LARGE + 10, LARGE + 17)
    assert spent.busy_s > start.busy_s


def test_large_messages_in_the_opposite_order_of_their_tags(comm):
    """More than there are blocks: what nobody has asked for yet does not stop the others."""
    after, before = ring(comm)
    sends = [comm.isend(pattern(100_000, comm.rank, k), after, k) for k in range(100)]
    for k in reversed(range(100)):
        assert (comm.recv(before, k) == pattern(100_000, before, k)).all()
    for work in sends:
        work.wait()


def test_what_nobody_received_goes_with_its_communicator(comm):
    """Also what comes after the receiver has closed it; more of it than there are blocks."""
    after, before = ring(comm)
    for _ in range(70):
        other = comm.split(0)
        late = other.isend(pattern(100_000, comm.rank), after)
        comm.barrier()
        other.close()
        del late
    comm.barrier()
    work = comm.isend(pattern(LARGE, comm.rank), after, 5)
    assert (comm.recv(before, 5) == pattern(LARGE, before)).all()
    work.wait()


def test_a_send_that_nobody_will_receive_says_so(comm):
    if comm.size == 1 or len(comm.world.mailbox.mates) == 1:
        pytest.skip("needs a peer that shares memory")
    if comm.world.config.peer_reads == "never":
        pytest.skip("every message lies in a slot")
    other = comm.split(0)
    if comm.rank == 1:
        comm.recv(0, 6)
        other.close()
    if comm.rank == 0:
        work = other.isend(np.zeros(40_000_000), 1)  # too large for a slot
        comm.send(np.zeros(1), 1, 6)
        with pytest.raises(pycomm.CommError, match="rank 1 has left"):
            work.wait()
        assert work.done() and isinstance(work.exception(), pycomm.DepartedError)
        with pytest.raises(pycomm.CommError, match="failed before"):
            other.isend(np.zeros(1), 1)
    comm.barrier()
    other.close()


@pytest.mark.parametrize("tag", ["a", 1.5, None, 2**63])
def test_a_tag_that_is_no_integer(comm, tag):
    with pytest.raises(pycomm.CommError, match="is not an integer of 64 bits"):
        comm.isend(np.zeros(1), comm.rank, tag)
    with pytest.raises(pycomm.CommError, match="is not an integer of 64 bits"):
        comm.recv(comm.rank, tag)
