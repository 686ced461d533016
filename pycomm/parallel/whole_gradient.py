"""The whole gradient: what the ranks that hold parts of it have to agree about."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from pycomm.parallel.finite import raise_if_any
from pycomm.parallel.gradient_norm import norm_of

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class WholeGradient:
    """The gradient of a model whose parts, and replicas of each part, are on several ranks.

    Args:
        replicas: the ranks that reduce the gradient of one part of the model among them.
        comm: the ranks of all parts and replicas; None: there is one part.
        counts: says of a parameter whether this part's gradient counts for the norm; not where
            another part holds the same gradient. None: always.
        late: the names of parameters whose gradients change once more after backward, as other
            parts hold them, too.
        kind_of: name of a parameter → its kind. What is reduced together is of one kind, so that
            all who hold a parameter reduce it with the same others. None: all are of one.
    """

    def __init__(
        self,
        replicas: Communicator,
        comm: Communicator | None = None,
        counts: Callable[[nn.Parameter], bool] | None = None,
        late: frozenset[str] = frozenset(),
        kind_of: Callable[[str], Hashable] | None = None,
    ):
        self.comm = replicas if comm is None else comm
        self.counts = counts or (lambda parameter: True)
        self.late, self.kind_of = late, kind_of or (lambda name: None)
        self._has_parts = self.comm.size > replicas.size
        self._first = replicas.rank == 0

    def norm_of_pieces(self, squares: Sequence[np.ndarray]) -> float:
        """Return the norm where no two ranks hold the same pieces; collective on `comm`.

        Args:
            squares: sums of squares of what this rank holds and counts, see `squares_of`.
        """
        return norm_of(self.comm, squares)

    def norm_of_replicas(self, squares: Sequence[np.ndarray]) -> float:
        """Return the norm where each rank holds all of its part; collective if there are several.

        Args:
            squares: as for `norm_of_pieces`.
        """
        if not self._has_parts:
            return norm_of(None, squares)
        return norm_of(self.comm, squares if self._first else [])

    def raise_not_finite(self, names: Iterable[str]) -> None:
        """Raise on all ranks of `comm` if any names a parameter; see `raise_if_any`."""
        raise_if_any(self.comm, names)
