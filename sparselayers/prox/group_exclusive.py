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
    tensor([[0.9592, 1.8450, 0.0000],
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
        return (group * norm(rows).squeeze(-1) + rival / 2 * rows.abs().sum(-1).square()).to(v.dtype)

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

    For a given s the norm acts as a metric: x_i = (b_i - tau)_+ / (d_i + g/s), b = d abs(v), with tau = e ‖x‖_1 the
    waterline of weights w = 1 / (d + g/s): tau = max_k e sum_k w b / (1 + e sum_k w) over the k largest b. Their order does not
    depend on s, so one sort serves all. Newton runs on 1 / ‖x/s‖ - 1, which increases with s and is concave on each support,
    from below; where it leaves the interval in which the root must lie, that interval is halved.
    """
    if v.shape[-1] == 0:
        return v.clone()
    rows = upcast(v)
    d = torch.ones_like(rows) if metric is None else metric
    t = strength(t, rows).expand(*rows.shape[:-1], 1)
    plain = t == 0
    kept = ~(norm(d * rows) <= group * t)
    solved = kept & ~plain
    # Rows that are not solved get a harmless equation, so that no derivative of theirs is NaN.
    size, t = torch.where(solved, rows, 1).abs(), torch.where(solved, t, 0)
    b = d * size
    fixed_b, fixed_d, fixed_t = b.detach(), d.detach(), t.detach()
    order = fixed_b.argsort(-1, descending=True)
    first_b, first_d = fixed_b.gather(-1, order), fixed_d.gather(-1, order)

    def support(s: Tensor) -> Tensor:
        w = 1 / (first_d + group * fixed_t / s)
        e = rival * fixed_t
        level = (e * (w * first_b).cumsum(-1) / (1 + e * w.cumsum(-1))).amax(-1, keepdim=True)
        return (fixed_b > level) | (first_b[..., :1] == fixed_b)  # where rounding leaves nothing, the largest stands

    def entries(s: Tensor, b: Tensor, d: Tensor, t: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        """x on its support, and its derivative in s."""
        w = torch.where(members, 1 / (d + group * t / s), 0)
        rate = rival * t / (1 + rival * t * w.sum(-1, keepdim=True))
        x = w * (b - rate * (w * b).sum(-1, keepdim=True))
        at_one_level = group * t / s * (w / s) * x
        return x, at_one_level - w * rate * at_one_level.sum(-1, keepdim=True)

    def equation(b: Tensor, d: Tensor, t: Tensor, members: Tensor | None = None):
        def value_and_slope(s: Tensor) -> tuple[Tensor, Tensor]:
            x, slope = entries(s, b, d, t, support(s) if members is None else members)
            length = norm(x)
            return s / length - 1, (1 - s * ((x / length) * (slope / length)).sum(-1, keepdim=True)) / length

        return value_and_slope

    most = norm(size.detach())
    steepest = fixed_d.amax(-1, keepdim=True) + rival * fixed_t * v.shape[-1]
    start = ((norm(fixed_b) - group * fixed_t) / steepest).clamp_min(most * torch.finfo(most.dtype).eps ** 2)
    search = equation(fixed_b, fixed_d, fixed_t)
    s = newton_root(search, search, start, most=most)
    on_support = equation(b, d, t, members := support(s))
    s = newton_root(on_support, on_support, s, passes=0)
    x = signed(entries(s, b, d, t, members)[0], rows)
    return torch.where(plain, rows, torch.where(kept, torch.where(s.isnan(), s, x), 0))
