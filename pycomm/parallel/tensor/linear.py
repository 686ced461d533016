"""Linear layers divided by their outputs (columns of Wᵀ) or by their inputs (rows of Wᵀ).

An MLP's first layer divided by columns and its second by rows (Shoeybi et al., Megatron-LM, 2019,
section 3) communicates once forward and once backward, whatever elementwise function is between:

    x ──copy──► x·Aᵢ ──► f ──► f(x·Aᵢ)·Bᵢ ──reduce──► Σᵢ f(x·Aᵢ)·Bᵢ + b
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from pycomm.parallel.deferrable import LinearCall, LinearCallWithoutBias, computed_by
from pycomm.parallel.tensor import operations
from pycomm.parallel.tensor.divided import Divided
from pycomm.parallel.tensor.division import Division
from pycomm.parallel.tensor.edge import Edge

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class ColumnLinear(Divided):
    """A linear layer of which this rank has some outputs: (…, inputs) → (…, its outputs)."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        edge: Edge,
        *,
        blocks: int = 1,
        unit: int = 1,
        entered: bool = False,
        gathers: bool = False,
    ):
        super().__init__()
        self.edge, self._entered, self._gathers = edge, entered, gathers
        ranks, rank = edge.comm.size, edge.comm.rank
        division = Division.of(linear.weight.shape, 0, ranks, blocks, unit)
        along_bias = Division.of(division.shape[:1], 0, ranks, blocks, unit)
        self.take("weight", linear.weight, division, rank)
        self.take("bias", linear.bias, along_bias, rank)
        self._counts = division.counts()

    @classmethod
    def of(
        cls,
        linear: nn.Linear,
        comm: Communicator,
        *,
        sequence_dim: int | None = None,
        blocks: int = 1,
        unit: int = 1,
        entered: bool = False,
        gathers: bool = False,
    ) -> ColumnLinear:
        """Return this rank's outputs of a layer, with the same weights.

        Args:
            linear: the same on all ranks.
            comm: the ranks.
            sequence_dim: the dimension along which the input is divided; None if it is not.
            blocks: equal groups of outputs, of each of which every rank has some.
            unit: how many outputs stay together.
            entered: the input comes from a divided region: nothing is to be done with it.
            gathers: return the outputs of all ranks; not with several `blocks`.

        Raises:
            ArgumentError: a rank would get no output.
        """
        edge = Edge(comm, sequence_dim)
        return cls(linear, edge, blocks=blocks, unit=unit, entered=entered, gathers=gathers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return this rank's outputs, or those of all."""
        if not self._entered:
            x = self.edge.enter(x)
        y = self.product(x)
        return operations.gather(y, self.edge.comm, -1, self._counts) if self._gathers else y

    @computed_by(LinearCall)
    def product(self, input: torch.Tensor) -> torch.Tensor:
        """Return this rank's outputs of the whole input."""
        return functional.linear(input, self.weight, self.bias)


class RowLinear(Divided):
    """A linear layer of which this rank has some inputs: (…, its inputs) → (…, outputs).

    Every rank has all of the bias, which is added to the sum.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear, edge: Edge, *, unit: int = 1):
        super().__init__()
        self.edge = edge
        division = Division.of(linear.weight.shape, 1, edge.comm.size, unit=unit)
        self.take("weight", linear.weight, division, edge.comm.rank)
        self.take("bias", linear.bias, None, edge.comm.rank)

    @classmethod
    def of(
        cls,
        linear: nn.Linear,
        comm: Communicator,
        *,
        sequence_dim: int | None = None,
        unit: int = 1,
    ) -> RowLinear:
        """Return this rank's inputs of a layer, with the same weights.

        Args:
            linear: the same on all ranks.
            comm: the ranks.
            sequence_dim: the dimension along which the output is to be divided; None for all of it.
            unit: how many inputs stay together.

        Raises:
            ArgumentError: a rank would get no input.
        """
        return cls(linear, Edge(comm, sequence_dim), unit=unit)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return all outputs, or with a `sequence_dim`, this rank's part of that."""
        y = self.edge.leave(self.product(x))
        return y if self.bias is None else y + self.edge.replicated(self.bias)

    @computed_by(LinearCallWithoutBias)
    def product(self, input: torch.Tensor) -> torch.Tensor:
        """Return this rank's part of the sum."""
        return functional.linear(input, self.weight)
