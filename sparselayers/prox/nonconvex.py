"""Nonconvex penalties that are sums over entries: LHalf, TransformedL1, LogSum, MCP, SCAD."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import checks
from ..ops.diagonal import Diagonal
from ..ops.kernels.weights import keep_
from ..ops.nonconvex import by_entry, l_half, larger_root, log_sum, mcp, scad, transformed_l1
from ..ops.norm import upcast
from ..ops.root import newton_root
from .base import Penalty, nudged_up
from .separable import in_metric


def total(each: Tensor, v: Tensor) -> Tensor:
    """The sum over a row of what each entry costs, in the dtype of v."""
    return each.sum(-1).to(v.dtype)


@dataclass(frozen=True)
class LHalf(Penalty):
    r"""R(v) = sum sqrt(abs(v)): nearer to counting than L1, and large entries are hardly shrunk.

    prox: 0 up to abs(v) = 3/2 t^(2/3), then a cosine formula (the root of a cubic in sqrt(abs(x)));  t / d for t in a metric d.
    lam_max: sqrt(step) (2/3 max abs(c))^(3/2).

    Source: Xu, Chang, Xu and Zhang, IEEE Trans. Neural Netw. Learn. Syst. 2012.

    When not to use: as a term of a loss: its slope at 0 is infinite (`value` has derivative 0 there).

    >>> import torch, sparselayers as sl
    >>> sl.LHalf().prox(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-1.6054,  0.0000,  2.6955])
    """

    convex = False
    separable = True
    has_metric = True

    def value(self, v: Tensor) -> Tensor:
        size = upcast(v).abs()
        zero = size == 0
        return total(torch.where(zero, 0, torch.where(zero, 1, size).sqrt()), v)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        return by_entry(v, in_metric(t, metric), l_half)

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        largest = upcast(c).abs().amax(-1)
        zero = largest == 0
        root = torch.where(zero, 1, largest).sqrt()
        lam = step**0.5 * (2 / 3) ** 1.5 * torch.where(zero, 0, largest * root)
        return nudged_up(lam, c.dtype)


@dataclass(frozen=True)
class TransformedL1(Penalty):
    r"""R(v) = sum (a + 1) abs(v) / (a + abs(v)): between counting (a -> 0) and L1 (a -> inf).

    prox: 0 up to abs(v) = t (a + 1) / a for t <= a² / (2 (a + 1)), up to sqrt(2 t (a + 1)) - a/2 beyond, then the root of a
    cubic in closed form;  t / d for t in a metric d.
    lam_max: with b = step max abs(c):  b a / (a + 1) / step  for b <= a/2, else (b + a/2)² / (2 (a + 1)) / step.

    Args:
        a: > 0.

    Source: Zhang and Xin, Commun. Math. Sci. 2017.

    When not to use: where the scale of v is unknown: a is compared with abs(v).

    >>> import torch, sparselayers as sl
    >>> sl.TransformedL1(a=1.0).prox(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-1.7321,  0.0000,  2.8662])
    """

    a: float = 1.0
    convex = False
    separable = True
    has_metric = True

    def __post_init__(self) -> None:
        checks.number(self.a, "a", 0.0, open_low=True)

    def value(self, v: Tensor) -> Tensor:
        size = upcast(v).abs()
        return total((self.a + 1) * (size / (self.a + size)), v)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        return by_entry(v, in_metric(t, metric), lambda size, t: transformed_l1(size, t, self.a))

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        a, largest = self.a, upcast(c).abs().amax(-1)
        smooth = step * largest <= a / 2
        jump = (step * largest + a / 2) / step * ((step * largest + a / 2) / (2 * (a + 1)))
        return nudged_up(torch.where(smooth, largest * (a / (a + 1)), jump), c.dtype)


@dataclass(frozen=True)
class LogSum(Penalty):
    r"""R(v) = sum log(1 + abs(v) / eps): what reweighted L1 minimises.

    prox: the larger root of (x - abs(v)) (x + eps) + t = 0 where it costs less than 0, with the sign of v; t / d for t in a
    metric d.  lam_max: eps max abs(c) where step max abs(c) <= eps, else the root of an equation (both cost the same).

    Args:
        eps: > 0, the size below which an entry counts as small.

    Source: Candes, Wakin and Boyd, J. Fourier Anal. Appl. 2008; Prater-Bennette, Shen and Tripp 2022.

    When not to use: where the scale of v is unknown: eps is compared with abs(v).

    >>> import torch, sparselayers as sl
    >>> sl.LogSum(eps=1.0).prox(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-1.6180,  0.0000,  2.7321])
    """

    eps: float = 1.0
    convex = False
    separable = True
    has_metric = True

    def __post_init__(self) -> None:
        checks.number(self.eps, "eps", 0.0, open_low=True)

    def value(self, v: Tensor) -> Tensor:
        return total(torch.log1p(upcast(v).abs() / self.eps), v)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        return by_entry(v, in_metric(t, metric), lambda size, t: log_sum(size, t, self.eps))

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        """With a = step c / eps, t = u a eps²: the u where max_x x (1 - x / (2 a)) - u log(1 + x) is 0, from below."""
        largest = upcast(c).abs().amax(-1)
        a = step * largest / self.eps
        smooth = a <= 1
        a = torch.where(smooth, 2, a)

        def equation(a: Tensor):
            def value_and_slope(u: Tensor) -> tuple[Tensor, Tensor]:
                x = larger_root(a, u * a, 1.0)
                cost = torch.log1p(x)
                return x * (1 - x / (2 * a)) - u * cost, -cost

            return value_and_slope

        fixed = a.detach()
        start = torch.maximum(torch.ones_like(fixed), fixed / (2 * torch.log1p(fixed)))
        u = newton_root(
            equation(a), equation(fixed), start, passes=10
        )  # 5 are the most seen, over all float32 ratios c / eps
        return nudged_up(torch.where(smooth, 1, u) * (self.eps * largest), c.dtype)


@dataclass(frozen=True)
class MCP(Penalty):
    r"""The minimax concave penalty at unit lambda, summed: abs(v) - v² / (2 gamma) up to abs(v) = gamma, then gamma / 2.

    prox: for t < gamma  0 up to abs(v) = t, then soft(v, t) / (1 - t / gamma), and v from abs(v) = gamma on; for t >= gamma
    v where abs(v) > sqrt(gamma t), else 0. In a metric d: t / d for t.  lam_max: max(m, step m² / gamma), m = max abs(c).

    t R is not the textbook's penalty at lambda = t: there the bend is at gamma lambda, here it stays at gamma. The textbook's
    at (lambda, g) is lambda R with gamma = g lambda.

    Args:
        gamma: > 0, from where an entry costs no more.

    Source: Zhang, Ann. Stat. 2010.

    When not to use: where the scale of v is unknown: gamma is compared with abs(v).

    >>> import torch, sparselayers as sl
    >>> sl.MCP(gamma=3.0).prox(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-1.5000,  0.0000,  3.0000])
    """

    gamma: float = 3.0
    convex = False
    separable = True
    has_metric = True

    def __post_init__(self) -> None:
        checks.number(self.gamma, "gamma", 0.0, open_low=True)

    def value(self, v: Tensor) -> Tensor:
        return total(mcp_cost(upcast(v).abs(), self.gamma), v)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        return by_entry(v, in_metric(t, metric), lambda size, t: mcp(size, t, self.gamma))

    def _prox_(self, rows: Tensor, t: float | Tensor, metric: Tensor | Diagonal | None) -> bool:
        return keep_(rows, t, self.gamma, metric, by_row=False)

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        return nudged_up(last_strength(upcast(c).abs().amax(-1), step, self.gamma), c.dtype)


@dataclass(frozen=True)
class SCAD(Penalty):
    r"""The smoothly clipped absolute deviation at unit lambda, summed: its slope is 1 up to abs(v) = 1 and falls to 0 at a.

    R'(x) = 1 up to 1, (a - x) / (a - 1) up to a, then 0.
    prox: for t < a - 1  soft(v, t) up to abs(v) = 1 + t, then ((a - 1) abs(v) - a t) / (a - 1 - t) up to a, then v; past it
    soft(v, t) or v, whichever costs less. In a metric d: t / d for t.  lam_max: max(m, step m² / (a + 1)), m = max abs(c).

    t R is not the textbook's penalty at lambda = t: there the bends are at lambda and a lambda, here they stay at 1 and a.

    Args:
        a: > 1, from where an entry costs no more.

    Source: Fan and Li, J. Am. Stat. Assoc. 2001; for large t the best of the stationary points.

    When not to use: where the scale of v is unknown: 1 and a are compared with abs(v).

    >>> import torch, sparselayers as sl
    >>> sl.SCAD(a=3.7).prox(torch.tensor([-1.5, 0.5, 3.0, 4.0]), 1.0)
    tensor([-0.5000,  0.0000,  2.5882,  4.0000])
    """

    a: float = 3.7
    convex = False
    separable = True
    has_metric = True

    def __post_init__(self) -> None:
        checks.number(self.a, "a", 1.0, open_low=True)

    def value(self, v: Tensor) -> Tensor:
        size = upcast(v).abs().clamp(max=self.a)
        past = torch.relu(size - 1)
        return total(size.clamp(max=1) + past * (1 - past / (2 * (self.a - 1))), v)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        return by_entry(v, in_metric(t, metric), lambda size, t: scad(size, t, self.a))

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        return nudged_up(last_strength(upcast(c).abs().amax(-1), step, self.a + 1), c.dtype)


def mcp_cost(size: Tensor, gamma: float) -> Tensor:
    """MCP of sizes >= 0."""
    size = size.clamp(max=gamma)
    return size * (1 - size / (2 * gamma))


def last_strength(size: Tensor, step: float | Tensor, bound: float) -> Tensor:
    """The least lam at which a size step * `size` vanishes, where t does it up to `bound` and sqrt(bound t) beyond."""
    return torch.maximum(size, step * size * (size / bound))
