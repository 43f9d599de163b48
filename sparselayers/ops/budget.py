"""The capped simplex on rows: entries between 0 and 1 that share a budget."""

from __future__ import annotations

import torch
from torch import Tensor

from .search import last_where


def budget_rows(v: Tensor, k: Tensor) -> Tensor:
    r"""clip(v - tau, 0, 1) with tau such that the row sums to k; rows v (..., n), n >= 1, k (..., 1) or 0-d.

    The sum falls in tau along straight pieces between the 2 n breakpoints v_i and v_i - 1, neither convex nor concave, so
    that Newton's method may cycle. Binary search over the sorted breakpoints finds the piece, whatever the row is. On it
    S = {0 < x < 1} and U = {x = 1} are constant:  tau = (sum_S v + |U| - k) / |S|, which carries every derivative.
    k is clamped to [0, the number of entries above -inf].
    """
    fixed = v.detach()
    top = fixed.amax(-1, keepdim=True)
    top = torch.where(top == -torch.inf, 0, top)
    spoilt = top - top  # 0, but NaN for a row that holds NaN or +inf
    present = fixed > -torch.inf
    k = k.clamp(min=0).minimum(present.sum(-1, keepdim=True).to(v.dtype))
    enough = k.detach()

    knots = torch.where(present, fixed, top)
    points = torch.cat([knots, knots - 1], -1).sort(-1).values
    place = last_where(lambda tau: _excess(fixed - tau, enough)[0] >= 0, points)
    low = points.gather(-1, place)
    high = points.gather(-1, (place + 1).clamp(max=points.shape[-1] - 1))

    # Who is inside is asked at the middle of the piece, where v - 1 being rounded cannot make a difference.
    w, half = fixed - low, (high - low) / 2
    excess, count = _excess(w - half, enough)
    level = (half + excess / count.clamp(min=1)).clamp(min=0).minimum(high - low)
    for _ in range(2):  # the piece itself is known up to rounding: Newton from there
        excess, count = _excess(w - level, enough)
        level = level + excess / count.clamp(min=1)
    x = (w - level).clamp(0, 1)

    # Zeros that carry the derivatives of the closed form on S.
    free = (x > 0) & (x < 1)
    inside = torch.where(free, v, 0)
    change = inside - inside.detach()
    shift = (change.sum(-1, keepdim=True) - (k - enough)) / free.sum(-1, keepdim=True).clamp(min=1)
    return x + torch.where(free, change - shift, 0) + spoilt


def _excess(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """sum clip(x, 0, 1) - k and |S|, with the ones counted, since a sum that holds them all would round the rest away."""
    free = (x > 0) & (x < 1)
    ones = (x >= 1).sum(-1, keepdim=True)
    return (ones - k) + torch.where(free, x, 0).sum(-1, keepdim=True), free.sum(-1, keepdim=True)
