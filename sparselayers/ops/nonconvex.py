"""Closed forms of the nonconvex shrinkages, exact for every strength: MCP, SCAD, l1/2, transformed l1, log-sum.

Each takes sizes a >= 0 and strengths t > 0 and gives argmin_x>=0 1/2 (x - a)² + t phi(x), the global one, zero where 0 is
as good. What is kept is decided on constants; entries that are not kept, and branches not taken, are replaced by a
harmless point (a = 1, t = 0) before the formula, so that no derivative of theirs is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .norm import norm, strength, upcast
from .project import signed
from .root import newton_root

Shrinkage = Callable[[Tensor, Tensor], Tensor]


def by_entry(v: Tensor, t: float | Tensor, shrink: Shrinkage) -> Tensor:
    """`shrink` applied to the sizes of the entries, signs kept; the identity where t is 0."""
    size = upcast(v).abs()
    t = strength(t, size)
    plain = t == 0
    return torch.where(plain, v, signed(shrink(size, torch.where(plain, 1, t)), v).to(v.dtype))


def by_row(v: Tensor, t: float | Tensor, shrink: Shrinkage) -> Tensor:
    """`shrink` applied to the Euclidean norm of each row, directions kept; the identity where t is 0."""
    length = norm(v)
    t = strength(t, length)
    plain = t == 0
    ratio = shrink(length, torch.where(plain, 1, t)) / torch.where(length == 0, 1, length)
    return torch.where(plain, v, (v * ratio).to(v.dtype))


def mcp(a: Tensor, t: Tensor, gamma: float) -> Tensor:
    r"""phi(x) = x - x² / (2 gamma) up to gamma, then gamma / 2.

    t < gamma:   0 up to t, (a - t) / (1 - t / gamma) up to gamma, then a (the firm threshold).
    t >= gamma:  phi beats the square, nothing between is a minimum: a where a > sqrt(gamma t), else 0.

    Source: Zhang, Ann. Stat. 2010, for t < gamma.
    """
    jumps = t >= gamma
    kept = ~(a <= torch.where(jumps, root_of_product(gamma, t), t))
    between = kept & ~jumps & (a < gamma)
    a_in, t_in = harmless(between, a, t)
    return torch.where(between, (a_in - t_in) / (1 - t_in / gamma), torch.where(kept, a, 0))


def scad(a: Tensor, t: Tensor, bend: float) -> Tensor:
    r"""phi'(x) = 1 up to 1, (bend - x) / (bend - 1) up to bend, then 0.

    t < bend - 1:  (a - t)_+ up to 1 + t, then ((bend - 1) a - bend t) / (bend - 1 - t) up to bend, then a.
    t >= bend - 1: (a - t)_+ up to (bend + 1 + t) / 2, where keeping a whole costs the same, then a; from t = bend + 1 on
        (a - t)_+ is 0 all the way, and a is kept above sqrt((bend + 1) t).

    Source: Fan and Li, J. Am. Stat. Assoc. 2001, for t < bend - 1; beyond it the best of the stationary points.
    """
    jumps = t >= bend - 1
    last = torch.where(t < bend + 1, (bend + 1 + t) / 2, root_of_product(bend + 1, t))
    whole = ~(a <= torch.where(jumps, last, bend))
    between = ~whole & ~jumps & (a > 1 + t)
    a_in, t_in = harmless(between, a, t)
    bent = ((bend - 1) * a_in - bend * t_in) / (bend - 1 - t_in)
    above = ~whole & (a > t)
    a_soft, t_soft = harmless(above, a, t)
    soft = torch.where(above, a_soft - t_soft, 0)
    return torch.where(whole, a, torch.where(between, bent, soft))


def l_half(a: Tensor, t: Tensor) -> Tensor:
    r"""phi(x) = sqrt(x):  0 up to 3/2 t^(2/3), then  2/3 a (1 + cos(2/3 (pi - acos r))),  r = 3/4 (t / a) sqrt(3 / a).

    Source: Xu, Chang, Xu and Zhang, IEEE Trans. Neural Netw. Learn. Syst. 2012.
    """
    rounding = 4 * torch.finfo(a.dtype).eps  # a tie goes to zero
    part = (2 / 3) * a  # t^(2/3) would lose digits far from 1
    kept = ~(part * part.sqrt() <= (1 + rounding) * t)
    a_in, t_in = harmless(kept, a, t)
    r = 0.75 * (t_in / a_in) * (3 / a_in).sqrt()
    return torch.where(kept, (2 / 3) * a_in * (1 + torch.cos((2 / 3) * (math.pi - torch.acos(r)))), 0)


def transformed_l1(a: Tensor, t: Tensor, shape: float) -> Tensor:
    r"""phi(x) = (shape + 1) x / (shape + x), with s for shape:

    0 up to t (s + 1) / s where t <= s² / (2 (s + 1)), else up to sqrt(2 t (s + 1)) - s/2;  above it
    a - 4/3 w sin²(asin(sqrt q) / 3),  w = s + a,  q = 27/4 t s (s + 1) / w³.

    The form with sin² keeps its digits where a is far below s. Newton on the stationary equation carries the derivatives:
    those of the arcsine are singular at t = 0.

    Source: Zhang and Xin, Commun. Math. Sci. 2017.
    """
    smooth = t <= shape**2 / (2 * (shape + 1))
    bound = torch.where(smooth, t * ((shape + 1) / shape), root_of_product(2 * (shape + 1), t) - shape / 2)
    kept = ~(a <= bound)
    a_in, t_in = harmless(kept, a, t)
    w = shape + a_in.detach()
    q = 6.75 * t_in.detach() * (shape / w) * ((shape + 1) / w) / w
    start = torch.relu(a_in.detach() - (4 / 3) * w * torch.sin(torch.asin(q.clamp(max=1).sqrt()) / 3).square())

    def equation(x: Tensor) -> tuple[Tensor, Tensor]:
        pull = t_in * (shape / (shape + x)) * ((shape + 1) / (shape + x))
        return x - a_in + pull, 1 - 2 * pull / (shape + x)

    return torch.where(kept, newton_root(equation, equation, start, passes=0), 0)


def log_sum(a: Tensor, t: Tensor, eps: float) -> Tensor:
    r"""phi(x) = log(1 + x / eps):  the larger root of (x - a)(x + eps) + t = 0, where it beats 0.

    t <= eps²: the problem is convex, and 0 wins up to a = t / eps. t > eps²: both are minima, and their costs are compared.

    Source: Candes, Wakin and Boyd 2008 (the penalty); Prater-Bennette, Shen and Tripp 2022 (the prox).
    """
    x = larger_root(a.detach(), t.detach(), eps)
    gain = x * (1 - x / (2 * a.detach())) > (t.detach() / a.detach()) * torch.log1p(x / eps)
    exists = ((a + eps) > 2 * t.sqrt()) & (a > eps)
    kept = torch.where(t <= eps**2, ~(a <= t / eps), exists & gain) | a.isnan() | t.isnan()
    return torch.where(kept, larger_root(*harmless(kept, a, t), eps), 0)


def larger_root(a: Tensor, t: Tensor, eps: float) -> Tensor:
    """Of (x - a)(x + eps) + t = 0; in the form without cancellation on either side of a = eps."""
    w = a + eps
    spread = w * (1 - 4 * (t / w) / w).clamp_min(torch.finfo(a.dtype).tiny).sqrt()
    below = a < eps
    small = 2 * (torch.where(below, a, 0) * eps - t) / torch.where(below, eps - a + spread, 1)
    return torch.where(below, small, (a - eps + spread) / 2)


def root_of_product(factor: float, t: Tensor) -> Tensor:
    """sqrt(factor t) for a t that is not tiny, scaled by powers of two, so that a t near the end of the range stays finite."""
    return (factor * (t * 2.0**-40)).sqrt() * 2.0**20


def harmless(taken: Tensor, a: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(a, t) where the branch is taken, (1, 0) elsewhere."""
    return torch.where(taken, a, 1), torch.where(taken, t, 0)
