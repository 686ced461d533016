"""Where the symmetric memory of a communicator's ranks is mapped here."""

from __future__ import annotations

import numpy as np

from pycomm.devices.base import HANDLE_BYTES
from pycomm.devices.process import Device
from pycomm.devices.slabs import Place
from pycomm.transport.meeting import Meeting


class RankSlabs:
    """The slabs of all ranks, mapped when a call says for the first time that something lies there.

    Attributes:
        rank: this one.
        size: how many ranks there are.
    """

    def __init__(self, device: Device, rank: int, size: int):
        self.rank = rank
        self.size = size
        self._device = device
        self._bases: list[dict[int, int]] = [{} for _ in range(size)]

    def learn(self, rows: np.ndarray, meeting: Meeting) -> None:
        """Map the slabs in these rows that are seen for the first time.

        Args:
            rows: (size, 4) of int64: of every rank twice slab and offset, or −1 and anything.
        """
        slabs = [[s for s in row if s >= 0] for row in rows[:, ::2].tolist()]
        new = [[s for s in seen if s not in self._bases[r]] for r, seen in enumerate(slabs)]
        if not any(new):
            return
        handles = np.zeros((2, HANDLE_BYTES), np.uint8)
        for row, slab in zip(handles, new[self.rank]):
            handle = self._device.slabs.handle(slab)
            row[: len(handle)] = np.frombuffer(handle, np.uint8)
        found = meeting.gather(handles.reshape(-1)).reshape(self.size, 2, -1)
        with meeting.told():
            for rank, numbers in enumerate(new):
                for slab, row in zip(numbers, found[rank]):
                    self._bases[rank][slab] = self._base(rank, slab, row.tobytes())
        meeting.meet()

    def knows(self, place: Place) -> bool:
        """Say whether all ranks have mapped this rank's slab at `place`."""
        return place.slab in self._bases[self.rank]

    def address(self, rank: int, slab: int, offset: int) -> int:
        """Return where a place in a rank's slab is mapped here."""
        return self._bases[rank][slab] + offset

    def _base(self, rank: int, slab: int, handle: bytes) -> int:
        device = self._device
        return device.slabs.address(slab) if rank == self.rank else device.mapped.open(handle)
