"""GroupExclusive: combined group and exclusive sparsity (CGES), with the exact joint prox."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import checks
from ..ops.norm import norm, strength, upcast
from ..ops.project import compete, signed
from ..ops.root import newton_root
from .base import Penalty, nudged_up
from .group import GroupL2, size_weight


@dataclass(frozen=True)
class GroupExclusive(Penalty):
    r"""R(v) = (1 - mu) ‖v‖_2 + mu 1/2 ‖v‖_1² (CGES): rows vanish, and the entries of those that stay compete.

    prox: 0 if ‖v‖_2 <= t (1 - mu), else x = soft(v, t mu ‖x‖_1) s / (s + t (1 - mu)) with s = ‖x‖_2, both norms being roots of
    one equation each;  in a metric d: soft(d v, t mu ‖x‖_1) s / (d s + t (1 - mu)), and 0 if ‖d v‖_2 <= t (1 - mu).
    lam_max: ‖c‖_2 / (1 - mu); none at mu = 1.

    Args:
        mu: in [0, 1]; 0 is GroupL2, 1 is Exclusive.
        sqrt_size: multiply the ‖.‖_2 term by sqrt(n).

    Source: Yoon and Hwang, ICML 2017 (the penalty). Their step takes the two norms from the old weights and one after the
        other: `F.cges_linearized_step`. This is the exact prox of the sum.

    When not to use: where one kind of sparsity is enough.

    >>> import torch, sparselayers as sl
    >>> sl.GroupExclusive(mu=0.5).prox(torch.tensor([[3.0, 4.0, 0.2], [0.3, 0.3, 0.0]]), 1.0)
    tensor([[1.1680, 1.9899, 0.0000],
            [0.0000, 0.0000, 0.0000]])
    """

    mu: float = 0.5
    sqrt_size: bool = False
    has_metric = True

    def __post_init__(self) -> None:
        checks.number(self.mu, "mu", 0.0, 1.0)

    def _weights(self, v: Tensor) -> tuple[float, float]:
        return (1 - self.mu) * size_weight(v, self.sqrt_size), self.mu

    def value(self, v: Tensor) -> Tensor:
        group, rival = self._weights(v)
        rows = upcast(v)
        length = group * norm(rows).squeeze(-1)
        return (length + rival / 2 * rows.abs().sum(-1).square() if rival else length).to(v.dtype)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        if self.mu == 0:
            return GroupL2(self.sqrt_size)._prox(v, t, metric)
        if self.mu == 1:
            return compete(v, t, metric)
        return shrink_and_compete(v, t, *self._weights(v), metric)

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        if self.mu == 1:
            return super()._lam_max(c, step)
        return nudged_up(norm(c).squeeze(-1) / self._weights(c)[0], c.dtype)


def shrink_and_compete(v: Tensor, t: float | Tensor, group: float, rival: float, metric: Tensor | None) -> Tensor:
    r"""argmin_x  1/2 sum d (x - v)² + g ‖x‖_2 + e/2 ‖x‖_1²,  g = t group, e = t rival, by the root s = ‖x‖_2.

    For a given s the norm acts as a metric: y = x / s = q (b - tau)_+ with q = 1 / (d s + g), b = d abs(v), and
    tau = e ‖x‖_1 is a waterline: tau = max_k e s sum_k q b / (1 + e s sum_k q) over the k largest b. Their order does not
    depend on s, so one sort serves all. Newton runs on 1 / ‖y‖ - 1 from below; it increases with s and is concave on each
    support. Where a step leaves the interval in which the root must lie, that interval is halved.
    """
    if v.shape[-1] == 0:
        return v.clone()
    rows = upcast(v)
    d = torch.ones_like(rows) if metric is None else metric
    t = strength(t, rows).expand(*rows.shape[:-1], 1)
    plain = t == 0
    kept = ~(norm(d * rows) <= group * t)
    solved = kept & ~plain
    # Rows that are not solved get a harmless equation, so that no derivative of theirs is NaN. The others are measured in
    # their largest entry, as squares of 1e-20 leave float32.
    size, t = torch.where(solved, rows, 1).abs(), torch.where(solved, t, 0)
    unit = size.detach().amax(-1, keepdim=True)
    size, g, e = size / unit, group * t / unit, rival * t
    b = d * size
    fixed_b, fixed_d, fixed_g, fixed_e = b.detach(), d.detach(), g.detach(), e.detach()
    order = fixed_b.argsort(-1, descending=True)
    first_b, first_d = fixed_b.gather(-1, order), fixed_d.gather(-1, order)

    def support(s: Tensor) -> Tensor:
        q = 1 / (first_d * s + fixed_g)
        level = (fixed_e * s * (q * first_b).cumsum(-1) / (1 + fixed_e * s * q.cumsum(-1))).amax(-1, keepdim=True)
        return (fixed_b > level) | (first_b[..., :1] == fixed_b)  # where rounding leaves nothing, the largest stands

    def entries(s: Tensor, b: Tensor, d: Tensor, g: Tensor, e: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        """y = x / s on its support, and its derivative in s."""
        q = torch.where(members, 1 / (d * s + g), 0)
        share = 1 + e * s * q.sum(-1, keepdim=True)
        total = (q * b).sum(-1, keepdim=True) / share
        y = q * (b - e * s * total)
        level_slope = e * (total - s * (d * q * y).sum(-1, keepdim=True)) / share
        return y, -q * (d * y + level_slope)

    def equation(b: Tensor, d: Tensor, g: Tensor, e: Tensor, members: Tensor | None = None):
        def value_and_slope(s: Tensor) -> tuple[Tensor, Tensor]:
            y, slope = entries(s, b, d, g, e, support(s) if members is None else members)
            length = norm(y)
            return 1 / length - 1, -((y / length) * (slope / length)).sum(-1, keepdim=True) / length

        return value_and_slope

    most = norm(size.detach())
    steepest = fixed_d.amax(-1, keepdim=True) + fixed_e * v.shape[-1]
    start = ((norm(fixed_b) - fixed_g) / steepest).clamp_min(most * torch.finfo(most.dtype).eps ** 2)
    search = equation(fixed_b, fixed_d, fixed_g, fixed_e)
    s = newton_root(search, search, start, passes=24, most=most)  # 12 are the most seen on rows of many scales
    on_support = equation(b, d, g, e, members := support(s))
    s = newton_root(on_support, on_support, s, passes=0)
    x = signed(unit * (s * entries(s, b, d, g, e, members)[0]), rows)
    return torch.where(plain, rows, torch.where(kept, torch.where(s.isnan(), s, x), 0))
