"""Dot-product attention with torch's signature and any mapping in the place of softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ..mappings.simplex import entmax15, sparsemax
from ..ops.norm import upcast
from . import fused, lean, masks
from .scale_free import scale_free_attention

Mapping = Literal["softmax", "sparsemax", "entmax15", "scale_free"] | Callable[[Tensor, int], Tensor]

MAPPINGS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "softmax": torch.softmax,
    "sparsemax": sparsemax,
    "entmax15": entmax15,
}


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    mapping: Mapping = "sparsemax",
) -> Tensor:
    r"""Attention with sparse weights: torch's scaled_dot_product_attention with `mapping` in the place of softmax.

    mapping(scale Q K^T + mask) V

    Args:
        query: (..., L, E).
        key: (..., S, E).
        value: (..., S, Ev).
        attn_mask: broadcasts to (..., L, S): boolean, True = may attend, or floating, added to the scores. -inf and
            finfo.min (or anything below half of it) count as masked.
        dropout_p: probability of dropping a weight; applied as given, as in torch: pass 0.0 in evaluation.
        is_causal: query i sees keys 0..i (aligned upper left); together with `attn_mask` both apply.
        scale: factor of the scores, 1 / sqrt(E) if None.
        enable_gqa: repeat key and value heads (axis -3) to the number of query heads.
        mapping: "softmax", "sparsemax", "entmax15", "scale_free", a callable (scores, dim) -> weights, or a module such as
            sl.Entmax(1.3), called with the scores alone.

    Returns: (..., L, Ev), in the dtype of the query. A query that may attend to nothing gives 0, with gradient 0. Keys
        masked for every query take no part, be they NaN.

    Raises: TypeError for dtypes; ValueError for shapes, for an unknown mapping, and for `scale` with "scale_free".

    Source: Vaswani et al. 2017; Martins and Astudillo 2016 (sparsemax); Peters et al. 2019 (entmax).

    The (L, S) weights of the named mappings are never whole in memory from some size on (plain eager mode, no gradient in
    the mask): queries go in blocks, and what is kept for the backward is the support, or nothing. See docs/attention.md.

    When not to use: for long sequences with a callable, or under torch.compile: the (L, S) weights are then held in memory.

    >>> import torch, sparselayers.functional as F
    >>> q, k = torch.tensor([[4.0, 0.0]]), torch.eye(2)
    >>> F.scaled_dot_product_attention(q, k, torch.tensor([[1.0], [2.0]]))
    tensor([[1.]])
    """
    if mapping == "scale_free":
        if scale is not None:
            raise ValueError(f'mapping="scale_free" does not depend on a scale, got scale={scale!r}; leave it out')
        if dropout_p:
            raise ValueError(f'mapping="scale_free" has no dropout, got dropout_p={dropout_p!r}; use dropout_p=0.0')
        return scale_free_attention(query, key, value, attn_mask, is_causal, enable_gqa=enable_gqa)
    check_mapping(mapping)
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p must lie in [0, 1], got {dropout_p!r}")
    masks.check_shapes(query, key, value, enable_gqa)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    plain_scale = not isinstance(scale, Tensor)  # a tensor may need a gradient
    if plain_scale and isinstance(mapping, str) and fused.serves(query, key, value, attn_mask, dropout_p, mapping):
        return fused.attend(query, key, value, attn_mask, is_causal, scale, mapping)
    if enable_gqa:
        key, value = masks.repeat_heads(key, query.shape[-3]), masks.repeat_heads(value, query.shape[-3])
    if plain_scale and isinstance(mapping, str) and lean.serves(query, key.shape[-2], attn_mask):
        return lean.attend(query, key, value, attn_mask, dropout_p, is_causal, scale, mapping)
    allowed = masks.allowed_keys(attn_mask, is_causal, query, key)
    weights = whole_weights(query, key, attn_mask, allowed, scale, mapping)
    if dropout_p:
        weights = nn.functional.dropout(weights, dropout_p)
    return weighted(weights, value, allowed).to(query.dtype)


def check_mapping(mapping: Mapping) -> None:
    """ValueError or TypeError unless `mapping` is a known name or a callable."""
    known = ", ".join([*MAPPINGS, "scale_free"])
    if isinstance(mapping, str):
        if mapping not in MAPPINGS and mapping != "scale_free":
            raise ValueError(f"mapping must be one of {known} or a callable (scores, dim) -> weights, got {mapping!r}")
    elif isinstance(mapping, type) or not callable(mapping):
        raise TypeError(
            f"mapping must be one of {known}, a callable (scores, dim) -> weights or an nn.Module instance, got {mapping!r}"
        )


def whole_weights(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, allowed: Tensor | None, scale: float, mapping: Mapping
) -> Tensor:
    """All weights (..., L, S), in at least 32 bits, so that their sum is right to the last bit of the output's dtype."""
    key = key if allowed is None else masks.drop_unused_keys(allowed, key)
    scores = upcast(query) @ upcast(key).mT * scale
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        scores = scores + attn_mask
    mapped = _callable(mapping)
    return mapped(scores, -1) if allowed is None else masks.mapped_where(allowed, scores, mapped)


def weighted(weights: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
    """weights V; what nobody may attend to takes no part, be it NaN."""
    return weights @ upcast(value if allowed is None else masks.drop_unused_keys(allowed, value))


def _callable(mapping: Mapping) -> Callable[[Tensor, int], Tensor]:
    if isinstance(mapping, str):
        return MAPPINGS[mapping]
    # A module's second argument is a mask: it is called with the scores alone, and works on their last axis.
    return (lambda scores, dim: mapping(scores)) if isinstance(mapping, nn.Module) else mapping
