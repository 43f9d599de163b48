"""Attention that shows its weights: what the modules and integrations share."""

from __future__ import annotations

from torch import Tensor, nn

from . import masks
from .dot_product import Mapping, scaled_dot_product_attention, weighted, whole_weights
from .scale_free import explained

# Scale-free attention in a module: at locality 0 a query inside the hull of its keys has no unique weights, and near 0 their
# derivative is large and the search long; at 0.1 a query outside the hull loses hardly an atom.
LOCALITY = 0.1
TOL = 1e-6


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
    if mapping == "scale_free":
        return explained(
            query, key, value, attn_mask, dropout_p, is_causal, LOCALITY, 0.0, TOL, enable_gqa, need_weights
        )
    if not need_weights:
        out = scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa, mapping=mapping
        )
        return out, None
    masks.check_shapes(query, key, value, enable_gqa)
    if enable_gqa:
        key, value = masks.repeat_heads(key, query.shape[-3]), masks.repeat_heads(value, query.shape[-3])
    allowed = masks.allowed_keys(attn_mask, is_causal, query, key)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    weights = whole_weights(query, key, attn_mask, allowed, scale, mapping)
    if dropout_p:
        weights = nn.functional.dropout(weights, dropout_p)
    out = weighted(weights, value, allowed).to(query.dtype)
    return out, weights.to(query.dtype)
