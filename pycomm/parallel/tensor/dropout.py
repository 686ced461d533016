"""Dropout in divided regions: which part of a whole tensor a rank drops from.

Keyed dropout (`parallel/dropout.py`) numbers the elements of the whole tensor, so a rank that has a
part of it has to say which; then the result does not depend on how many ranks there are.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import nn

from pycomm.parallel.group import Group
from pycomm.parallel.keyed_mask import part_of
from pycomm.parallel.tensor.division import even
from pycomm.parallel.tensor.operations import lengths

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class DropoutPart:
    """Says, while a layer runs, that what is dropped from in it is this rank's part.

    Args:
        comm: the ranks.
        dim: the dimension that is divided, of what is dropped from.
        whole: its size over all ranks, which is divided evenly; None asks them what they have.
    """

    def __init__(self, comm: Communicator, dim: int, whole: int | None):
        self.group, self._dim, self._whole = Group(comm), dim, whole
        self._open: list[AbstractContextManager[None]] = []

    @classmethod
    def around(
        cls, layer: nn.Module, comm: Communicator, dim: int, whole: int | None = None
    ) -> None:
        """Do so for a layer, in place."""
        part = cls(comm, dim, whole)
        layer.register_forward_pre_hook(part._enter)
        layer.register_forward_hook(part._leave, always_call=True)

    def _enter(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        comm = self.group.comm
        if self._whole is None:
            counts = lengths(args[0], comm, self._dim)
        else:
            counts = even(self._whole, comm.size)
        self._open.append(part_of(self._dim, sum(counts[: comm.rank]), sum(counts)))
        self._open[-1].__enter__()

    def _leave(self, layer: nn.Module, args: Any, output: Any) -> None:
        self._open.pop().__exit__(None, None, None)
