"""What the tests of trainers share: models, optimizers, samples, one thread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

CLASSES = 4
PAD = 3
"""The class that weighted losses leave out."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Compute with one thread, as the reference does."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def conv(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 7),
        nn.Tanh(),
        nn.Linear(7, CLASSES),
    ).to(dtype)


def images(count: int, seed: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 4, 4, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(0, CLASSES, (count,), generator=generator)


def dense(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.ReLU(inplace=True),
        nn.Linear(8, 9),
        nn.Tanh(),
        nn.Linear(9, 7),
        nn.LayerNorm(7),
        nn.Linear(7, CLASSES),
    ).double()


def samples(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (count,), generator=generator)


def sgd(named):
    return torch.optim.SGD([p for _, p in named], lr=0.1, momentum=0.9)


def adamw(named):
    return torch.optim.AdamW(named, lr=0.01)


def unpadded_loss(output, targets) -> torch.Tensor:
    return cross_entropy(output, targets, ignore_index=PAD)


def unpadded(targets) -> float:
    return float((targets != PAD).sum())


def named(comm, model: nn.Module, *, gradients: bool = False) -> dict[str, torch.Tensor]:
    """Return the parameters, or their gradients, of all parts together."""
    mine = {n: p.grad if gradients else p.detach() for n, p in model.named_parameters()}
    return {n: t for part in comm.all_gather_object(mine) for n, t in part.items()}


def assert_same_bits(model: nn.Module, reference: nn.Module) -> None:
    for (name, p), q in zip(model.named_parameters(), reference.parameters()):
        assert torch.equal(p, q), name


def shared_folder(comm, tmp_path: Path) -> Path:
    return Path(comm.broadcast_object(str(tmp_path), 0))


def shares(comm) -> bool:
    """Say whether ranks see each other's memory, or are alone."""
    return comm.size == 1 or comm.shares_memory


def round_roots_correctly(monkeypatch) -> None:
    """Let torch round square roots correctly: MKL, which it takes them from, does not always."""
    sqrt = torch.Tensor.sqrt

    def exact(x: torch.Tensor) -> torch.Tensor:
        wide = x.itemsize > 2 and not x.requires_grad
        return torch.from_numpy(np.asarray(np.sqrt(x.numpy()))) if wide else sqrt(x)

    monkeypatch.setattr(torch.Tensor, "sqrt", exact)
