"""Which keys a query may attend to: boolean, additive and causal masks read into one boolean mask and one bias."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..ops import checks


def allowed_keys(attn_mask: Tensor | None, is_causal: bool, query: Tensor, key: Tensor) -> Tensor | None:
    """True = may attend, broadcastable to (..., L, S); None where everything is allowed.

    -inf and whatever lies below half of finfo.min in an additive mask count as masked. Causal is aligned upper left.
    """
    allowed, n_queries, n_keys = None, query.shape[-2], key.shape[-2]
    if attn_mask is not None:
        check(attn_mask, query, key)
        allowed = told(attn_mask)
    if is_causal:
        causal = torch.ones(n_queries, n_keys, dtype=torch.bool, device=query.device).tril()
        allowed = causal if allowed is None else allowed & causal
    return allowed


def told(attn_mask: Tensor) -> Tensor:
    """What a mask allows: itself if boolean; else what is not below half of finfo.min of its own dtype."""
    if attn_mask.dtype == torch.bool:
        return attn_mask
    # NaN in an additive mask is not "masked": it must reach the scores.
    return (attn_mask > torch.finfo(attn_mask.dtype).min / 2) | attn_mask.isnan()


def in_dtype(attn_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive mask in another dtype, in which finfo.min of the old one is no longer far below every score."""
    return torch.where(told(attn_mask), attn_mask, -torch.inf).to(dtype)


def check(attn_mask: Tensor, query: Tensor, key: Tensor) -> None:
    """TypeError or ValueError unless the mask is boolean or floating and broadcasts to (..., L, S)."""
    if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
        raise TypeError(
            f"attn_mask must be boolean (True = may attend) or floating (added), got {attn_mask.dtype}; use .bool()"
        )
    if attn_mask.dtype not in (torch.bool, query.dtype):
        raise TypeError(
            f"a floating attn_mask must have the query's dtype {query.dtype}, got {attn_mask.dtype}; "
            "use attn_mask.to(query.dtype)"
        )
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    fits = attn_mask.ndim >= 1 and attn_mask.shape[-1] in (1, n_keys)
    if not fits or (attn_mask.ndim >= 2 and attn_mask.shape[-2] not in (1, n_queries)):
        raise ValueError(
            f"attn_mask must broadcast to (..., {n_queries}, {n_keys}) (queries, keys), got {tuple(attn_mask.shape)}"
        )
    checks.broadcast(attn_mask=attn_mask.shape[:-2], query=query.shape[:-2], key=key.shape[:-2])


def drop_unused_keys(allowed: Tensor, key: Tensor) -> Tensor:
    """`key` (or value) with 0 in the rows that no query may attend to: whatever stood there, NaN or inf, takes no part."""
    used = allowed.any(-2) if allowed.ndim > 1 else allowed
    return torch.where(used.unsqueeze(-1), key, 0)


def check_shapes(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    """ValueError unless query (..., L, E), key (..., S, E), value (..., S, Ev) fit, TypeError unless they are floating."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not x.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {x.dtype}; use {name}.float()")
        if x.ndim < 2:
            raise ValueError(f"{name} must be (..., length, width), got {tuple(x.shape)}")
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(f"query, key and value must have one dtype, got {query.dtype}, {key.dtype}, {value.dtype}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key must have the same last axis, got {tuple(query.shape)} and {tuple(key.shape)}")
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(
            f"key and value must have the same length (axis -2), got {tuple(key.shape)} and {tuple(value.shape)}"
        )
    if enable_gqa and not all(
        x.ndim > 2 and query.ndim > 2 and query.shape[-3] % x.shape[-3] == 0 for x in (key, value)
    ):
        raise ValueError(
            "enable_gqa needs heads on axis -3 and query heads a multiple of key and value heads, got query "
            f"{tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
        )
    heads = slice(-3) if enable_gqa else slice(-2)
    try:
        checks.broadcast(query=query.shape[heads], key=key.shape[heads], value=value.shape[heads])
    except ValueError as error:
        remedy = (
            "" if enable_gqa else "; where axis -3 is heads, enable_gqa=True lets several query heads share a key head"
        )
        raise ValueError(f"{error}{remedy}") from None


def repeat_heads(x: Tensor, n_heads: int) -> Tensor:
    """Grouped-query attention: each key head serves n_heads / heads query heads."""
    return x.repeat_interleave(n_heads // x.shape[-3], dim=-3)


def mapped_where(allowed: Tensor, scores: Tensor, mapping: Callable[[Tensor, int], Tensor]) -> Tensor:
    """The mapping over the allowed keys; a row without any is 0 with gradient 0, whatever the mapping makes of -inf."""
    alive = allowed.any(-1, keepdim=True)
    scores = torch.where(allowed, scores, -torch.inf)
    weights = mapping(torch.where(alive, scores, 0), -1)
    return torch.where(allowed, weights, 0)


def used_keys(attn_mask: Tensor | None, is_causal: bool, query: Tensor, key: Tensor) -> Tensor | None:
    """True = some query may attend to the key, broadcastable to (..., S); None where every key is used.

    Found without an (L, S) matrix where the mask is none.
    """
    allowed = allowed_keys(attn_mask, False, query, key)
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    if not is_causal:
        return None if allowed is None else allowed.any(-2) if allowed.ndim > 1 else allowed
    reached = torch.arange(n_keys, device=key.device) < n_queries
    if allowed is None:
        return reached
    if allowed.ndim == 1 or allowed.shape[-2] == 1:
        return (allowed if allowed.ndim == 1 else allowed.squeeze(-2)) & reached
    return (allowed & torch.ones(n_queries, n_keys, dtype=torch.bool, device=key.device).tril()).any(-2)
