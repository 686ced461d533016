"""The norm of gradients, and clipping by it."""

from __future__ import annotations

import math

import pytest
import torch

from pycomm.parallel.gradient_norm import clip_factor, clip_gradients, norm_of, squares_of

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]


def gradients(dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    shapes = [(3, 5000), (7,), (), (0, 4), (5, 3, 3, 3)]
    made = [torch.randn(shape, dtype=wide).to(dtype) for shape in shapes]
    made[4] = made[4].contiguous(memory_format=torch.channels_last)
    return made


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_and_clipping_are_those_of_torch_up_to_rounding(dtype) -> None:
    parameters = [torch.nn.Parameter(g.clone()) for g in gradients(dtype)]
    for p, g in zip(parameters, gradients(dtype)):
        p.grad = g
    wide = torch.complex128 if dtype.is_complex else torch.float64
    expected = math.sqrt(sum((g.to(wide).abs() ** 2).sum().item() for g in gradients(dtype)))
    mine = gradients(dtype)
    norm = norm_of(None, [squares_of(g) for g in mine])
    clip_gradients(mine, norm, 2.5)
    assert abs(norm - expected) <= 1e-13 * expected
    if dtype.itemsize > 2 and not dtype.is_complex:
        torch.nn.utils.clip_grad_norm_(parameters, 2.5)
        for g, p in zip(mine, parameters):
            torch.testing.assert_close(g, p.grad, rtol=1e-5, atol=0)


def test_small_gradients_keep_their_bits() -> None:
    mine = gradients(torch.float32)
    clip_gradients(mine, 1e5, 1e6)
    assert all(torch.equal(a, b) for a, b in zip(mine, gradients(torch.float32)))


def test_cutting_at_blocks_does_not_change_the_norm() -> None:
    x = torch.randn(20000)
    whole = norm_of(None, [squares_of(x)])
    assert whole == norm_of(None, [squares_of(x[8192:]), squares_of(x[:8192])])


def test_what_is_not_finite() -> None:
    assert (
        norm_of(None, [squares_of(torch.tensor([1e200, 1e200], dtype=torch.float64))]) == math.inf
    )
    assert norm_of(None, [squares_of(torch.tensor([1.0, math.inf]))]) == math.inf
    assert math.isnan(norm_of(None, [squares_of(torch.tensor([1.0, math.nan]))]))
    assert math.isnan(clip_factor(math.nan, 1.0))
    assert clip_factor(math.inf, 1.0) == 0
