"""Attention that shows its weights: what the modules and integrations share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.norm import upcast
from . import masks
from .dot_product import Mapping, scaled_dot_product_attention, weighted, whole_weights
from .scale_free import scale_free_attention

# Scale-free attention in a module: with locality 0 a query inside the hull of its keys has no unique weights.
LOCALITY = 0.01


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    mapping: Mapping,
    need_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """Output (..., L, Ev) and, if asked for, the weights (..., L, S) that made it, after dropout as torch returns them.

    Arguments as for `scaled_dot_product_attention`, except: an nn.Module mapping is called with the scores alone and
    works on their last axis; "scale_free" takes dropout and has locality `LOCALITY`. Weights are held only where needed.
    """
    if not need_weights and mapping != "scale_free":
        out = scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa, mapping=mapping
        )
        return out, None
    masks.check_shapes(query, key, value, enable_gqa)
    if enable_gqa:
        key, value = masks.repeat_heads(key, query.shape[-3]), masks.repeat_heads(value, query.shape[-3])
    if mapping == "scale_free":
        if not (need_weights or dropout_p):
            return scale_free_attention(query, key, value, attn_mask, is_causal, locality=LOCALITY), None
        each = torch.eye(key.shape[-2], dtype=query.dtype, device=query.device).expand(*key.shape[:-1], -1)
        weights = upcast(scale_free_attention(query, key, each, attn_mask, is_causal, locality=LOCALITY))
        allowed = masks.allowed_keys(attn_mask, is_causal, query, key)
    else:
        allowed = masks.allowed_keys(attn_mask, is_causal, query, key)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        weights = whole_weights(query, key, attn_mask, allowed, scale, mapping)
    if dropout_p:
        weights = nn.functional.dropout(weights, dropout_p)
    out = weighted(weights, value, allowed).to(query.dtype)
    return out, weights.to(query.dtype) if need_weights else None
