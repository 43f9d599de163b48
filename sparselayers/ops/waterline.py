r"""The waterline: one piecewise linear equation a row, under every simplex, l1-ball, exclusive and l-infinity operator.

Given u (..., n), a_i > 0, b >= 0, c >= 0, find tau with  sum_i a_i (u_i - tau)_+ = b + c tau.  The left side falls
and is convex, the right side rises, so Newton's method from below climbs to the root and stops on its support.

How many passes are enough is a theorem, not a guess. With f the difference of the two sides and M = -f' > 0, Newton on
a convex f gives f_{k+1}/f_k + M_{k+1}/M_k <= 1 (the two parts that one chord cuts off). M falls from M_0 to M_min at the
least, so P passes leave f_P / f_0 <= (1 - (M_min / M_0)^(1/P))^P, the worst case being equal steps, and the error in tau
is at most f_P / M_min.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .eager import is_exporting, may_branch
from .kernels.rows import level_rows, project_rows
from .norm import strength, upcast

WEIGHT_RANGE_BITS = 40  # per-entry weights may span this many powers of two before a fixed-pass answer loses digits


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
    fused = project_rows(u, a, b, c, signed=False)
    if fused is not None:
        return Waterline(*fused)
    top = u.detach().amax(-1, keepdim=True)
    top = torch.where(top == -torch.inf, 0, top)
    spoilt = top - top  # 0, but NaN for a row that holds NaN or +inf
    if isinstance(a, Tensor):
        a = strength(a, top) if a.ndim else strength(a, top).expand_as(top)
        if a.shape[-1] != 1:
            top = torch.zeros_like(top)  # a small entry of large weight would lose its digits to the shift
    # Relative to the row's top, b becomes b + c top, and what the largest entry keeps suffers no cancellation.
    w, b = u - top, _right_side(strength(b, top), c, top)
    fixed_a, fixed_c = (q.detach() if isinstance(q, Tensor) else q for q in (a, c))
    tau = _climb(w.detach(), fixed_a, b.detach(), fixed_c)
    above = torch.relu(w - tau)
    # One Newton step from a constant is the closed form on S, identically: so are all its derivatives.
    tau = _step(tau, *_sums(above, indicator(above.detach()), a, c), b, c) + spoilt
    return Waterline(torch.relu(w - tau), tau + top)


def _right_side(b: Tensor, c: float | Tensor, tau: Tensor) -> Tensor:
    """b + c tau, without the term where c is the number 0."""
    return b + c * tau if isinstance(c, Tensor) or c else b


def _step(tau: Tensor, area: Tensor, mass: Tensor, members: Tensor, b: Tensor, c: float | Tensor) -> Tensor:
    """A Newton step; none where nothing stands out, since tau is then the row's top up to rounding."""
    some = members > 0
    return tau + torch.where(some, area - _right_side(b, c, tau), 0) / torch.where(some, mass, 1)


def _climb(w: Tensor, a: float | Tensor, b: Tensor, c: float | Tensor) -> Tensor:
    """Newton's method from the highest level at which some entry would stand alone.

    With one weight for all that entry is the largest, w = 0. With weights of many scales it need not be, and a start far
    below the root would leave nothing of it but rounding.
    """
    per_entry = isinstance(a, Tensor) and a.shape[-1] != 1
    mass = torch.zeros_like(w if per_entry else w[..., :1]) + (a + c)
    alone = a * w - b if per_entry else -b
    tau = (alone / torch.where(mass > 0, mass, 1)).amax(-1, keepdim=True)
    if per_entry:
        tau = torch.where(tau == -torch.inf, 0, tau)  # a row all -inf stands out nowhere
    fused = level_rows(w, a, b, c, tau)
    if fused is not None:
        return fused
    passes = newton_passes(w, WEIGHT_RANGE_BITS if per_entry else 0) - 1  # the closing step of `waterline` is one
    eager, size = may_branch(w), None
    for _ in range(passes):
        area, mass, members = _sums(*_standing_out(w, tau), a, c)
        tau = _step(tau, area, mass, members, b, c)
        if eager:
            if size is not None and torch.equal(members, size):
                break
            size = members
    return tau


def _sums(above: Tensor, support: Tensor, a: float | Tensor, c: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sum a above, sum_S a + c, and |S|: each (..., 1)."""
    members = support.sum(-1, keepdim=True)
    if not isinstance(a, Tensor) and a == 1:
        return above.sum(-1, keepdim=True), members + c, members
    if not isinstance(a, Tensor) or a.shape[-1] == 1:
        return a * above.sum(-1, keepdim=True), a * members + c, members
    return (a * above).sum(-1, keepdim=True), (a * support).sum(-1, keepdim=True) + c, members


def _standing_out(w: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """(w - tau)_+ and its support as numbers, in the form that is fastest: one comparison when compiled, none when eager."""
    if torch.compiler.is_compiling():
        out = w > tau
        return torch.where(out, w - tau, 0), torch.where(out, torch.ones_like(tau), 0)
    above = (w - tau).relu_()
    return above, above.sign()


def indicator(above: Tensor) -> Tensor:
    """1 where above > 0, else 0, for above >= 0."""
    return (above > 0).to(above.dtype) if torch.compiler.is_compiling() else above.sign()


def newton_passes(w: Tensor, weight_bits: int = 0) -> int:
    """Passes after which the error is below rounding, from the bound in the module's docstring, with M_0 / M_min = n."""
    # A range guard on an exported dynamic length would be an error, so export reckons with a million entries.
    row_bits = 20 if is_exporting() else next(k for k in range(64) if w.shape[-1] <= 2**k)
    log_range, goal = (max(row_bits, 1) + weight_bits) * math.log(2), math.log(torch.finfo(w.dtype).eps)
    for passes in range(1, 1000):
        if log_range + passes * math.log1p(-math.exp(-log_range / passes)) <= goal:
            return passes
    raise AssertionError("unreachable: the bound falls with every pass")
