"""Attention in one fused CUDA kernel, in the flash manner: scores live in registers, grouped heads are never repeated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.kernels.switch import serve
from . import lean, masks

WIDEST = 256  # of E and Ev: what a tile in registers holds


def serves(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float, mapping: str) -> bool:
    """Whether the kernel takes this call; shapes are already checked."""
    return (
        mapping in ("sparsemax", "entmax15")
        and not dropout_p
        and serve(query) == "triton"
        and query.dtype in (torch.float16, torch.bfloat16, torch.float32)
        and max(query.shape[-1], value.shape[-1]) <= WIDEST
        and key.numel() > 0
        and value.numel() > 0
        and (attn_mask is None or (not attn_mask.requires_grad and attn_mask.ndim <= query.ndim))
    )


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float,
    mapping: str,
) -> Tensor:
    """mapping(scale Q K^T + mask) V for arguments already checked; key and value heads (axis -3) may be fewer."""
    axes = max(4, query.ndim, key.ndim, value.ndim)
    batch = torch.broadcast_shapes(*(_with_axes(x, axes).shape[:-3] for x in (query, key, value)))
    heads = max(_with_axes(x, axes).shape[-3] for x in (query, key, value))
    q = _four(_with_axes(query, axes), batch, heads)
    n_shared = max(_with_axes(x, axes).shape[-3] for x in (key, value))
    k, v = (_four(_with_axes(x, axes), batch, n_shared) for x in (key, value))
    mask = attn_mask
    if mask is not None:
        masks.check(mask, query, query.new_empty(*query.shape[:-2], key.shape[-2], 0))
        mask = _with_axes(mask, axes)
        mask = mask if axes == 4 else _four(mask, batch, mask.shape[-3])
    out = _Fused.apply(q, k, v, mask, is_causal, scale, mapping)
    leading = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    shape = (*leading, heads) if max(query.ndim, key.ndim, value.ndim) > 2 else ()
    return out.reshape(*shape, *out.shape[-2:])


def _with_axes(x: Tensor, axes: int) -> Tensor:
    return x[(None,) * (axes - x.ndim)]


def _four(x: Tensor, batch: torch.Size, heads: int) -> Tensor:
    """(*batch, heads, length, width) with one batch axis; nothing is copied where there is only one."""
    return x.expand(*batch, heads, *x.shape[-2:]).flatten(0, -4)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        is_causal: bool,
        scale: float,
        mapping: str,
    ) -> Tensor:
        kernels = _kernels()
        mask, bias = _split(attn_mask)
        out, levels = kernels.attention_forward(query, key, value, mask, bias, is_causal, scale, mapping)
        ctx.save_for_backward(query, key, value, levels, *([] if attn_mask is None else [attn_mask]))
        ctx.is_causal, ctx.scale, ctx.mapping = is_causal, scale, mapping
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, levels, *masked = ctx.saved_tensors
        attn_mask = masked[0] if masked else None
        if torch.is_grad_enabled():  # a second derivative may be wanted
            inputs = [x if x.requires_grad else x.detach().requires_grad_() for x in (query, key, value)]
            k, v = (masks.repeat_heads(x, query.shape[-3]) for x in inputs[1:])
            out = lean.attend(inputs[0], k, v, attn_mask, 0.0, ctx.is_causal, ctx.scale, ctx.mapping)
            return *torch.autograd.grad(out, inputs, g, create_graph=True), None, None, None, None
        mask, bias = _split(attn_mask)
        options = (mask, bias, ctx.is_causal, ctx.scale, ctx.mapping)
        return *_kernels().attention_backward(g, query, key, value, levels, *options), None, None, None, None


def _split(attn_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """(boolean mask, floating bias); the kernel reads -inf and finfo.min in the bias as masked."""
    if attn_mask is None:
        return None, None
    return (attn_mask, None) if attn_mask.dtype == torch.bool else (None, attn_mask)


def _kernels() -> Any:
    from ..ops.kernels import triton_attention

    return triton_attention
