"""What all CUDA kernels share: a launcher, and how many blocks a launch has."""

from __future__ import annotations

from pycomm.kernels.launcher import BLOCK_THREADS, Launcher

BLOCKS_PER_MULTIPROCESSOR = 16
"""Blocks of a large launch; more than fit at a time, so that late ones even out the ends."""

_TILE_BYTES = BLOCK_THREADS * 16 * 2


def grid_of(launcher: Launcher, blocks: int) -> int:
    """Return how many blocks to launch where so many would have something to do."""
    return max(1, min(blocks, launcher.multiprocessors * BLOCKS_PER_MULTIPROCESSOR))


class OnDevice:
    """Kernels on one device, launched on the caller's current stream; nothing waits for them."""

    def __init__(self, launcher: Launcher):
        self._launcher = launcher

    @property
    def launcher(self) -> Launcher:
        """What launches them."""
        return self._launcher

    def _grid(self, nbytes: int) -> int:
        """Return the number of blocks for one array of `nbytes` that is walked once."""
        return grid_of(self._launcher, -(-nbytes // _TILE_BYTES))
