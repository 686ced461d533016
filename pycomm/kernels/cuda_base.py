"""What all CUDA kernels share: a launcher, and how many blocks a launch has."""

from __future__ import annotations

from pycomm.kernels.launcher import BLOCK_THREADS, Launcher

BLOCKS_PER_MULTIPROCESSOR = 16
"""Blocks of a large launch; more than fit at a time, so that late ones even out the ends."""

_TILE_BYTES = BLOCK_THREADS * 16 * 2


class OnDevice:
    """Kernels on one device, launched on the caller's current stream; nothing waits for them."""

    def __init__(self, launcher: Launcher):
        self._launcher = launcher

    def _grid(self, nbytes: int) -> int:
        """Return the number of blocks for one array of `nbytes` that is walked once."""
        most = self._launcher.multiprocessors * BLOCKS_PER_MULTIPROCESSOR
        return max(1, min(most, -(-nbytes // _TILE_BYTES)))
