r"""Entmax with any alpha in [1, 4] on rows: p_i = [1 + a (z_i - tau)]_+^(1/a) with a = alpha - 1 and a row sum of 1.

Two ways to the root, each Newton's method on a convex function whose slope ranges over a factor n at most, so that the
pass bound of the waterline holds for both.

a <= 1: in tau, on ‖x_+‖_{1/a} with x = 1 + a (z - tau): a norm of order >= 1, hence convex, and it falls in tau. As
    a -> 0 it becomes exp(a (logsumexp(z) - tau)), and one pass finds the root.
a >= 1: in tau the pieces are concave, with infinite slope at the edge. In the smallest positive probability s, at the
    score z_s, they are p_i = (s^a + a (z_i - z_s))^(1/a): a norm of order a >= 1 of the pair (s, rest), so their sum is
    convex and rises with a slope between 1 and n. Nothing cancels in this form, and the edge is right to the last bit
    where 1 + a (z - tau) would leave a cube root of rounding. Which score is z_s is found by binary search.

The derivatives of first and second order come from constants on the support, see `_carry`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .eager import may_branch
from .search import last_where
from .waterline import newton_passes


def entmax_rows(z: Tensor, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
    """(p, tau) for rows z (..., n), n >= 1, of at least 32 bits; alpha a number in [1, 4] or a tensor (..., 1) or 0-d.

    A tensor is clamped to [1, 4]. An empty row (all -inf) is 0 with some finite tau; NaN or +inf spoils its row.
    """
    # alpha - 1 is exact in alpha's own precision, and keeps its digits in that of z.
    a = (alpha.clamp(1, 4) - 1).to(z) if isinstance(alpha, Tensor) else z.new_full((), alpha - 1)
    fixed_z, fixed_a = z.detach(), a.detach()
    top = fixed_z.amax(-1, keepdim=True)
    top = torch.where(top == -torch.inf, 0, top)
    learned = isinstance(alpha, Tensor)
    gentle, steep = _sides(alpha, fixed_z)
    p = _solve(fixed_z, top, fixed_a, gentle, steep)
    total = p.sum(-1, keepdim=True)
    p = p / torch.where(total == 0, 1, total)
    p = p + (top - top + 0 * fixed_a)  # NaN for a row that holds NaN or +inf
    largest = p.amax(-1, keepdim=True)
    tau = top - _tsallis_log(torch.where(largest == 0, 1, largest).log(), fixed_a)
    change, shift = _carry(p, z, a, learned, steep)
    return p + change, tau + shift


def _sides(alpha: float | Tensor, z: Tensor) -> tuple[bool, bool]:
    """May some row have alpha <= 2, and may some row have alpha > 2?"""
    if not isinstance(alpha, Tensor):
        return alpha <= 2, alpha > 2
    if may_branch(alpha) and may_branch(z):
        return not bool((alpha > 2).all()), bool((alpha > 2).any())
    return True, True


def _solve(z: Tensor, top: Tensor, a: Tensor, gentle: bool, steep: bool) -> Tensor:
    """The probabilities as constants, from one way to the root or row by row from either."""
    if not steep:
        return _gentle(z - top, a)
    if not gentle:
        return _steep(z, a)
    return torch.where(a > 1, _steep(z, a.clamp(min=1)), _gentle(z - top, a.clamp(max=1)))


def _gentle(w: Tensor, a: Tensor) -> Tensor:
    """a <= 1, for rows whose largest score is 0: Newton in tau from 0, where the largest probability alone is 1."""
    softmax = a < torch.finfo(a.dtype).eps ** 2  # what follows would divide by it; the limit is right to the last bit
    divisor = torch.where(softmax, 1, a)

    def probabilities(tau: Tensor) -> tuple[Tensor, Tensor]:
        u = w - tau
        x = 1 + a * u
        log_p = torch.where(softmax, u, torch.log1p((a * u).clamp(min=-1)) / divisor)
        return log_p.exp(), x

    tau = torch.zeros_like(w[..., :1] * a)
    eager, rounding = may_branch(w), 4 * torch.finfo(w.dtype).eps
    for _ in range(newton_passes(w)):
        p, x = probabilities(tau)
        total = p.sum(-1, keepdim=True)
        slope = torch.where(p > 0, p / torch.where(softmax, 1, x), 0).sum(-1, keepdim=True)
        some = slope > 0
        total, slope = torch.where(some, total, 1), torch.where(some, slope, 1)
        tau = tau + (_tsallis_log(total.log(), a) * total ** (1 - a) / slope).clamp(min=0)
        if eager and not bool((total - 1 > rounding * (1 + tau)).any()):
            break
    # tau has the rounding of the scores. What the sum lacks goes to each entry as a change of tau would give it: shared
    # out in proportion instead, all of it would fall on the largest.
    p, x = probabilities(tau)
    slope = torch.where(p > 0, p / torch.where(softmax, 1, x), 0)
    lack = (1 - p.sum(-1, keepdim=True)) / _nonzero(slope.sum(-1, keepdim=True))
    return torch.where(p > 0, (p + lack * slope).clamp(min=0), p)


def _steep(z: Tensor, a: Tensor) -> Tensor:
    """a >= 1: find the smallest score of the support, then Newton on its probability from above.

    Scores enter by their differences only, which are exact where it matters, among those near the edge.
    """

    def rises(level: Tensor) -> Tensor:
        return (a * (z - level)).clamp(min=0)  # p^a, if the edge of the support were at this level

    ordered = z.sort(-1, descending=True).values
    last = last_where(lambda level: (rises(level) ** (1 / a)).sum(-1, keepdim=True) < 1, ordered)
    level = ordered.gather(-1, last)
    inside = (z >= level) & (z > -torch.inf)
    rise = torch.where(inside, rises(level), 0)
    members = inside.sum(-1, keepdim=True).to(z.dtype)
    s = 1 / members.clamp(min=1).expand_as(z[..., :1] * a)
    eager, rounding = may_branch(z), 4 * torch.finfo(z.dtype).eps
    for _ in range(newton_passes(z)):
        p = (s**a + rise) ** (1 / a)
        excess = torch.where(inside, p, 0).sum(-1, keepdim=True) - 1
        slope = torch.where(inside & (p > 0), (s / torch.where(p > 0, p, 1)) ** (a - 1), 0).sum(-1, keepdim=True)
        s = (s - (excess / slope.clamp(min=1)).clamp(min=0)).clamp(min=0)
        if eager and not bool((excess > rounding).any()):
            break
    return torch.where(inside, (s**a + rise) ** (1 / a), 0)


def _carry(p: Tensor, z: Tensor, a: Tensor, learned: bool, steep: bool) -> tuple[Tensor, Tensor]:
    r"""Zeros whose first and second derivatives in (z, a) are those of p and of tau.

    On the support, (p^a - 1)/a = z - tau. At the solution p, a constant here, that is expanded to second order in
    e_i = dz_i - d[(p_i^a - 1)/a] and in d tau, which keeps the sum:  dp = g (e - d tau) + 1/2 h (e - d tau)²  with
    g = p^(1-a) and h = (1 - a) p^(1-2a). All that is large or singular is a constant, so nothing becomes NaN.
    """
    support, fixed_a = p > 0, a.detach()
    log_p = torch.where(support, torch.maximum(p, _least(p, fixed_a)) if steep else p, 1).log()
    slope = torch.where(support, ((1 - fixed_a) * log_p).exp(), 0)
    curvature = torch.where(support, (1 - fixed_a) * ((1 - 2 * fixed_a) * log_p).clamp(max=_most(p)).exp(), 0)
    inside = torch.where(support, z, 0)
    e = inside - inside.detach()
    mass = _nonzero(slope.sum(-1, keepdim=True))
    g = slope
    if learned:
        da = a - fixed_a
        first, second = _moments(fixed_a * log_p)
        e = e - log_p.square() * first * da - log_p**3 * second / 2 * da.square()
        g = slope - slope * log_p * da
    shift = (slope * e).sum(-1, keepdim=True) / mass
    bend = curvature / 2 * (e - shift).square()
    shift = ((g * e).sum(-1, keepdim=True) + bend.sum(-1, keepdim=True)) / _nonzero(g.sum(-1, keepdim=True))
    return g * (e - shift) + bend, shift


def _least(p: Tensor, a: Tensor) -> Tensor:
    """The probability below which derivatives treat an entry as if it had this one; 0 unless a > 1.

    One entry at the very edge has g without bound and g_i / sum g within rounding of 1: the difference from 1, which is
    what its derivative consists of, would be noise times g. At sqrt(eps) of the next g both errors are small.
    """
    smallest = torch.where(p > 0, p, 1).amin(-1, keepdim=True)
    alone = (p == smallest).sum(-1, keepdim=True) == 1
    second = torch.where((p > 0) & ((p > smallest) | ~alone), p, 1).amin(-1, keepdim=True)
    steepness = torch.where(a > 1, a - 1, 1)
    least = second * torch.exp(math.log(torch.finfo(p.dtype).eps) / 2 / steepness)
    return torch.where(a > 1, least.maximum(torch.exp(-_most(p) / (2 * steepness + 1))), 0)


def _most(p: Tensor) -> float:
    """The logarithm of the largest curvature that is worked with, some way from overflow."""
    return 0.9 * math.log(torch.finfo(p.dtype).max)


def _nonzero(mass: Tensor) -> Tensor:
    return torch.where(mass == 0, 1, mass)


def _tsallis_log(log_p: Tensor, a: Tensor) -> Tensor:
    """(p^a - 1) / a, which is log p at a = 0."""
    softmax = a < torch.finfo(a.dtype).eps ** 2
    return torch.where(softmax, log_p, torch.expm1(a * log_p) / torch.where(softmax, 1, a))


def _moments(t: Tensor) -> tuple[Tensor, Tensor]:
    r"""The integrals of s e^{ts} and of s² e^{ts} over [0, 1], for t <= 0: the derivatives of (e^t - 1) / t.

    Near 0 by the series  sum_k t^k / (k! (k + 3))  of the second, from which the first follows without cancellation.
    """
    near = t.abs() < 0.5
    small, large = torch.where(near, t, 0), torch.where(near, -1, t)
    second = torch.zeros_like(t)
    for k in range(14, -1, -1):
        second = second * small + 1 / (math.factorial(k) * (k + 3))
    first = (small.exp() - small * second) / 2
    exp = large.exp()
    first_far = (exp - torch.expm1(large) / large) / large
    second_far = (exp - 2 * first_far) / large
    return torch.where(near, first, first_far), torch.where(near, second, second_far)
