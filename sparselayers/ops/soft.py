"""The soft threshold at a tensor t on the CPU, in eager autograd: two passes over memory forward, four backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .eager import is_plain_eager, may_branch


def serves(v: Tensor, t: Tensor) -> bool:
    """True where `SoftThreshold` may stand for the plain formula: no transform is at work and every t is positive."""
    return (
        may_branch(v)
        and is_plain_eager(v)
        and is_plain_eager(t)
        and t.device == v.device
        and (t.ndim == 0 or t.dtype == v.dtype)
        and bool((t > 0).all())
    )


class SoftThreshold(torch.autograd.Function):
    """v - clamp(v, -t, t) for t > 0. The backward reads the support off the output, and is itself differentiable."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, t: Tensor) -> Tensor:
        most = torch.finfo(v.dtype).max
        out = torch.nn.functional.softshrink(v, min(float(t), most)) if t.ndim == 0 else v - v.clamp(-t, t)
        ctx.save_for_backward(out)
        ctx.t = t.shape, t.dtype
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (out,) = ctx.saved_tensors
        out, (shape, dtype) = out.detach(), ctx.t
        to_v = torch.ops.aten.softshrink_backward(g, out, 0.0) if ctx.needs_input_grad[0] else None
        to_t = -(g * out.sign()).sum_to_size(shape).to(dtype) if ctx.needs_input_grad[1] else None
        return to_v, to_t
