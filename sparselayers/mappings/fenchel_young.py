r"""The Fenchel-Young loss of rows, L(z; y) = Omega*(z) + Omega(y) - <z, y> for p(z) = argmax_p <p, z> - Omega(p).

Taken literally that subtracts large numbers, and its gradient is p - y only up to what J^T (z - grad Omega(p)) leaves of
rounding. So a loss here is two parts: its value, as a constant, from a form without cancellation; and a zero that carries the
derivatives, E - E.detach(), in which p(z) meets nothing but factors that vanish.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .entmax import HIGH, LOW, entmax

RowMap = Callable[[Tensor, int], Tensor]


def entmax_loss(z: Tensor, y: Tensor, alpha: float | Tensor, free_sum: bool) -> Tensor:
    r"""The loss of entmax, whose Omega(p) = sum p log_a(p) / alpha with a = alpha - 1 and log_a(p) = (p^a - 1) / a.

    On the support z - tau = log_a(p), so that the loss is a sum over classes of terms >= 0. Where the sum of y is free to
    differ from 1 it is that sum that is differentiated; no shift of the logits changes it.
    """
    top = z.detach().amax(-1, keepdim=True)
    z = z - torch.where(top == -torch.inf, 0, top)  # tau of a row far from 0 would be rounded
    p, tau, _ = entmax(z, alpha, return_threshold=True)
    tau = torch.where(tau == torch.inf, 0, tau)  # a row with nothing left
    if isinstance(alpha, Tensor):
        alpha = alpha.clamp(LOW, HIGH).to(z.dtype)
    fixed = alpha.detach() if isinstance(alpha, Tensor) else alpha
    value = _terms(y.detach(), p.detach(), (z - tau).detach(), fixed).sum(-1, keepdim=True)

    z = torch.where(z == -torch.inf, 0, z)
    log_y = y.clamp(min=torch.finfo(y.dtype).tiny).log()
    carry = (y * _log(log_y, alpha) / alpha - z * y + (z - z.detach()) * p - _bend(p, fixed)).sum(-1, keepdim=True)
    if free_sum:
        carry = carry + (y.sum(-1, keepdim=True) - 1) * (tau - 1 / alpha)
    if isinstance(alpha, Tensor):
        still = p.detach()
        log_p = _log(torch.where(still > 0, still, 1).log(), alpha)
        carry = carry - (still * log_p / alpha + (log_p - log_p.detach()) * (p - still)).sum(-1, keepdim=True)
    return (value + (carry - carry.detach())).squeeze(-1)


def _terms(y: Tensor, p: Tensor, gap: Tensor, alpha: float | Tensor) -> Tensor:
    """A class's part of the loss: the Bregman divergence of Omega from p to y, >= 0, and y times what z misses tau by.

    Where p is far below y, nothing cancels, and `gap` = z - tau, which knows how far, takes the place of log_a(p).
    """
    far = p <= y / 8
    seen = torch.where(far, 1, p)
    positive = y > 0
    mass = torch.where(positive, y, 1)
    outside = torch.where(positive, y * ((_log(mass.log(), alpha) - 1) / alpha - gap), 0) + p**alpha / alpha
    if not isinstance(alpha, Tensor) and alpha == 2:
        inside = (y - seen).square() / 2
    elif not isinstance(alpha, Tensor) and alpha == 1.5:
        s, r = y.sqrt(), seen.sqrt()
        inside = (s - r).square() * (s + r / 2) * (4 / 3)
    else:
        relative = _log(torch.log1p((mass - seen) / seen), alpha)
        inside = seen ** (alpha - 1) / alpha * (torch.where(positive, y * relative, 0) - (y - seen))
    return torch.where(far, outside, inside).clamp(min=0)


def _bend(p: Tensor, alpha: float | Tensor) -> Tensor:
    """The Bregman divergence from p as a constant to p: 0 with first derivative 0, and all that Omega adds beyond it."""
    still = p.detach()
    if not isinstance(alpha, Tensor) and alpha == 2:
        return (p - still).square() / 2
    some = still > torch.finfo(p.dtype).tiny
    seen, p = torch.where(some, still, 1), torch.where(some, p, 1)
    return torch.where(some, seen ** (alpha - 1) / alpha, 0) * (p * _log((p / seen).log(), alpha) - p)


def _log(log_x: Tensor, alpha: float | Tensor) -> Tensor:
    """(x^a - 1) / a with a = alpha - 1, which is log x at a = 0; a tensor alpha has its derivatives there too."""
    if not isinstance(alpha, Tensor):
        return log_x if alpha == 1 else torch.expm1((alpha - 1) * log_x) / (alpha - 1)
    t = (alpha - 1) * log_x
    near = t.abs() < 0.5
    small, large = torch.where(near, t, 0), torch.where(near, -1, t)
    series = torch.zeros_like(t)
    for k in range(15, 0, -1):
        series = series * small + 1 / math.factorial(k)
    return log_x * torch.where(near, series, torch.expm1(large) / large)


def mapped_loss(z: Tensor, y: Tensor, mapping: RowMap, omega: RowMap) -> Tensor:
    """The loss by its definition, and its derivatives by the trapezoid rule between p as a constant and p."""
    p = mapping(z, -1)
    if not isinstance(p, Tensor) or p.shape != z.shape:
        got = tuple(p.shape) if isinstance(p, Tensor) else type(p).__name__
        raise ValueError(f"mapping must return weights of the shape of its input {tuple(z.shape)}, got {got}")
    still, entropy = p.detach(), omega(y, -1)
    if entropy.shape != z.shape[:-1]:
        raise ValueError(f"omega must sum over dim: (p, dim) -> {tuple(z.shape[:-1])}, got {tuple(entropy.shape)}")
    impossible = ((z == -torch.inf) & (y != 0)).any(-1)
    z = torch.where(z == -torch.inf, 0, z)
    value = entropy.detach() - omega(still, -1) + (z * (still - y)).detach().sum(-1)
    carry = entropy + ((z - z.detach()) * (p + still) / 2 - z * y).sum(-1)
    return torch.where(impossible, torch.inf, value) + (carry - carry.detach())
