"""Penalties that tie the entries of a row together: GroupL2, GroupL0, SparseGroup, Exclusive, LInf."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import checks
from ..ops.diagonal import Diagonal
from ..ops.kernels.weights import compete_, keep_, shrink_
from ..ops.norm import norm, strength, upcast
from ..ops.project import clip_l1, compete
from ..ops.root import newton_root
from ..ops.shrink import group_scale, hard_bound, soft_threshold
from .base import Penalty, nudged_up


def size_weight(v: Tensor, sqrt_size: bool) -> float:
    """sqrt(n) or 1, the weight of ‖v‖_2."""
    return v.shape[-1] ** 0.5 if sqrt_size else 1.0


def group_scale_in(v: Tensor, t: float | Tensor, metric: Tensor) -> Tensor:
    r"""argmin_x  1/2 sum d (x - v)² + t ‖x‖_2:  0 if ‖d v‖ <= t, else d v s / (d s + t) with s = ‖x‖ the root of
    ‖d v / (d s + t)‖ = 1.

    Newton runs on 1 / ‖d v / (d s + t)‖ - 1, the power mean of exponent -2 of the s + t / d_i: concave and increasing,
    so Newton climbs to the root from below, and linear for a constant metric, where one step is exact.
    """
    v = upcast(v)
    t = strength(t, v).expand(*v.shape[:-1], 1)
    kept = ~(norm(metric * v) <= t)
    plain = t == 0
    # Rows that are not solved get a harmless equation, so that no derivative of theirs is NaN.
    solved = kept & ~plain
    rows, pull = torch.where(solved, v, 1), torch.where(solved, t, 0) / metric

    def equation(rows: Tensor, pull: Tensor):
        def value_and_slope(s: Tensor) -> tuple[Tensor, Tensor]:
            part = rows / (s + pull)
            length = norm(part)
            return 1 / length - 1, ((part / length).square() / (s + pull)).sum(-1, keepdim=True) / length

        return value_and_slope

    fixed_rows, fixed_pull = rows.detach(), pull.detach()
    alone = (fixed_rows.abs() - fixed_pull).amax(-1, keepdim=True)
    together = norm(fixed_rows) - fixed_pull.amax(-1, keepdim=True)
    start = torch.maximum(alone, together).clamp_min(0)
    s = newton_root(equation(rows, pull), equation(fixed_rows, fixed_pull), start)
    return torch.where(plain, v, torch.where(kept, v * (s / (s + pull)), 0))


@dataclass(frozen=True)
class GroupL2(Penalty):
    r"""The Euclidean norm of a row, R(v) = ‖v‖_2 (group lasso): rows vanish as a whole.

    prox: v (1 - t / ‖v‖)_+;  in a metric d: 0 if ‖d v‖ <= t, else d v s / (d s + t) with ‖d v / (d s + t)‖ = 1.
    lam_max: ‖c‖_2.

    Args:
        sqrt_size: multiply the norm by sqrt(n), as papers do to weigh groups of different size alike.

    Source: Yuan and Lin, J. R. Stat. Soc. B 2006; in a metric: Deleu and Bengio 2021.

    When not to use: for zeros inside the surviving rows (SparseGroup).

    >>> import torch, sparselayers as sl
    >>> sl.GroupL2().prox(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """

    sqrt_size: bool = False
    has_metric = True

    def value(self, v: Tensor) -> Tensor:
        return size_weight(v, self.sqrt_size) * norm(v).squeeze(-1).to(v.dtype)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        t = size_weight(v, self.sqrt_size) * t
        return group_scale(v, t) if metric is None else group_scale_in(v, t, metric)

    def _prox_(self, rows: Tensor, t: float | Tensor, metric: Tensor | Diagonal | None) -> bool:
        return shrink_(rows, 0.0, size_weight(rows, self.sqrt_size) * t, metric)

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        length = norm(c).squeeze(-1).to(c.dtype)
        return nudged_up(length / size_weight(c, self.sqrt_size)) if c.shape[-1] else length


@dataclass(frozen=True)
class GroupL0(Penalty):
    r"""The indicator that a row is not zero: R(v) = 1 if v != 0, else 0.

    prox: v if ‖v‖_2 > sqrt(2 t), else 0 (a tie goes to zero);  in a metric d: v if 1/2 sum d v² > t.
    lam_max: step ‖c‖_2² / 2.

    Source: Blumensath and Davies 2008, by groups.

    When not to use: to learn lam (the prox has derivative zero in t), or far from a good start: nothing shrinks.

    >>> import torch, sparselayers as sl
    >>> sl.GroupL0().prox(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    tensor([[3., 4.],
            [0., 0.]])
    """

    convex = False
    has_metric = True

    def value(self, v: Tensor) -> Tensor:
        return v.sign().abs().amax(-1) if v.shape[-1] else v.sum(-1)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        length = norm(v if metric is None else metric.sqrt() * v).detach()
        t = strength(t, length)
        kept = torch.where((length > hard_bound(t)) | (t == 0), v, 0)
        return torch.where(length.isnan(), length, kept)

    def _prox_(self, rows: Tensor, t: float | Tensor, metric: Tensor | Diagonal | None) -> bool:
        return keep_(rows, t, None, metric, by_row=True)

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        length = norm(c).squeeze(-1)
        return nudged_up(step * length * (length / 2), c.dtype)


@dataclass(frozen=True)
class SparseGroup(Penalty):
    r"""R(v) = ratio ‖v‖_1 + (1 - ratio) ‖v‖_2 (sparse group lasso): rows vanish, and entries inside those that stay.

    prox: the group shrinkage by t (1 - ratio) of soft(v, t ratio), in this order, in any metric.
    lam_max: the root of ‖(abs(c) - ratio lam)_+‖_2 = (1 - ratio) lam.

    Args:
        ratio: in [0, 1]; 1 is L1, 0 is GroupL2.
        sqrt_size: multiply the ‖.‖_2 term by sqrt(n).

    Source: Simon, Friedman, Hastie and Tibshirani, J. Comput. Graph. Stat. 2013.

    When not to use: where one kind of sparsity is enough: it costs both biases.

    >>> import torch, sparselayers as sl
    >>> sl.SparseGroup(ratio=0.5).prox(torch.tensor([[3.0, 4.0, 0.2], [0.3, 0.4, 0.0]]), 1.0)
    tensor([[2.2094, 3.0931, 0.0000],
            [0.0000, 0.0000, 0.0000]])
    """

    ratio: float = 0.5
    sqrt_size: bool = False
    has_metric = True

    def __post_init__(self) -> None:
        checks.number(self.ratio, "ratio", 0.0, 1.0)

    def _weights(self, v: Tensor) -> tuple[float, float]:
        return self.ratio, (1 - self.ratio) * size_weight(v, self.sqrt_size)

    def _strengths(self, v: Tensor, t: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
        """t times each weight; 0 times an infinite t is no number."""
        entry, group = self._weights(v)
        return entry * t if entry else 0.0, group * t if group else 0.0

    def value(self, v: Tensor) -> Tensor:
        entry, group = self._weights(v)
        return entry * v.abs().sum(-1) + group * norm(v).squeeze(-1).to(v.dtype)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        by_entry, by_group = self._strengths(v, t)
        if metric is None:
            return group_scale(soft_threshold(v, by_entry), by_group)
        return group_scale_in(soft_threshold(upcast(v), by_entry / metric), by_group, metric)

    def _prox_(self, rows: Tensor, t: float | Tensor, metric: Tensor | Diagonal | None) -> bool:
        return shrink_(rows, *self._strengths(rows, t), metric)

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        entry, group = self._weights(c)
        if group == 0:
            return c.abs().amax(-1)
        size = upcast(c).abs()

        def equation(size: Tensor):
            def value_and_slope(lam: Tensor) -> tuple[Tensor, Tensor]:
                left = torch.relu(size - entry * lam)
                length = norm(left)
                pull = left.sum(-1, keepdim=True) / torch.where(length == 0, 1, length)
                return length - group * lam, -entry * pull - group

            return value_and_slope

        fixed = size.detach()
        start = fixed.amax(-1, keepdim=True) / (entry + group)  # where the largest entry alone would vanish
        return nudged_up(newton_root(equation(size), equation(fixed), start).squeeze(-1).to(c.dtype))


@dataclass(frozen=True)
class Exclusive(Penalty):
    r"""R(v) = 1/2 ‖v‖_1² (exclusive lasso): the entries of a row compete, none of the rows vanishes.

    prox: sign(v) (abs(v) - tau)_+,  tau = t sum_S abs(v) / (1 + t |S|);  in a metric d the same with d abs(v), t / d.
    lam_max: none.

    Source: Zhou, Jin and Hoi, AISTATS 2010; in a metric: Lin, Yuan, Sun and Toh 2019.

    When not to use: to remove whole rows.

    >>> import torch, sparselayers as sl
    >>> sl.Exclusive().prox(torch.tensor([1.0, 0.8, -0.3]), 0.3)
    tensor([0.6625, 0.4625, 0.0000])
    """

    has_metric = True

    def value(self, v: Tensor) -> Tensor:
        return 0.5 * v.abs().sum(-1).square()

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        return compete(v, t, metric)

    def _prox_(self, rows: Tensor, t: float | Tensor, metric: Tensor | Diagonal | None) -> bool:
        return metric is None and compete_(rows, t)


@dataclass(frozen=True)
class LInf(Penalty):
    r"""The largest size R(v) = max abs(v): the large entries of a row are cut to one level.

    prox: sign(v) min(abs(v), tau), where the part cut off sums to t (Moreau: v minus its projection on the l1 ball of
    radius t);  in a metric d the parts cut off are weighed by d.  lam_max: ‖c‖_1.

    Source: Parikh and Boyd 2014, section 6.5.2.

    When not to use: for zeros in a row: it makes ties instead.

    >>> import torch, sparselayers as sl
    >>> sl.LInf().prox(torch.tensor([3.0, -2.0, 0.5]), 2.0)
    tensor([ 1.5000, -1.5000,  0.5000])
    """

    has_metric = True

    def value(self, v: Tensor) -> Tensor:
        return v.abs().amax(-1) if v.shape[-1] else v.sum(-1)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        cut = v - clip_l1(upcast(v), t, metric)
        return torch.where(strength(t, cut) == 0, v, cut)

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        return nudged_up(c.abs().sum(-1))
