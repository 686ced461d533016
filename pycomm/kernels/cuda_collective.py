"""Kernels that meet those of other ranks' GPUs, and move or reduce memory of all ranks between."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from pycomm.errors import UnsupportedError
from pycomm.kernels.launcher import Launcher
from pycomm.types import DTYPES, OPS, DType, ReduceOp

MOST_RANKS = 32
"""That can meet; `kMostRanks` in csrc/cuda/meet.h."""
MOST_BLOCKS = 64
"""Of one launch; `kMostBlocks` in csrc/cuda/meet.h."""
SLOT_BYTES = 8192
"""What a block can leave for its peers; `kSlotBytes` in csrc/cuda/meet.h."""
BOARD_BYTES = MOST_BLOCKS * (128 + 2 * 8 * MOST_RANKS + 2 * SLOT_BYTES)
"""A rank's board for all blocks; zeros at first, and mapped by all ranks."""
SHARE_BYTES = 4096
"""What a block takes of one shot, if there are enough blocks: 16 bytes a thread."""
CHUNK_BYTES = 16384
"""What a block takes at a time of a larger collective."""

_GROUP = struct.Struct(f"<2q2Q{MOST_RANKS}Q")
_REDUCE = struct.Struct(f"<4q2dQ{MOST_RANKS}Q{MOST_RANKS}Q")
_COPY = struct.Struct(f"<q{MOST_RANKS}Q{MOST_RANKS}Q{MOST_RANKS}q")


@dataclass(frozen=True)
class Group:
    """The ranks whose kernels meet, as one of them sees them.

    All of them launch the same methods of CollectiveKernels in the same order, one after the other.

    Attributes:
        rank: this one.
        boards: where each rank's board is mapped here.
        patience_s: how long a kernel waits for the other ranks' kernels.
        late: the address of 8 bytes that kernels write to and the host reads: 0, or 1 + a rank
            that did not come in time. From then on kernels do nothing.
        blocks: the most of a launch; the same on all ranks, and no more than any of their GPUs has
            multiprocessors, so that all blocks run at the same time.
    """

    rank: int
    boards: tuple[int, ...]
    patience_s: float
    late: int
    blocks: int

    @property
    def one_shot_bytes(self) -> int:
        """The size of the largest all_reduce of one shot."""
        return self.blocks * SLOT_BYTES

    def pack(self) -> bytes:
        """Return `Group` of csrc/cuda/meet.h."""
        patience = min(int(self.patience_s * 1e9), (1 << 63) - 1)
        head = (self.rank, len(self.boards), patience, self.late)
        return _GROUP.pack(*head, *_filled(self.boards))


class CollectiveKernels:
    """Launches csrc/cuda/collective.cu on the current stream; what to is not checked.

    Where a rank has nothing to do, it launches nevertheless: the others meet it.
    """

    def __init__(self, launcher: Launcher, group: Group):
        self._launcher = launcher
        self.group = group
        self._packed = group.pack()

    def all_reduce(
        self, input: int, output: int, elements: int, dtype: DType, op: ReduceOp
    ) -> None:
        """Reduce all ranks' inputs into this rank's output, which may be the input: in one shot.

        Args:
            input, output: addresses.
            elements: the same number on all ranks; at most `one_shot_bytes` of them.
        """
        if elements == 0:
            return
        group, nbytes = self.group, elements * dtype.itemsize
        share = SHARE_BYTES if nbytes <= SHARE_BYTES * group.blocks else SLOT_BYTES
        head = (elements, share // dtype.itemsize, len(group.boards), 1)
        numbers = (len(group.boards), op.factor, input)
        args = _REDUCE.pack(*head, *numbers, *_filled(group.boards), *_filled([output]))
        self._launch(_kernel(dtype, op), -(-nbytes // share), args)

    def reduce(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        elements: int,
        longest: int,
        dtype: DType,
        op: ReduceOp,
    ) -> None:
        """Reduce `inputs`, in their order, into every one of `outputs`; of any ranks' memory.

        Args:
            elements: of each array; 0 if this rank has nothing to reduce.
            longest: the largest `elements` of any rank; the same number on all.
        """
        head = (elements, 0, len(inputs), len(outputs))
        numbers = (max(1, len(inputs)), op.factor, 0)
        args = _REDUCE.pack(*head, *numbers, *_filled(inputs), *_filled(outputs))
        self._launch(_kernel(dtype, op), self._blocks(longest * dtype.itemsize), args)

    def copy(self, copies: Sequence[tuple[int, int, int]], longest: int) -> None:
        """Copy (target, source, nbytes), from any ranks' memory.

        Args:
            longest: the most bytes that any rank copies; the same number on all.
        """
        columns = [_filled([c[k] for c in copies]) for k in (1, 0, 2)]
        args = _COPY.pack(len(copies), *columns[0], *columns[1], *columns[2])
        self._launch("copy_between<>", self._blocks(longest), args)

    def meet(self) -> None:
        """Let what comes next on the stream wait for what all ranks have launched before."""
        self._launch("meet_only<>", 1, b"")

    def _blocks(self, nbytes: int) -> int:
        return max(1, min(self.group.blocks, -(-nbytes // CHUNK_BYTES)))

    def _launch(self, kernel: str, grid: int, args: bytes) -> None:
        self._launcher.launch(kernel, grid, self._packed + args)


def _filled(numbers: Sequence[int]) -> list[int]:
    return [*numbers, *[0] * (MOST_RANKS - len(numbers))]


def _kernel(dtype: DType, op: ReduceOp) -> str:
    return _kernel_name(dtype.name, op.name)


@lru_cache(maxsize=1024)
def _kernel_name(dtype: str, op: str) -> str:
    found = DTYPES[dtype]
    if op not in OPS:
        raise UnsupportedError("no kernel that meets others has a user's operation")
    return f"reduce_between<{found.code},{ReduceOp(op).on(found).code}>"
