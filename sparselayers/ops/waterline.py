r"""The waterline: one piecewise linear equation a row, under every simplex, l1-ball, exclusive and l-infinity operator.

Given u (..., n), a_i > 0, b >= 0, c >= 0, find tau with  sum_i a_i (u_i - tau)_+ = b + c tau.  The left side falls
and is convex, the right side rises, so Newton's method from below climbs to the root and stops on its support.

How many passes are enough is a theorem, not a guess. With f the difference of the two sides and M = -f' > 0, Newton
on a convex f gives f_{k+1}/f_k + M_{k+1}/M_k <= 1 (the two ratios are the two parts that one chord cuts off), so f M
shrinks at least fourfold a pass, and k passes leave an error of at most (M_0 / M_min)² 4^-k relative to b + c tau.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .eager import may_branch
from .norm import strength, upcast

WEIGHT_RANGE_BITS = 24  # per-entry weights may span this many powers of two before a fixed-pass answer loses digits


class Waterline(NamedTuple):
    """What stands out of the water, (u - tau)_+ (..., n), and the level tau (..., 1)."""

    above: Tensor
    tau: Tensor


def waterline(u: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0, c: float | Tensor = 0.0) -> Waterline:
    r"""Solve  sum_i a_i (u_i - tau)_+ = b + c tau  for tau, row by row, exactly and differentiably.

    Closed form on the support S = {i : u_i > tau}:  tau = (sum_S a_i u_i - b) / (sum_S a_i + c). S is found on detached
    values; then tau is written in plain torch operations on that constant S, so that every derivative, transform and
    compiler sees the closed-form Jacobian.

    Args:
        u: (..., n), n >= 1. -inf takes no part; a row all -inf stands out nowhere; NaN or +inf makes its row NaN.
        a: weights, broadcast to u; zero only where c > 0.
        b: (..., 1) or a number.
        c: (..., 1) or a number.

    Source: Held, Wolfe and Crowder 1974 (simplex); Michelot 1986; the pass bound as for Dinkelbach's method.
    """
    u = upcast(u)
    top = u.detach().amax(-1, keepdim=True)
    top = torch.where(top == -torch.inf, 0, top)
    # Relative to the row's top, b becomes b + c top, and what the largest entry keeps suffers no cancellation.
    w, b = u - top, b + c * top
    a = strength(a, top)
    a = a if a.ndim else a.expand_as(top)
    tau = _climb(w.detach(), a.detach(), b.detach(), c.detach() if isinstance(c, Tensor) else c)
    above = torch.relu(w - tau)
    weight = a * above.detach().sign()
    mass = weight.sum(-1, keepdim=True) + c
    # One Newton step from a constant is the closed form on S, identically: so are all its derivatives.
    tau = tau + ((weight * above).sum(-1, keepdim=True) - b - c * tau) / torch.where(mass > 0, mass, 1)
    return Waterline(torch.relu(w - tau), tau + top)


def _climb(w: Tensor, a: Tensor, b: Tensor, c: float | Tensor) -> Tensor:
    """Newton's method from the level at which the largest entry stands alone; w <= 0 is 0 at that entry."""
    if a.shape[-1] == 1:
        alone, passes = a, newton_passes(w)
    else:
        alone, passes = a.expand_as(w).gather(-1, w.argmax(-1, keepdim=True)), newton_passes(w, WEIGHT_RANGE_BITS)
    mass = alone + c
    tau = -b / torch.where(mass > 0, mass, 1)
    eager, size = may_branch(w), None
    for _ in range(passes):
        above = torch.relu(w - tau)
        support = above.sign()
        if a.shape[-1] == 1:
            members = support.sum(-1, keepdim=True)
            mass, area = a * members + c, a * above.sum(-1, keepdim=True)
        else:
            members = support.sum(-1, keepdim=True) if eager else None
            mass, area = (a * support).sum(-1, keepdim=True) + c, (a * above).sum(-1, keepdim=True)
        tau = tau + (area - b - c * tau) / torch.where(mass > 0, mass, 1)
        if eager:
            if size is not None and torch.equal(members, size):
                break
            size = members
    return tau


def newton_passes(w: Tensor, weight_bits: int = 0) -> int:
    """Passes after which the error is below rounding, from the bound in the module's docstring."""
    if torch.compiler.is_exporting():
        row_bits = 20  # a range guard on an exported dynamic length would be an error
    else:
        row_bits = next(k for k in range(64) if w.shape[-1] <= 2**k)
    value_bits = 53 if w.dtype == torch.float64 else 24
    return (value_bits + 1) // 2 + row_bits + weight_bits
