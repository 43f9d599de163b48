"""What callers of nn.MultiheadAttention pass, read into (N, heads, L, E) and masks whose True = may attend, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import checks


def check(query: Tensor, key: Tensor, value: Tensor, widths: tuple[int, int, int]) -> None:
    """TypeError or ValueError unless the three are (length, width), or all batched with 3 axes, of one key length."""
    for name, x, width in zip(("query", "key", "value"), (query, key, value), widths, strict=True):
        checks.floating(x, name)
        if x.is_nested:
            raise ValueError(
                f"{name} is a nested tensor, which only torch's fused softmax path takes; where nn.TransformerEncoder "
                "made it, set its use_nested_tensor = False, as sl.swap_attention does"
            )
        if x.ndim not in (2, 3) or x.ndim != query.ndim or x.shape[-1] != width:
            raise ValueError(
                f"{name} must be (length, {width}) or, for all three, batched with 3 axes, got {tuple(x.shape)}"
                + ("" if x is query else f" beside a query of shape {tuple(query.shape)}")
            )
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            f"key and value must have one length and batch size, got {tuple(key.shape)} and {tuple(value.shape)}"
        )


def batch_first(
    query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None, is_so: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The three as (N, length, width), and the padding as (N, S); without a batch N is 1."""
    if query.ndim == 2:
        query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    elif not is_so:
        query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
    if not query.shape[0] == key.shape[0] == value.shape[0]:
        raise ValueError(
            "query, key and value must have one batch size, got "
            f"{query.shape[0]}, {key.shape[0]}, {value.shape[0]} (batch_first={is_so})"
        )
    return query, key, value, key_padding_mask


def as_given(
    out: Tensor, weights: Tensor | None, batched: bool, is_batch_first: bool, average: bool
) -> tuple[Tensor, Tensor | None]:
    """Output (N, L, E) and weights (N, heads, L, S) in the layout of the inputs, the weights averaged over heads if wanted."""
    if weights is not None and average:
        weights = weights.mean(1)
    if not batched:
        return out.squeeze(0), None if weights is None else weights.squeeze(0)
    return out if is_batch_first else out.transpose(0, 1), weights


def allowed(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, heads: int, query: Tensor, key: Tensor
) -> Tensor | None:
    """Both masks in one that broadcasts to (N, heads, L, S): boolean, True = may attend, where both are; else added."""
    shape = (query.shape[0], heads, query.shape[1], key.shape[1])
    return joined(_padding(key_padding_mask, shape), _attending(attn_mask, shape), query)


def joined(one: Tensor | None, other: Tensor | None, like: Tensor) -> Tensor | None:
    """Both masks in one: boolean where both are, else a sum in which whatever either masks is -inf."""
    if one is None or other is None:
        return other if one is None else one
    if one.dtype == other.dtype == torch.bool:
        return one & other
    return _added(one, like) + _added(other, like)


def _padding(mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """key_padding_mask (N, S) as a mask (N, 1, 1, S), True = may attend."""
    if mask is None:
        return None
    n, _, _, keys = shape
    if mask.shape != (n, keys):
        raise ValueError(
            f"key_padding_mask must be (batch, keys) = ({n}, {keys}), (keys,) without a batch, got {tuple(mask.shape)}"
        )
    return _turned(mask, "key_padding_mask")[:, None, None]


def _attending(mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """attn_mask (L, S) or (N heads, L, S) as a mask that broadcasts to (N, heads, L, S), True = may attend."""
    if mask is None:
        return None
    n, heads, *pairs = shape
    if tuple(mask.shape) not in ((*pairs,), (n * heads, *pairs)):
        raise ValueError(
            f"attn_mask must be (queries, keys) = {tuple(pairs)} or (batch * heads, queries, keys) = {(n * heads, *pairs)}, "
            f"got {tuple(mask.shape)}"
        )
    mask = _turned(mask, "attn_mask")
    return mask if mask.ndim == 2 else mask.unflatten(0, (n, heads))


def _turned(mask: Tensor, name: str) -> Tensor:
    """True = ignore, as in nn.MultiheadAttention, into True = may attend; floating masks mean the same in both."""
    if mask.dtype == torch.bool:
        return ~mask
    if not mask.is_floating_point():
        raise TypeError(
            f"{name} must be boolean (True = ignore) or floating (added), got {mask.dtype}; use {name}.bool()"
        )
    return mask


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill(~mask, -torch.inf)
