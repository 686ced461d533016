"""A launcher that remembers what it launched, as that of tests/cuda does."""

from __future__ import annotations

from pycomm.kernels.cuda_launcher import CupyLauncher


class RecordingLauncher(CupyLauncher):
    """Launches on the current GPU.

    Attributes:
        launches: the name and the grid of every launch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[tuple[str, int]] = []

    def launch(self, kernel: str, grid: int, args: bytes) -> None:
        """Launch, and remember it."""
        self.launches.append((kernel, grid))
        super().launch(kernel, grid, args)
