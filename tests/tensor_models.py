"""What the tests of tensor parallelism share: models whose sizes few numbers divide, and parity."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pycomm.parallel.tensor import divisions, full_tensor, ready_plan
from pycomm.workloads.models import gpt
from pycomm.workloads.task import Task

SYMBOLS, LENGTH, BATCH = 11, 7, 3
"""Few numbers of ranks divide these."""


def character_gpt(comm, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    heads = 2 * comm.size
    return gpt(task(), width=3 * heads, blocks=2, heads=heads).double()


def encoder(comm, norm_first: bool, *, batch_first: bool = True, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    heads = 2 * comm.size
    layer = nn.TransformerEncoderLayer(
        3 * heads, heads, 13, dropout=dropout, batch_first=batch_first, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()


class Classifier(nn.Module):
    """An encoder between an embedding and a linear layer, with a mask and padding."""

    def __init__(self, comm, norm_first: bool):
        super().__init__()
        torch.manual_seed(2)
        width = 6 * comm.size
        self.embedding = nn.Embedding(SYMBOLS, width, padding_idx=0)
        self.encoder = encoder(comm, norm_first)
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        padding = x == 0
        padding[:, 0] = False
        return self.head(self.encoder(self.embedding(x), later, padding))


def task() -> Task:
    return Task("letters", "tokens", None, None, (LENGTH,), SYMBOLS, None)


def tokens(seed: int, batch: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, t = torch.randint(0, SYMBOLS, (2, batch, LENGTH), generator=generator)
    return x, t


def mean_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits.flatten(0, -2), targets.flatten())


MODELS = {
    "gpt": character_gpt,
    "pre-norm": lambda comm: Classifier(comm, True).double(),
    "post-norm": lambda comm: Classifier(comm, False).double(),
}


def plan(module: nn.Module):
    if isinstance(module, Classifier):
        return {**ready_plan(module), "embedding": "embedding", "head": "output"}
    return None


def whole(comm, module: nn.Module, *, gradients: bool = False) -> dict[str, torch.Tensor]:
    """Return the whole parameters, or gradients, by name, on every rank."""
    divided = divisions(module)
    values = {n: p.grad if gradients else p.detach() for n, p in module.named_parameters()}
    return {n: full_tensor(v, divided[n], comm) if n in divided else v for n, v in values.items()}


def assert_gradients(comm, module: nn.Module, reference: nn.Module) -> None:
    mine = whole(comm, module, gradients=True)
    expected = {n: p.grad for n, p in reference.named_parameters()}
    assert list(mine) == list(expected)
    norm = torch.cat([g.flatten() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (mine[name] - gradient).norm() <= 1e-12 * norm, name
