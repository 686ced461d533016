"""Sparse gradients, of embeddings: only the rows that some rank used travel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from pycomm.parallel.finite import is_finite

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

_NONE, _SPARSE, _DENSE = range(3)


def sparse_parameters(module: nn.Module) -> frozenset[str]:
    """Return the full names of the parameters that may have sparse gradients."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    weights = {id(m.weight) for m in module.modules() if isinstance(m, kinds) and m.sparse}
    return frozenset(name for name, p in module.named_parameters() if id(p) in weights)


class SparseGradient:
    """The gradient of one parameter, sparse unless some rank also uses the parameter otherwise.

    Args:
        name: the parameter's full name.
        parameter: the parameter.
        comm: the ranks.
        op: "sum" or "avg", over the ranks, in their order.
    """

    def __init__(self, name: str, parameter: nn.Parameter, comm: Communicator, op: str):
        self.name = name
        self.parameter, self._comm, self._op = parameter, comm, op

    def is_finite(self) -> bool:
        """Say whether the gradient on this rank, if there is one, is finite."""
        return self.parameter.grad is None or is_finite(self.parameter.grad)

    def reduce(self, scale: float) -> bool:
        """Reduce the gradient, multiply it by `scale`, and say whether any rank has one."""
        grad = self.parameter.grad
        mine = grad.coalesce() if grad is not None and grad.is_sparse else self._no_rows()
        about = torch.tensor([[self._kind(grad), mine._nnz()]])
        kinds, counts = self._comm.all_gather(about)[:, 0].T.tolist()
        if max(kinds) == _NONE:
            return False
        total = self._sum_dense() if max(kinds) == _DENSE else self._sum_rows(mine, counts)
        self.parameter.grad = total * scale
        return True

    def _sum_rows(self, mine: torch.Tensor, counts: list[int]) -> torch.Tensor:
        rows = self._comm.all_gather(mine.indices()[0].contiguous(), counts=counts)
        values = self._comm.all_gather(mine.values().contiguous(), counts=counts)
        used, home = torch.unique(rows, return_inverse=True)
        total = values.new_zeros(len(used), *values.shape[1:])
        for where, part in zip(home.split(counts), values.split(counts)):
            total.index_add_(0, where, part)
        if self._op == "avg":
            total /= self._comm.size
        return self._sparse(used, total)

    def _sum_dense(self) -> torch.Tensor:
        grad = self.parameter.grad
        if grad is None:
            grad = torch.zeros_like(self.parameter)
        dense = grad.detach().to_dense() if grad.is_sparse else grad.detach()
        total: torch.Tensor = self._comm.all_reduce(dense.contiguous(), op=self._op)
        return total

    def _no_rows(self) -> torch.Tensor:
        p = self.parameter.detach()
        rows = torch.zeros(0, dtype=torch.int64, device=p.device)
        return self._sparse(rows, p.new_zeros(0, *p.shape[1:]))

    def _sparse(self, rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        shape = self.parameter.shape
        return torch.sparse_coo_tensor(
            rows[None], values, shape, is_coalesced=True, check_invariants=False
        )

    @staticmethod
    def _kind(grad: torch.Tensor | None) -> int:
        if grad is None:
            return _NONE
        return _SPARSE if grad.is_sparse else _DENSE
