"""Ranks as threads, whose kernels meet: each has a copy of the library, as it would have a GPU."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import numpy as np

from pycomm.kernels.cuda_collective import BOARD_BYTES, CollectiveKernels, Group
from tests.cuda.compilers import cxx
from tests.cuda.host import HostLauncher, being_built

PATIENCE_S = 30.0
_LINE = 128


def aligned(nbytes: int, residue: int = 0) -> np.ndarray:
    """Return zeros that begin so many bytes after a line does."""
    room = np.zeros(nbytes + 2 * _LINE, np.uint8)
    start = -room.ctypes.data % _LINE + residue
    return room[start : start + nbytes]


class Ranks:
    """The ranks of one group.

    Attributes:
        kernels: those of each rank.
        late: what the host of each rank sees.
        launchers: of each rank.
    """

    def __init__(self, size: int, blocks: int = 2, patience_s: float = PATIENCE_S):
        self.size = size
        self._boards = [aligned(BOARD_BYTES) for _ in range(size)]
        self.late = [np.zeros(1, np.uint64) for _ in range(size)]
        being_built("collective.cu", cxx()).result()  # before several threads ask for it
        self.launchers = [HostLauncher(copy=rank + 1) for rank in range(size)]
        boards = tuple(board.ctypes.data for board in self._boards)
        self.kernels = [
            CollectiveKernels(
                self.launchers[rank],
                Group(rank, boards, patience_s, self.late[rank].ctypes.data, blocks),
            )
            for rank in range(size)
        ]

    def run(self, body: Callable[[int, CollectiveKernels], None]) -> None:
        """Let every rank do `body`; raise what one of them raises."""
        errors: list[BaseException] = []

        def act(rank: int) -> None:
            try:
                body(rank, self.kernels[rank])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=act, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        assert not any(late[0] for late in self.late), "a rank came too late"


def pause(source: random.Random, longest_s: float = 0.002) -> None:
    """Sleep, now and then, for up to so many seconds."""
    if source.random() < 0.5:
        time.sleep(source.random() * longest_s)
