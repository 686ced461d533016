"""Messages of the wire that several threads ask for at once."""

from __future__ import annotations

import threading

import numpy as np


def test_threads_may_test_the_same_message_and_receive_meanwhile(comm):
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    box, failures, stop = comm.world.mailbox, [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                box.progress()
                for message in list(box._under_way):
                    message.finished()
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=ask) for _ in range(1)]
    for thread in threads:
        thread.start()
    for k in range(50):
        x = np.full(600 + 600 * (k % 2), comm.rank, np.float64)
        work = comm.isend(x, after, k)
        assert (comm.irecv(before, k).wait() == before).all()
        work.wait()
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
