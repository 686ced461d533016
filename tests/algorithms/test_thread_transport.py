"""The threads transport: order, strictness about memory, and no wait without an end."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pycomm.errors import ArgumentError, CommError, CommTimeoutError, MismatchError
from pycomm.transport.threads import POISON, run_threads


def byte(value, count=1):
    """Return `count` bytes of `value`."""
    return np.full(count, value, np.uint8)


@pytest.mark.parametrize("delays", [None, 1, 2, 3])
def test_messages_of_a_pair_stay_in_order(delays):
    def body(transport, rank):
        peer = 1 - rank
        got = [byte(0) for _ in range(50)]
        requests = [transport.irecv(out, peer) for out in got]
        requests += [transport.isend(byte(i), peer) for i in range(50)]
        transport.wait(*requests)
        return [int(out[0]) for out in got]

    assert run_threads(2, body, delays=delays) == [list(range(50))] * 2


def test_results_are_in_rank_order_and_bytes_counted():
    def body(transport, rank):
        if rank == 0:
            transport.wait(transport.isend(byte(7, 5), 1), transport.isend(byte(8, 2), 1))
        if rank == 1:
            transport.wait(transport.irecv(byte(0, 5), 0), transport.irecv(byte(0, 2), 0))
        return rank, transport.messages, transport.sent_bytes

    assert run_threads(3, body) == [(0, 2, 7), (1, 0, 0), (2, 0, 0)]


def test_test_makes_progress():
    def body(transport, rank):
        out = byte(0)
        request = transport.irecv(out, 0) if rank else transport.isend(byte(3), 1)
        while not request.test():
            time.sleep(0)
        return int(out[0])

    assert run_threads(2, body) == [0, 3]


def test_a_timeout_names_rank_and_peer():
    began = time.monotonic()
    with pytest.raises(CommTimeoutError, match=r"rank 1 of 2 .* receive of 4 bytes from rank 0"):
        run_threads(2, lambda t, rank: rank and t.wait(t.irecv(byte(0, 4), 0)), timeout=0.1)
    assert 0.1 <= time.monotonic() - began < 2


def test_a_send_without_receiver_times_out():
    with pytest.raises(CommTimeoutError, match=r"rank 0 of 2 .* send of 1 bytes to rank 1"):
        run_threads(2, lambda t, rank: rank or t.wait(t.isend(byte(0), 1)), timeout=0.1)


def test_sizes_must_agree():
    def body(transport, rank):
        transport.wait(transport.irecv(byte(0, 8), 0) if rank else transport.isend(byte(0, 12), 1))

    with pytest.raises(MismatchError, match="rank 1 receives 8 bytes from rank 0, which sent 12"):
        run_threads(2, body)


def test_memory_changed_before_wait_is_seen():
    def body(transport, rank):
        if rank == 0:
            data = byte(1, 6)
            request = transport.isend(data, 1)
            data[:2] = 9
            transport.wait(transport.isend(byte(0), 2))
            transport.wait(request)
        if rank == 1:
            transport.wait(transport.irecv(byte(0), 2))
            transport.wait(transport.irecv(byte(0, 6), 0))
        if rank == 2:
            transport.wait(transport.irecv(byte(0), 0))
            transport.wait(transport.isend(byte(0), 1))

    with pytest.raises(CommError, match=r"rank 0 changed 2 of the 6 bytes .* sending to rank 1"):
        run_threads(3, body)


def test_memory_read_before_wait_is_poisoned():
    def body(transport, rank):
        out = byte(0)
        if rank == 0:
            transport.wait(transport.isend(byte(5), 1))
            return None
        request = transport.irecv(out, 0)
        early = int(out[0])
        transport.wait(request)
        return early, int(out[0])

    assert run_threads(2, body)[1] == (POISON, 5)


def test_a_transfer_never_waited_for_is_an_error():
    with pytest.raises(CommError, match=r"rank 0 returned without waiting for 1 .* to rank 1"):
        run_threads(2, lambda t, rank: rank or t.isend(byte(0), 1))


def test_the_first_failure_ends_those_who_wait():
    def body(transport, rank):
        if rank == 2:
            raise ValueError("no")
        transport.wait(transport.irecv(byte(0), 2))

    began = time.monotonic()
    with pytest.raises(ValueError, match="no") as caught:
        run_threads(3, body)
    assert str(caught.value.__cause__) == "rank 2 of 3 failed first"
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("peer", [-1, 0, 2])
def test_a_peer_must_be_another_rank(peer):
    with pytest.raises(ArgumentError, match=f"rank 0 of 2 cannot exchange .* with rank {peer}"):
        run_threads(2, lambda t, rank: rank or t.isend(byte(0), peer))
