"""An embedding of which each rank has some symbols of the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.parallel.tensor.divided import Divided
from pycomm.parallel.tensor.division import Division
from pycomm.parallel.tensor.edge import Edge

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class VocabularyEmbedding(Divided):
    """Vectors of symbols: (…) integers → (…, width), the same on all ranks.

    Each rank looks up the symbols that it has; zeros for the others make the sum exact.
    """

    weight: torch.Tensor

    def __init__(self, embedding: nn.Embedding, edge: Edge):
        super().__init__()
        if embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse:
            raise UnsupportedError(
                f"rank {edge.comm.rank}: an embedding with max_norm, scale_grad_by_freq or sparse "
                "gradients cannot be divided: leave it out of the plan"
            )
        self.edge, self.symbols = edge, embedding.num_embeddings
        division = Division.of(embedding.weight.shape, 0, edge.comm.size)
        self.take("weight", embedding.weight, division, edge.comm.rank)
        ((self._begin, self._end),) = division.spans[edge.comm.rank]
        padding = embedding.padding_idx
        mine = padding is not None and self._begin <= padding < self._end
        self._padding = padding - self._begin if padding is not None and mine else None

    @classmethod
    def of(cls, embedding: nn.Embedding, comm: Communicator) -> VocabularyEmbedding:
        """Return this rank's symbols of an embedding, with the same vectors.

        Raises:
            ArgumentError: a rank would get no symbol.
            UnsupportedError: it has max_norm, scale_grad_by_freq, or sparse gradients.
        """
        return cls(embedding, Edge(comm))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the vectors.

        Raises:
            ArgumentError: there is no such symbol.
        """
        self._check(x)
        others = (x < self._begin) | (x >= self._end)
        mine = (x - self._begin).masked_fill(others, 0)
        vectors = functional.embedding(mine, self.weight, self._padding)
        return self.edge.leave(vectors.masked_fill(others.unsqueeze(-1), 0))

    def _check(self, x: torch.Tensor) -> None:
        least, most = (int(x.min()), int(x.max())) if x.numel() else (0, 0)
        if least < 0 or most >= self.symbols:
            raise ArgumentError(
                f"rank {self.edge.comm.rank}: symbols from {least} to {most} were looked up in an "
                f"embedding of {self.symbols}, 0 to {self.symbols - 1}"
            )
