"""What the memory of this machine allows: every rank adds in place over its symmetric buffer."""

from __future__ import annotations

from functools import partial

import numpy as np

from bench.memory import Buffers
from bench.operations import Case
from bench.peers.base import Call, Peer, peer
from pycomm import UnsupportedError

_SMALLEST_BYTES = 256 << 10


@peer("limit")
class Limit(Peer):
    """Reads and writes as many bytes a rank as an all-reduce has to, on the very same pages.

    An all-reduce by chunks reads 1/n of the size from each of n buffers and writes as much to
    each: the size, read once and written once, a rank. So does this, without any other rank.
    """

    memory = "symmetric"
    competes = False
    verified = False

    def collective(self, case: Case, buffers: Buffers) -> Call:
        """Return an addition over the buffer, as float32 whatever the dtype."""
        if case.op.name != "all_reduce":
            raise UnsupportedError("the limit is defined for all_reduce")
        if case.size_bytes < _SMALLEST_BYTES:
            raise UnsupportedError("below 256 KiB the limit is not memory's, but a call's")
        words = buffers.x.view(np.uint8)[: case.size_bytes // 4 * 4].view(np.float32)
        return partial(np.add, words, np.float32(0), out=words)
