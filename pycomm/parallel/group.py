"""The ranks that a layer communicates with, as the layer keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pycomm.errors import ArgumentError

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class Group:
    """A Communicator that copies of a layer share; it does not survive pickling."""

    def __init__(self, comm: Communicator | None):
        self._comm = comm

    @property
    def comm(self) -> Communicator:
        """The ranks.

        Raises:
            ArgumentError: the layer was pickled.
        """
        if self._comm is None:
            raise ArgumentError("a layer that was pickled has no ranks: convert it again")
        return self._comm

    def __deepcopy__(self, memo: Any) -> Group:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Group, (None,)
