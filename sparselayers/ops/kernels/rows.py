"""The fused row operators with their gradients: what `waterline`, `project` and `entmax15` call where kernels may run.

Each returns None where plain torch operations must do the work: kernels off or not installed, a transform or compiler at
work, or a strength that needs a gradient. The backward is a kernel too, or the same formula in torch operations where
its own derivative may be wanted: the support is constant, so that the formula carries all higher derivatives.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .switch import serve

Strength = float | Tensor


def project_rows(v: Tensor, a: Strength, b: Strength, c: Strength, signed: bool) -> tuple[Tensor, Tensor] | None:
    """(sign (u - tau)_+, tau) with a sum (u - tau)_+ = b + c tau along the last axis, u = abs(v) if signed else v; or None."""
    strengths = None if serve(v) is None else _rows_of(v, a, b, c)
    if strengths is None:
        return None
    flat = v.reshape(-1, v.shape[-1])
    out, tau = _Project.apply(flat, *strengths, signed)
    return out.view(v.shape), tau.view(*v.shape[:-1], 1)


def entmax15_rows(z: Tensor) -> Tensor | None:
    """(z / 2 - tau)_+² with sum 1 along the last axis; or None."""
    if serve(z) is None:
        return None
    return _Entmax15.apply(z.reshape(-1, z.shape[-1])).view(z.shape)


def level_rows(u: Tensor, a: Strength, b: Strength, c: Strength, start: Tensor) -> Tensor | None:
    """The level tau (..., 1) of the waterline from `start`, for constants: no gradient; or None."""
    n = u.shape[-1]
    if serve(u) is None or (isinstance(a, Tensor) and a.requires_grad) or start.shape[:-1] != u.shape[:-1]:
        return None
    if isinstance(a, Tensor) and a.shape[-1] != 1:
        strengths = _rows_of(u, b, c)
        if strengths is None:
            return None
        strengths = (a.expand(u.shape).reshape(-1, n).contiguous(), *strengths)
    else:
        strengths = _rows_of(u, a, b, c)
        if strengths is None:
            return None
    module = _kernels(u, "level")
    return module.level(u.reshape(-1, n).contiguous(), *strengths, start.reshape(-1, 1)).view(start.shape)


def sparsemax_vjp(p: Tensor, g: Tensor) -> Tensor:
    """The vector-Jacobian product of the projection on the simplex at its result p, along the last axis."""
    if serve(p) is None or serve(g) is None:
        return _project_back(p, g, None, 1.0, 0.0, p, False)
    flat = p.reshape(-1, p.shape[-1])
    nowhere = flat.new_zeros(flat.shape[0], 1)
    back = _kernels(p, "rows").project_backward(flat, g.reshape(flat.shape).contiguous(), 1.0, 0.0, nowhere, False)
    return back.view(p.shape)


def entmax15_vjp(p: Tensor, g: Tensor) -> Tensor:
    """The vector-Jacobian product of entmax-1.5 at its result p, along the last axis."""
    if serve(p) is None or serve(g) is None:
        return _entmax15_back(p, g)
    flat = p.reshape(-1, p.shape[-1])
    return _kernels(p, "entmax15").entmax15_backward(flat, g.reshape(flat.shape).contiguous()).view(p.shape)


def _rows_of(v: Tensor, *strengths: Strength) -> tuple[Strength, ...] | None:
    """Each strength as a number or (rows, 1); None where one needs a gradient or has more rows than v."""
    found: list[Strength] = []
    for strength in strengths:
        if not isinstance(strength, Tensor):
            found.append(strength)
            continue
        if strength.requires_grad or strength.ndim > v.ndim:
            return None
        if strength.numel() == 1:
            found.append(strength.detach().reshape(1, 1))
            continue
        if any(m not in (1, n) for m, n in zip(reversed(strength.shape), reversed((*v.shape[:-1], 1)), strict=False)):
            return None
        found.append(strength.expand(*v.shape[:-1], 1).reshape(-1, 1))
    return tuple(found)


def _kernels(x: Tensor, numba_part: str) -> Any:
    """The module that holds the kernels for x; they are imported, and compiled, when first used."""
    if serve(x) == "triton":
        from . import triton_rows

        return triton_rows
    return _numba(numba_part)


def _numba(part: str) -> ModuleType:
    from . import numba_entmax15, numba_level, numba_rows

    return {"rows": numba_rows, "entmax15": numba_entmax15, "level": numba_level}[part]


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, a: Strength, b: Strength, c: Strength, signed: bool) -> tuple[Tensor, Tensor]:
        out, tau = _kernels(v, "rows").project(v.contiguous(), a, b, c, signed)
        # Numbers are kept as they are; a tensor must be saved, or a change in place would go unnoticed.
        tensors = [x for x in (a, c) if isinstance(x, Tensor)]
        ctx.save_for_backward(out, tau, *tensors)
        ctx.numbers, ctx.signed = [None if isinstance(x, Tensor) else x for x in (a, c)], signed
        ctx.set_materialize_grads(False)
        return out, tau

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_tau: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        out, tau, *tensors = ctx.saved_tensors
        a, c = (tensors.pop(0) if x is None else x for x in ctx.numbers)
        signed = ctx.signed
        if g is not None and g_tau is None and not torch.is_grad_enabled() and serve(g) is not None:
            grad = _kernels(g, "rows").project_backward(out, g.contiguous(), a, c, tau, signed)
        else:
            grad = _project_back(out, g, g_tau, a, c, tau.detach(), signed)
        return grad, None, None, None, None


def _project_back(
    out: Tensor, g: Tensor | None, g_tau: Tensor | None, a: Strength, c: Strength, tau: Tensor, signed: bool
) -> Tensor:
    """On the support S with signs s:  g - s a <s, g> / m + s a g_tau / m,  m = a |S| + c;  g where nothing moved.

    `out` keeps its graph: sign has derivative 0, so that a second derivative is 0 and not an error.
    """
    g = torch.zeros_like(out) if g is None else g
    signs = out.sign()
    members = signs.abs()
    mass = a * members.sum(-1, keepdim=True) + c
    pull = (signs * g).sum(-1, keepdim=True)
    pull = pull if g_tau is None else pull - g_tau
    moved = members * g - signs * (a * pull / torch.where(mass > 0, mass, 1))
    if not signed:
        return moved
    at_rest = (torch.as_tensor(a) == 0) | (torch.as_tensor(c) == 0)  # inside the ball, or t = 0
    return torch.where(at_rest.to(tau.device) & (tau <= 0), g, moved)


class _Entmax15(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        p = _kernels(z, "entmax15").entmax15(z.contiguous())
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        (p,) = ctx.saved_tensors
        if not torch.is_grad_enabled() and serve(g) is not None:
            return _kernels(g, "entmax15").entmax15_backward(p, g.contiguous())
        return _entmax15_back(p, g)


def _entmax15_back(p: Tensor, g: Tensor) -> Tensor:
    """r (g - <r, g> / sum r) with r = sqrt(p); p keeps its graph, which is how higher derivatives pass."""
    support = p > 0
    root = torch.where(support, torch.where(support, p, 1).sqrt(), 0)
    total = root.sum(-1, keepdim=True)
    return root * (g - (root * g).sum(-1, keepdim=True) / torch.where(total > 0, total, 1))
