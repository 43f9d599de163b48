"""Scale-free attention: the weights are the convex combination of keys nearest to the query."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.eager import may_branch
from ..ops.norm import upcast
from . import lean_scale_free, masks
from .simplex import Strength, simplex_least_squares


def scale_free_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    locality: float | Tensor = 0.0,
    ridge: float | Tensor = 0.0,
    tol: float = 1e-6,
    enable_gqa: bool = False,
) -> Tensor:
    r"""Attention by distance: each query is explained by a convex combination of keys, and reads the same of the values.

    Y V with  y = argmin over the simplex  1/2 ‖q - sum_j y_j k_j‖² + locality/2 sum_j y_j ‖q - k_j‖² + ridge/2 ‖y‖²

    At ridge = 0 the output does not change when queries and keys are scaled, shifted or rotated together. Weights have
    exact zeros. A query inside the hull of its keys has many weights at locality = ridge = 0; any of them is used.

    Args:
        query: (..., L, E).
        key: (..., S, E).
        value: (..., S, Ev).
        attn_mask: boolean, broadcasts to (..., L, S), True = may attend; a floating mask may hold 0, and -inf or
            finfo.min for masked, nothing else: a penalty on keys has no meaning here (on a GPU this is not checked).
        is_causal: query i sees keys 0..i; together with `attn_mask` both apply.
        locality: >= 0, dimensionless: pulls the weights to near keys. A number, or a tensor that broadcasts to
            (..., L, 1), such as (heads, 1, 1).
        ridge: >= 0, absolute: spreads the weights; it breaks the scale invariance.
        tol: relative duality gap at which a query stops.
        enable_gqa: repeat key and value heads (axis -3) to the number of query heads.

    Returns: (..., L, Ev). A query that may attend to nothing gives 0, with gradient 0.

    Raises: TypeError for dtypes, and for a floating mask that holds anything else; ValueError for shapes.

    Source: the nearest-point form of attention; Wolfe 1976 for the problem.

    When not to use: where queries and keys live in different spaces: distance then means nothing. In self-attention
        with one projection for both and a visible diagonal every token attends to itself.

    >>> import torch, sparselayers.functional as F
    >>> key = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 5.0]])
    >>> F.scale_free_attention(torch.tensor([[0.5, -1.0]]), key, torch.tensor([[0.0], [5.0], [9.0]]))
    tensor([[1.2500]])
    """
    return explained(query, key, value, attn_mask, 0.0, is_causal, locality, ridge, tol, enable_gqa, False)[0]


# Precision is settled here: autocast must not take bits from some of the products.
@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def explained(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    locality: Strength,
    ridge: Strength,
    tol: float,
    enable_gqa: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """`scale_free_attention` with dropout, and the weights (..., L, S) that made the output, if asked for."""
    masks.check_shapes(query, key, value, enable_gqa)
    if attn_mask is not None and attn_mask.is_floating_point():
        _check_only_drops(attn_mask)
    if enable_gqa:
        key, value = masks.repeat_heads(key, query.shape[-3]), masks.repeat_heads(value, query.shape[-3])
    if not (dropout_p or need_weights) and lean_scale_free.serves(query, key.shape[-2]):
        out = lean_scale_free.attend(query, key, value, attn_mask, is_causal, locality, ridge, tol)
        return out.to(query.dtype), None
    allowed = masks.allowed_keys(attn_mask, is_causal, query, key)
    if allowed is not None:
        key, value = masks.drop_unused_keys(allowed, key), masks.drop_unused_keys(allowed, value)
    query, atoms = upcast(query), upcast(key).unsqueeze(-3)
    weights = simplex_least_squares(query, atoms, mask=allowed, locality=locality, ridge=ridge, tol=tol).weights
    if dropout_p:
        weights = nn.functional.dropout(weights, dropout_p)
    out = (weights @ upcast(value)).to(value.dtype)
    return out, weights.to(value.dtype) if need_weights else None


def _check_only_drops(attn_mask: Tensor) -> None:
    """TypeError for a floating mask that holds more than 0 and "masked"."""
    remedy = "use a boolean mask"
    if attn_mask.requires_grad:
        raise TypeError(f"scale-free attention has no gradient for a mask, got one that requires grad; {remedy}")
    if may_branch(attn_mask):
        dropped = attn_mask <= torch.finfo(attn_mask.dtype).min / 2
        if not bool((dropped | (attn_mask == 0)).all()):
            raise TypeError(
                "scale-free attention drops keys and cannot add scores to them: a floating attn_mask may hold only 0, -inf "
                f"and finfo.min, got other values; {remedy}"
            )
