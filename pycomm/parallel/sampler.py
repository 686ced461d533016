"""Which samples a rank trains on: its share of every global batch of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

from pycomm.errors import ArgumentError

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of 0…samples−1 that depends on nothing else."""
    return np.random.default_rng([seed, epoch]).permutation(samples)


def share(indices: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """Return the contiguous slice of a global batch that data rank `rank` of `ranks` takes."""
    return np.array_split(indices, ranks)[rank]


class ShareSampler(Sampler[list[int]]):
    """A batch sampler for a DataLoader of one's own loop.

    ::

        sampler = ShareSampler(len(dataset), comm, batch_size=64)
        loader = DataLoader(dataset, batch_sampler=sampler)
        for sampler.epoch in range(10):
            with model.uneven():
                for inputs, targets in loader: ...

    Every epoch has each sample once, over all ranks together, in an order that depends on (seed,
    epoch) but not on the number of ranks. If the last global batch has fewer samples than there are
    ranks, some ranks have a batch less, see `DataParallel.uneven`.

    Args:
        samples: how many the dataset has.
        comm: the ranks.
        batch_size: samples in a global batch, over all ranks.
        seed: of the order.
        shuffle: whether there is one; else samples come as they lie.
        drop_last: leave out the last global batch, if it is not full.
        repeat: fill the last global batch with the first samples of the epoch.

    Attributes:
        epoch: set it before each epoch.

    Raises:
        ArgumentError: there are no samples, batch_size is smaller than the number of ranks, or both
            drop_last and repeat are asked for.
    """

    def __init__(
        self,
        samples: int,
        comm: Communicator,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        repeat: bool = False,
    ):
        if samples < 1 or batch_size < comm.size or (drop_last and repeat):
            raise ArgumentError(
                f"samples={samples}, batch_size={batch_size}, drop_last={drop_last}, "
                f"repeat={repeat} on {comm.size} ranks: samples must be ≥ 1, batch_size at least "
                "one for each rank, and one of drop_last and repeat at most"
            )
        self.epoch = 0
        self._samples, self._batch_size, self._seed = samples, batch_size, seed
        self._shuffle, self._drop_last, self._repeat = shuffle, drop_last, repeat
        self._rank, self._ranks = comm.rank, comm.size

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of this rank's samples of each global batch, if it has any."""
        order = self._order()
        for start in range(0, len(order), self._batch_size):
            mine = share(order[start : start + self._batch_size], self._rank, self._ranks)
            if len(mine):
                yield mine.tolist()

    def __len__(self) -> int:
        """Return how many batches this rank has."""
        whole, rest = divmod(self._length(), self._batch_size)
        return whole + (rest > self._rank)

    def _length(self) -> int:
        rest = self._samples % self._batch_size
        if rest and self._drop_last:
            return self._samples - rest
        return self._samples + (self._batch_size - rest if rest and self._repeat else 0)

    def _order(self) -> np.ndarray:
        everything = np.arange(self._samples)
        if self._shuffle:
            everything = epoch_order(self._samples, self._seed, self.epoch)
        return np.resize(everything, self._length())
