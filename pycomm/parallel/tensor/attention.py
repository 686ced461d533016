"""Multi-head attention of which each rank has some heads."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.parallel.keyed_mask import part_of
from pycomm.parallel.tensor import operations
from pycomm.parallel.tensor.divided import Divided
from pycomm.parallel.tensor.division import Division
from pycomm.parallel.tensor.edge import Edge
from pycomm.parallel.tensor.linear import RowLinear

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

_PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class HeadsAttention(Divided):
    """nn.MultiheadAttention with this rank's heads, under the same names of parameters.

    The input projections are column layers, a head's outputs together; the output projection is a
    row layer. Inputs and results are the same on all ranks, or with sequence parallelism parts.
    """

    in_proj_weight: torch.Tensor | None
    in_proj_bias: torch.Tensor | None

    def __init__(self, attention: nn.MultiheadAttention, edge: Edge):
        super().__init__()
        self.edge, comm = edge, edge.comm
        _check(attention, comm)
        self.num_heads, self.head_dim = attention.num_heads // comm.size, attention.head_dim
        self.embed_dim, self.dropout = attention.embed_dim, attention.dropout
        self.batch_first = attention.batch_first
        self._qkv_same_embed_dim = False  # torch's layers then take no fast way around `forward`
        self._take_projections(attention)
        self.out_proj = RowLinear(attention.out_proj, edge, unit=self.head_dim)

    @classmethod
    def of(
        cls,
        attention: nn.MultiheadAttention,
        comm: Communicator,
        *,
        sequence_dim: int | None = None,
    ) -> HeadsAttention:
        """Return this rank's heads, with the same weights.

        Args:
            attention: the same on all ranks.
            comm: the ranks.
            sequence_dim: the dimension along which inputs and result are divided; None if not.

        Raises:
            ArgumentError: the heads cannot be divided equally.
            UnsupportedError: it has add_bias_kv or add_zero_attn.
        """
        return cls(attention, Edge(comm, sequence_dim))

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return output and weights as nn.MultiheadAttention does, for inputs with a batch.

        Raises:
            ArgumentError: inputs have no batch, or `is_causal` comes without a mask.
        """
        if query.dim() != 3 or (is_causal and attn_mask is None):
            raise ArgumentError(
                f"rank {self.edge.comm.rank}: attention got a query of shape {tuple(query.shape)} "
                f"with is_causal={is_causal}: give it three dimensions, and attn_mask= in any case"
            )
        q, k, v = self._projected(query, key, value)
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            mixed, weights = self._explicitly(q, k, v, mask, dropout, average_attn_weights)
        else:
            with self._these_heads():
                mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        mixed = mixed.transpose(1, 2).flatten(2)
        return self.out_proj(mixed if self.batch_first else mixed.transpose(0, 1)), weights

    def _take_projections(self, attention: nn.MultiheadAttention) -> None:
        comm = self.edge.comm
        for name, blocks in (
            ("in_proj_weight", 3),
            ("in_proj_bias", 3),
            *((n, 1) for n in _PROJECTIONS),
        ):
            full = getattr(attention, name)
            division = None
            if full is not None:
                division = Division.of(full.shape, 0, comm.size, blocks, self.head_dim)
            self.take(name, full, division, comm.rank)

    def _projected(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Return query, key and value as (batch, this rank's heads, length, head)."""
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = tuple(getattr(self, name) for name in _PROJECTIONS)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        entered: dict[int, torch.Tensor] = {}
        heads = []
        for x, weight, bias in zip(inputs, weights, biases):
            whole = entered[id(x)] if id(x) in entered else self.edge.enter(x)
            entered[id(x)] = whole
            y = functional.linear(whole, weight, bias)
            y = y if self.batch_first else y.transpose(0, 1)
            heads.append(y.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2))
        return heads

    def _mask(
        self, attn_mask: torch.Tensor | None, padding: torch.Tensor | None, q: torch.Tensor
    ) -> torch.Tensor | None:
        """Return what is added to scores, (batch or 1, heads or 1, length or 1, keys)."""
        masks = []
        if attn_mask is not None:
            mask = _additive(attn_mask, q.dtype)
            if mask.dim() == 3:  # one for every head of every sample
                first = self.edge.comm.rank * self.num_heads
                mask = mask.unflatten(0, (q.shape[0], -1)).narrow(1, first, self.num_heads)
            masks.append(mask if mask.dim() == 4 else mask[None, None])
        if padding is not None:
            masks.append(_additive(padding, q.dtype)[:, None, None])
        return sum(masks[1:], masks[0]) if masks else None

    def _these_heads(self) -> AbstractContextManager[None]:
        """Say to keyed dropout which heads these are, in (batch, heads, length, keys)."""
        comm = self.edge.comm
        return part_of(1, comm.rank * self.num_heads, comm.size * self.num_heads, batch=0)

    def _explicitly(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        dropout: float,
        average: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values mixed, and the weights: (batch, length, keys), or of every head."""
        scores = q / math.sqrt(self.head_dim) @ k.transpose(-2, -1)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        with self._these_heads():
            weights = functional.dropout(weights, dropout)
        mixed, comm = weights @ v, self.edge.comm
        if average:
            return mixed, operations.reduce(weights.sum(1), comm) / (self.num_heads * comm.size)
        return mixed, operations.gather(weights, comm, 1, [self.num_heads] * comm.size)


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


def _check(attention: nn.MultiheadAttention, comm: Communicator) -> None:
    check_heads(attention.num_heads, comm)
    if attention.bias_k is not None or attention.add_zero_attn:
        raise UnsupportedError(
            f"rank {comm.rank}: attention with add_bias_kv or add_zero_attn cannot be divided: "
            "leave it out of the plan"
        )


def check_heads(heads: int, comm: Communicator) -> None:
    """Return if every rank can have as many heads.

    Raises:
        ArgumentError: they cannot be divided equally.
    """
    if heads % comm.size:
        possible = ", ".join(str(d) for d in range(1, heads + 1) if heads % d == 0)
        raise ArgumentError(
            f"rank {comm.rank}: {heads} attention heads cannot be divided over {comm.size} ranks: "
            f"use tp={possible.replace(', ', ' or ')}, or another number of heads"
        )
