"""Indicators of convex sets: Simplex, L1Ball, Box, Nonnegative. The prox is the projection, whatever t is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import checks
from ..ops.norm import strength, upcast
from ..ops.project import clip_l1, project_simplex, signed
from ..ops.waterline import waterline
from .base import Penalty
from .separable import nearly_nonnegative


def zero_inside(v: Tensor, inside: Tensor) -> Tensor:
    """0 with derivative 0 where `inside`, inf elsewhere."""
    return torch.where(inside, (0 * v).sum(-1), torch.inf)


@dataclass(frozen=True)
class Simplex(Penalty):
    r"""The indicator of {v >= 0, sum v = radius}.

    prox: (v - tau)_+ with tau such that the sum is `radius`;  in a metric d: (v - tau / d)_+.  lam_max: none.

    Args:
        radius: a positive number.

    Source: Held, Wolfe and Crowder 1974.

    When not to use: where the sum should be free (NonnegativeL1).

    >>> import torch, sparselayers as sl
    >>> sl.Simplex().prox(torch.tensor([0.5, 1.2, 0.1]), 1.0)
    tensor([0.1500, 0.8500, 0.0000])
    """

    radius: float = 1.0
    has_metric = True
    indicator = True

    def __post_init__(self) -> None:
        checks.number(self.radius, "radius", 0.0, open_low=True)

    def value(self, v: Tensor) -> Tensor:
        rows = upcast(v.detach())
        slack = torch.finfo(rows.dtype).eps ** 0.5 * self.radius
        return zero_inside(v, nearly_nonnegative(v) & ((rows.sum(-1) - self.radius).abs() <= slack))

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        if metric is None:
            return project_simplex(v, self.radius)
        return waterline(metric * upcast(v), a=1 / metric, b=self.radius).above / metric


@dataclass(frozen=True)
class L1Ball(Penalty):
    r"""The indicator of {‖v‖_1 <= radius}.

    prox: v inside, sign(v) (abs(v) - tau)_+ outside;  in a metric d: sign(v) (abs(v) - tau / d)_+.  lam_max: none.

    Args:
        radius: a positive number.

    Source: Duchi, Shalev-Shwartz, Singer and Chandra, ICML 2008.

    When not to use: where the strength is known instead of the radius (L1).

    >>> import torch, sparselayers as sl
    >>> sl.L1Ball(2.0).prox(torch.tensor([2.0, -1.0, 0.5]), 1.0)
    tensor([ 1.5000, -0.5000,  0.0000])
    """

    radius: float = 1.0
    has_metric = True
    indicator = True

    def __post_init__(self) -> None:
        checks.number(self.radius, "radius", 0.0, open_low=True)

    def value(self, v: Tensor) -> Tensor:
        rows = upcast(v.detach())
        slack = 1 + torch.finfo(rows.dtype).eps ** 0.5
        return zero_inside(v, rows.abs().sum(-1) <= self.radius * slack)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        if metric is None:
            return clip_l1(v, self.radius)
        size = upcast(v).abs()
        inside = size.detach().sum(-1, keepdim=True) <= self.radius
        above = waterline(metric * size, a=1 / metric, b=self.radius).above / metric
        return torch.where(inside, v, signed(above, v).to(v.dtype))


@dataclass(frozen=True)
class Box(Penalty):
    r"""The indicator of {low <= v <= high}, entry by entry.

    prox: min(max(v, low), high), in any metric.  lam_max: none.

    Args:
        low: a number, -inf allowed.
        high: a number of at least `low`, inf allowed.

    When not to use: with different bounds an entry: clamp by hand.

    >>> import torch, sparselayers as sl
    >>> sl.Box(-1.0, 1.0).prox(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-1.0000,  0.5000,  1.0000])
    """

    low: float = 0.0
    high: float = 1.0
    separable = True
    has_metric = True
    indicator = True

    def __post_init__(self) -> None:
        checks.number(self.low, "low")
        checks.number(self.high, "high")
        if not self.low <= self.high:
            raise ValueError(f"low must be at most high, got low={self.low!r}, high={self.high!r}; swap them")

    def value(self, v: Tensor) -> Tensor:
        rows = upcast(v.detach())
        bound = max((abs(b) for b in (self.low, self.high) if math.isfinite(b)), default=0.0)
        slack = torch.finfo(rows.dtype).eps ** 0.5 * strength(bound, rows)
        return zero_inside(v, ((rows >= self.low - slack) & (rows <= self.high + slack)).all(-1))

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        return v.clamp(self.low, self.high)


@dataclass(frozen=True)
class Nonnegative(Penalty):
    r"""The indicator of {v >= 0}.

    prox: (v)_+, in any metric.  lam_max: none.

    When not to use: for sparse nonnegative codes, which want a strength (NonnegativeL1).

    >>> import torch, sparselayers as sl
    >>> sl.Nonnegative().prox(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([0.0000, 0.5000, 3.0000])
    """

    separable = True
    has_metric = True
    indicator = True

    def value(self, v: Tensor) -> Tensor:
        return zero_inside(v, nearly_nonnegative(v))

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        return torch.relu(v)
