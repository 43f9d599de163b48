"""Working precision, and a Euclidean norm that neither overflows nor has a NaN in any derivative at 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .eager import may_branch


def upcast(v: Tensor) -> Tensor:
    """`v` in float32 if it has 16 bits, unchanged otherwise."""
    return v.float() if v.dtype in (torch.float16, torch.bfloat16) else v


def strength(t: float | Tensor, like: Tensor) -> Tensor:
    """`t` as a tensor in the dtype and on the device of `like`; a gradient flows through."""
    if isinstance(t, Tensor):
        return t.to(like.dtype)
    t = t if t <= torch.finfo(like.dtype).max else math.inf
    return torch.full((), t, dtype=like.dtype, device=like.device)


def norm(v: Tensor) -> Tensor:
    r"""‖v‖_2 along the last axis, kept: (..., n) -> (..., 1), in float32 for 16-bit input.

    The row is scaled by its largest entry (1e20 in float32 does not overflow) and the square root never sees 0, so
    that value, gradient and second derivative are finite everywhere; at 0 the derivatives are 0.
    """
    v = upcast(v)
    if v.shape[-1] == 0:
        return v.sum(-1, keepdim=True)
    if may_branch(v) and not (torch.is_grad_enabled() and v.requires_grad):
        return _plain_where_safe(v)
    return _scaled(v)


def _scaled(v: Tensor) -> Tensor:
    largest = v.detach().abs().amax(-1, keepdim=True)
    scale = torch.where(largest == 0, 1, largest)
    square = (v / scale).square().sum(-1, keepdim=True)
    zero = square == 0
    return torch.where(zero, 0, scale * torch.where(zero, 1, square).sqrt())


def _plain_where_safe(v: Tensor) -> Tensor:
    """The same without a graph: one pass, and a second one over the rows whose squares come near the ends of the range."""
    length = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    if length.numel() and not _safe(length):
        unsafe = ~((length > 1e-15) & (length < 1e15)).squeeze(-1)
        length[unsafe] = _scaled(v[unsafe])
    return length


def _safe(length: Tensor) -> bool:
    least, most = torch.aminmax(length)
    return float(least) > 1e-15 and float(most) < 1e15
