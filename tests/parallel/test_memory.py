"""What training needs is counted exactly; too much is refused with the numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pycomm
from pycomm.errors import ArgumentError
from pycomm.parallel.memory import (
    Need,
    check_memory,
    need_of,
    parse_bytes,
    ranks_within,
    state_bytes,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(7, 7), ("512", 512), ("1 KiB", 1024), ("1.5GB", 1_500_000_000), ("2 MiB", 2 << 20)],
)
def test_sizes(text, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", [0, -1, "much", "1 XB", "-2 MiB"])
def test_wrong_sizes(text) -> None:
    with pytest.raises(ArgumentError, match="is no number of bytes: use an int"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("make", "tensors"),
    [
        (lambda named: torch.optim.SGD([p for _, p in named], lr=0.1), 0),
        (lambda named: torch.optim.SGD([p for _, p in named], lr=0.1, momentum=0.9), 1),
        (lambda named: torch.optim.AdamW(named), 2),
        (lambda named: torch.optim.Adam(named, amsgrad=True), 3),
    ],
)
def test_state_is_what_a_step_leaves(make, tensors: int) -> None:
    module = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 5).double())
    module[0].bias.requires_grad_(False)
    counted = state_bytes(make, module.named_parameters())
    optimizer = make(list(module.named_parameters()))
    for p in module.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    for name, p in module.named_parameters():
        state = optimizer.state.get(p, {})
        exact = sum(t.nbytes for t in state.values() if isinstance(t, torch.Tensor))
        assert counted.get(name, 0) == exact
        assert not p.requires_grad or exact >= tensors * p.nbytes


def test_an_optimizer_that_cannot_be_probed() -> None:
    def picky(named):
        raise ValueError("no")

    with pytest.raises(ArgumentError, match="cannot be measured on tiny parameters: no"):
        state_bytes(picky, nn.Linear(2, 2).named_parameters())


def test_need() -> None:
    module = nn.Sequential(nn.Linear(100, 10, bias=False), nn.BatchNorm1d(10, affine=False))
    need = need_of(module, lambda named: torch.optim.SGD(named, lr=1, momentum=0.5), 5000, 2)
    assert need == Need(4000 + 88, 4000, 2000, 5000)
    assert need.total == 4088 + 4000 + 2000 + 5000
    assert "parameters 0.00 MiB" in str(need)


def test_ranks_that_do() -> None:
    assert ranks_within([5, 5, 5, 5], 10) == 2
    assert ranks_within([5, 5, 5, 5], 100) == 1
    assert ranks_within([5, 11, 5], 10) is None


def test_too_much_is_refused_with_the_numbers() -> None:
    comm = pycomm.init()
    need = Need(3 << 20, 3 << 20, 6 << 20, 1 << 20)
    check_memory(comm, "13 MiB", lambda: need)
    with pytest.raises(ArgumentError) as caught:
        check_memory(comm, (13 << 20) - 1, lambda: need, lambda limit: 3)
    text = str(caught.value)
    assert "memory_limit=13.00 MiB is not enough on 1 of 1 ranks" in text
    assert "rank 0 needs 13.00 MiB (parameters 3.00 MiB, gradients 3.00 MiB, " in text
    assert "optimizer state 6.00 MiB, activations 1.00 MiB)" in text
    assert "split over 3 ranks by ModelParallelTrainer it fits" in text
    with pytest.raises(ArgumentError, match="no number of ranks is enough"):
        check_memory(comm, 1, lambda: need)
