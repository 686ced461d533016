"""Torch's dropout functions, and attention with dropout, with keyed masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch.nn import functional as F

from pycomm.errors import ArgumentError
from pycomm.parallel.forward_pass import ForwardPass
from pycomm.parallel.keyed_mask import as_part, current_part

Tensor = torch.Tensor
_SATURATION = 1.7580993408473766
"""−1 times the least value of SELU, to which alpha dropout drops (Klambauer et al. 2017, 4)."""


def _is_random(x: Tensor, p: float, training: bool) -> bool:
    return training and 0 < p < 1 and x.numel() > 0


def _dropout(
    now: ForwardPass, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not _is_random(input, p, training):
        return F.dropout(input, p, training, inplace)
    return _placed(input, now.drop(input, p, 1 / (1 - p)), inplace)


def _dropout_in_place(now: ForwardPass, input: Tensor, p: float, train: bool) -> Tensor:
    return _dropout(now, input, p, train, True)


def _feature_dropout(original: Callable[..., Tensor], batched: int) -> Callable[..., Tensor]:
    """Return a dropout of channels; tensors with fewer than `batched` dimensions are one sample."""

    def dropout(
        now: ForwardPass,
        input: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Tensor:
        if not _is_random(input, p, training):
            return original(input, p, training, inplace)
        original(input.detach().to("meta"), p, False)  # has something to say about other shapes
        x = input if input.dim() >= batched else input.unsqueeze(0)
        result = x * _channels(now, x, p, 1 / (1 - p))
        return _placed(input, result.view_as(input), inplace)

    return dropout


def _alpha_dropout(
    now: ForwardPass, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    if not _is_random(input, p, training):
        return F.alpha_dropout(input, p, training, inplace)
    return _placed(input, _saturated(input, now.drop(torch.ones_like(input), p, 1.0), p), inplace)


def _feature_alpha_dropout(
    now: ForwardPass, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    if not _is_random(input, p, training):
        return F.feature_alpha_dropout(input, p, training, inplace)
    return _placed(input, _saturated(input, _channels(now, input, p, 1.0), p), inplace)


def _channels(now: ForwardPass, x: Tensor, p: float, scale: float) -> Tensor:
    """Return a factor for each channel of (samples, channels, …)."""
    part = current_part()
    cut = part is not None and (part.dim if part.dim >= 0 else part.dim + x.dim())
    with as_part(replace(part, dim=1) if part is not None and cut == 1 else None):
        mask = now.drop(x.new_ones(x.shape[:2]), p, scale)
    return mask.view(*x.shape[:2], *[1] * (x.dim() - 2))


def _saturated(x: Tensor, mask: Tensor, p: float) -> Tensor:
    """Drop where `mask` is 0, not 1, to the saturation; mean 0 and variance 1 stay."""
    a = ((_SATURATION**2 * p + 1) * (1 - p)) ** -0.5
    shift = (mask - 1) * (_SATURATION * a) + _SATURATION * a * p
    return x * (mask * a) + shift


def _placed(input: Tensor, result: Tensor, inplace: bool) -> Tensor:
    return input.copy_(result) if inplace else result


def _attention(
    now: ForwardPass,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Torch's own kernels without dropout; with it the weights are computed, and dropped from."""
    if not 0 < dropout_p < 1:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if is_causal and attn_mask is not None:
        raise ArgumentError("attention is given is_causal=True and attn_mask: pass one of them")
    dtype = query.dtype
    if dtype.itemsize == 2:
        query, key, value = query.float(), key.float(), value.float()
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    factor = 1 / math.sqrt(query.size(-1)) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    # A row of which everything is masked has weights of 0, as in torch's kernels.
    weights = torch._safe_softmax(_masked(scores, attn_mask, is_causal), -1)
    dropped = now.drop(weights, dropout_p, 1 / (1 - dropout_p)) if weights.numel() else weights
    result = dropped @ value
    return result.to(dtype) if dtype.itemsize == 2 and not _autocasts(result) else result


def _autocasts(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)


def _masked(scores: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -math.inf)
    return scores + mask.to(scores.dtype)


def _multi_head_attention(now: ForwardPass, *args: Any, **kwargs: Any) -> Any:
    """Run torch's Python code for it, with the attention and the dropout of this file.

    With need_weights it drops from weights (batch · heads, queries, keys).
    """
    heads = args[4]

    def dropout(weights: Tensor, p: float) -> Tensor:
        split = weights.view(-1, heads, *weights.shape[1:])
        return _dropout(now, split, p).view_as(weights)

    def attention(*args: Any, **kwargs: Any) -> Tensor:
        return _attention(now, *args, **kwargs)

    original = F.multi_head_attention_forward
    names = original.__globals__ | {"dropout": dropout, "scaled_dot_product_attention": attention}
    again = FunctionType(original.__code__, names, argdefs=original.__defaults__)
    again.__kwdefaults__ = original.__kwdefaults__
    return again(*args, **kwargs)


KEYED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.dropout: _dropout,
    torch.dropout: _dropout,
    torch.dropout_: _dropout_in_place,
    F.dropout1d: _feature_dropout(F.dropout1d, 3),
    F.dropout2d: _feature_dropout(F.dropout2d, 0),
    F.dropout3d: _feature_dropout(F.dropout3d, 5),
    F.alpha_dropout: _alpha_dropout,
    F.feature_alpha_dropout: _feature_alpha_dropout,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
}
"""What is called instead of each of torch's functions, after the pass that it is called in."""
