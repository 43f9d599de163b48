"""Nonconvex penalties that tie the entries of a row together: L1MinusL2, GroupMCP, SparseGroupL0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import checks
from ..ops.diagonal import Diagonal
from ..ops.kernels.weights import keep_
from ..ops.nonconvex import by_row, mcp
from ..ops.norm import norm, strength, upcast
from ..ops.project import signed
from ..ops.shrink import group_scale, soft_threshold
from .base import Penalty, nudged_up
from .group import size_weight
from .nonconvex import last_strength, mcp_cost


@dataclass(frozen=True)
class L1MinusL2(Penalty):
    r"""R(v) = ‖v‖_1 - alpha ‖v‖_2: zero only on rows with one entry at alpha = 1, so it prefers few large entries.

    prox, with m = max abs(v):  for m > t  z (1 + alpha t / ‖z‖_2), z = soft(v, t);  for m <= t the largest entry alone (the
    first one of a tie), of size m - (1 - alpha) t;  0 for m <= (1 - alpha) t.
    lam_max: max abs(c) / (1 - alpha); none at alpha = 1.

    Args:
        alpha: in [0, 1]; 0 is L1.

    Source: Lou and Yan, J. Sci. Comput. 2018.

    When not to use: in a homotopy or to empty a row at alpha = 1: no strength zeroes the largest entry.

    >>> import torch, sparselayers as sl
    >>> sl.L1MinusL2(alpha=0.5).prox(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-1.2236,  0.0000,  2.4472])
    """

    alpha: float = 1.0
    convex = False

    def __post_init__(self) -> None:
        checks.number(self.alpha, "alpha", 0.0, 1.0)

    def value(self, v: Tensor) -> Tensor:
        return (upcast(v).abs().sum(-1) - self.alpha * norm(v).squeeze(-1)).to(v.dtype)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        if v.shape[-1] == 0:
            return v.clone()
        rows = upcast(v)
        size, t = rows.abs(), strength(t, rows)
        largest = size.detach().amax(-1, keepdim=True)
        several = ~(largest <= t) & (t != 0)
        soft = soft_threshold(rows, torch.where(several, t, 1))
        length = norm(soft)
        grown = soft * (1 + self.alpha * torch.where(several, t, 0) / torch.where(length == 0, 1, length))
        # t - alpha t would be a NaN at an infinite t.
        left = torch.relu(size - (1 - self.alpha) * t) if self.alpha < 1 else size
        first = torch.arange(v.shape[-1], device=v.device) == size.detach().argmax(-1, keepdim=True)
        alone = signed(torch.where(first, left, 0), rows)
        return torch.where(t == 0, rows, torch.where(several, grown, alone))

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        if self.alpha == 1:
            return super()._lam_max(c, step)
        return nudged_up(upcast(c).abs().amax(-1) / (1 - self.alpha), c.dtype)


@dataclass(frozen=True)
class GroupMCP(Penalty):
    r"""MCP of the Euclidean norm of a row: rows vanish as a whole, and large rows are not shrunk.

    prox: v x / ‖v‖_2 with x the MCP prox of ‖v‖_2.  lam_max: max(m, step m² / gamma), m = ‖c‖_2.

    Args:
        gamma: > 0, the norm from where a row costs no more.

    Source: Zhang, Ann. Stat. 2010; by groups: Breheny and Huang, Stat. Comput. 2015.

    When not to use: where the scale of the rows is unknown: gamma is compared with their norms.

    >>> import torch, sparselayers as sl
    >>> sl.GroupMCP(gamma=3.0).prox(torch.tensor([[3.0, 4.0], [1.2, 1.6], [0.3, 0.4]]), 1.0)
    tensor([[3.0000, 4.0000],
            [0.9000, 1.2000],
            [0.0000, 0.0000]])
    """

    gamma: float = 3.0
    convex = False

    def __post_init__(self) -> None:
        checks.number(self.gamma, "gamma", 0.0, open_low=True)

    def value(self, v: Tensor) -> Tensor:
        return mcp_cost(norm(v), self.gamma).squeeze(-1).to(v.dtype)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        return by_row(v, t, lambda length, t: mcp(length, t, self.gamma))

    def _prox_(self, rows: Tensor, t: float | Tensor, metric: Tensor | Diagonal | None) -> bool:
        return metric is None and keep_(rows, t, self.gamma, None, by_row=True)

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        return nudged_up(last_strength(norm(c).squeeze(-1), step, self.gamma), c.dtype)


@dataclass(frozen=True)
class SparseGroupL0(Penalty):
    r"""R(v) = ratio ‖v‖_0 + (1 - ratio) ‖v‖_2 (sparse group l0asso): rows vanish, and entries inside those that stay.

    prox: for each k the k largest entries have norm n_k and save 1/2 (n_k - t (1 - ratio))_+² - t ratio k; the best k keeps
    them, its row shrunk as a group by t (1 - ratio), or 0 where nothing is saved.
    lam_max: the largest over k of the strengths at which these savings end, a quadratic equation each.

    Args:
        ratio: in [0, 1]; 1 is L0, 0 is GroupL2.
        sqrt_size: multiply the ‖.‖_2 term by sqrt(n).

    Source: the penalty: Bui, Park, Zhang, Qi and Xin, Front. Appl. Math. Stat. 2021. The prox: a scan over the sorted
        row; hard thresholding and then shrinking the group is not it.

    When not to use: to learn lam: the number of entries kept has derivative zero.

    >>> import torch, sparselayers as sl
    >>> sl.SparseGroupL0(ratio=0.5).prox(torch.tensor([[3.0, 4.0, 0.9], [0.3, 0.4, 0.0]]), 1.0)
    tensor([[2.7000, 3.6000, 0.0000],
            [0.0000, 0.0000, 0.0000]])
    """

    ratio: float = 0.5
    sqrt_size: bool = False
    convex = False

    def __post_init__(self) -> None:
        checks.number(self.ratio, "ratio", 0.0, 1.0)

    def _weights(self, v: Tensor) -> tuple[float, float]:
        return self.ratio, (1 - self.ratio) * size_weight(v, self.sqrt_size)

    def value(self, v: Tensor) -> Tensor:
        entry, group = self._weights(v)
        return (entry * upcast(v).sign().abs().sum(-1) + group * norm(v).squeeze(-1)).to(v.dtype)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        if v.shape[-1] == 0:
            return v.clone()
        entry, group = self._weights(v)
        t = strength(t, upcast(v))
        by_entry = entry * t if entry else torch.zeros_like(t)  # 0 times an infinite t is no number
        by_group = group * t if group else torch.zeros_like(t)
        squares, counts, order, unit = largest_first(v)
        lengths, shrinkage = squares.sqrt(), by_group.detach() / unit
        # Where nothing is shrunk a tie between numbers of entries stays one: the squares are exact, their roots are not.
        left = torch.where(shrinkage == 0, squares, torch.relu(lengths - shrinkage).square())
        saved = left / 2 - counts * (by_entry.detach() / unit / unit)
        best, k = saved.max(-1, keepdim=True)
        kept = chosen(order, torch.where(best <= 0, -1, k)) | (t == 0)
        shrunk = group_scale(torch.where(kept, v, 0), by_group)
        return torch.where(best.isnan(), torch.nan, shrunk)

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        """n_k - group t = sqrt(2 entry t k) is a quadratic equation for sqrt(t); the largest of its roots counts."""
        entry, group = self._weights(c)
        step = strength(step, upcast(c)).unsqueeze(-1) if isinstance(step, Tensor) else step
        squares, counts, order, unit = largest_first(c)
        if entry == 0:
            return nudged_up(norm(c).squeeze(-1) / group, c.dtype)

        def ends(lengths: Tensor, counts: Tensor) -> Tensor:
            edge = 2 * entry * counts
            return step * (2 * lengths / (edge.sqrt() + (edge + 4 * group * step * lengths).sqrt())).square()

        k = ends((squares.sqrt() * unit).to(unit.dtype), counts).argmax(-1, keepdim=True)
        kept = chosen(order, k)
        return nudged_up(ends(norm(torch.where(kept, c, 0)), (k + 1).to(unit.dtype)).squeeze(-1), c.dtype)


def largest_first(v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """‖.‖_2² of the k largest entries for every k, k itself, their order, and the unit of the norms, a power of 2.

    In float64 where the device has it: in float32 a small entry's square would drown in the sum.
    """
    size = upcast(v.detach()).abs()
    largest = size.amax(-1, keepdim=True)
    unit = torch.exp2(torch.log2(torch.where(largest == 0, 1, largest)).floor())
    ordered, order = (size / unit).sort(dim=-1, descending=True, stable=True)
    wide = ordered if v.device.type == "mps" else ordered.double()
    counts = torch.arange(1, v.shape[-1] + 1, device=v.device, dtype=wide.dtype)
    return wide.square().cumsum(-1), counts, order, unit


def chosen(order: Tensor, k: Tensor) -> Tensor:
    """True for the entries that stand at the places 0 .. k of the order."""
    places = torch.arange(order.shape[-1], device=order.device) <= k
    return torch.zeros_like(places).scatter(-1, order, places)
