"""Dot-product attention with torch's signature and any mapping in the place of softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..mappings.simplex import entmax15, sparsemax
from ..ops.norm import upcast
from . import lean, masks
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
        mapping: "softmax", "sparsemax", "entmax15", "scale_free", or a callable (scores, dim) -> weights.

    Returns: (..., L, Ev), in the dtype of the query. A query that may attend to nothing gives 0, with gradient 0. Keys
        masked for every query take no part, be they NaN.

    Raises: TypeError for dtypes; ValueError for shapes, for an unknown mapping, and for `scale` with "scale_free".

    Source: Vaswani et al. 2017; Martins and Astudillo 2016 (sparsemax); Peters et al. 2019 (entmax).

    When not to use: for long sequences: the (L, S) weights are held in memory.

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
    if isinstance(mapping, str):
        if mapping not in MAPPINGS:
            known = ", ".join([*MAPPINGS, "scale_free"])
            raise ValueError(f"mapping must be one of {known} or a callable (scores, dim) -> weights, got {mapping!r}")
    elif not callable(mapping):
        raise TypeError(f"mapping must be a name or a callable (scores, dim) -> weights, got {mapping!r}")
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p must lie in [0, 1], got {dropout_p!r}")
    masks.check_shapes(query, key, value, enable_gqa)
    if enable_gqa:
        key, value = masks.repeat_heads(key, query.shape[-3]), masks.repeat_heads(value, query.shape[-3])
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if isinstance(mapping, str) and lean.serves(query, key.shape[-2], attn_mask):
        return lean.attend(query, key, value, attn_mask, dropout_p, is_causal, scale, mapping)
    mapped = MAPPINGS[mapping] if isinstance(mapping, str) else mapping
    allowed = masks.allowed_keys(attn_mask, is_causal, query, key)
    if allowed is not None:
        key, value = masks.drop_unused_keys(allowed, key), masks.drop_unused_keys(allowed, value)
    # Weights are found in at least 32 bits, so that their sum is right to the last bit of the output's dtype.
    scores = upcast(query) @ upcast(key).mT * scale
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        scores = scores + attn_mask
    weights = mapped(scores, -1) if allowed is None else masks.mapped_where(allowed, scores, mapped)
    if dropout_p:
        weights = torch.nn.functional.dropout(weights, dropout_p)
    return (weights @ upcast(value)).to(query.dtype)
