"""Penalties that are sums over entries: L1, NonnegativeL1, ElasticNet, Ridge, L0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import checks
from ..ops.diagonal import Diagonal
from ..ops.kernels.weights import keep_, shrink_
from ..ops.norm import upcast
from ..ops.shrink import hard_bound, hard_threshold, soft_threshold
from .base import Penalty, nudged_up


def in_metric(t: float | Tensor, metric: Tensor | None) -> float | Tensor:
    """The strength each entry sees: t / d."""
    return t if metric is None else t / metric


@dataclass(frozen=True)
class L1(Penalty):
    r"""The l1 norm R(v) = ‖v‖_1 (lasso).

    prox: sign(v) (abs(v) - t)_+;  in a metric d the threshold is t / d.  lam_max: max abs(c).

    Source: Tibshirani 1996; Daubechies, Defrise and De Mol 2004.

    When not to use: for sparsity by groups (GroupL2), or where the bias of large entries hurts (L0).

    >>> import torch, sparselayers as sl
    >>> sl.L1().prox(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-1.,  0.,  2.])
    """

    separable = True
    has_metric = True

    def value(self, v: Tensor) -> Tensor:
        return v.abs().sum(-1)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        return soft_threshold(v, in_metric(t, metric))

    def _prox_(self, rows: Tensor, t: float | Tensor, metric: Tensor | Diagonal | None) -> bool:
        return shrink_(rows, t, 0.0, metric)

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        return c.abs().amax(-1)


@dataclass(frozen=True)
class NonnegativeL1(Penalty):
    r"""The l1 norm on nonnegative vectors: R(v) = sum v where v >= 0, infinite elsewhere.

    prox: (v - t)_+;  in a metric d the threshold is t / d.  lam_max: max(c)_+.

    Source: Beck and Teboulle 2009, with a sign constraint.

    When not to use: for codes of either sign (L1).

    >>> import torch, sparselayers as sl
    >>> sl.NonnegativeL1().prox(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([0., 0., 2.])
    """

    separable = True
    has_metric = True

    def value(self, v: Tensor) -> Tensor:
        return torch.where(nearly_nonnegative(v), v.sum(-1), torch.inf)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        return torch.relu(v - in_metric(t, metric))

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        return torch.relu(c.amax(-1))


@dataclass(frozen=True)
class ElasticNet(Penalty):
    r"""R(v) = ratio ‖v‖_1 + (1 - ratio) 1/2 ‖v‖_2².

    prox: soft(v, t ratio) / (1 + t (1 - ratio)), with t / d for t in a metric d.  lam_max: max abs(c) / ratio.

    Args:
        ratio: in [0, 1]; 1 is L1, 0 is Ridge.

    Source: Zou and Hastie, J. R. Stat. Soc. B 2005.

    When not to use: where atoms are nearly orthogonal: the ridge part then only shrinks.

    >>> import torch, sparselayers as sl
    >>> sl.ElasticNet(ratio=0.5).prox(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-1.0000,  0.0000,  1.6667])
    """

    ratio: float = 0.5
    separable = True
    has_metric = True

    def __post_init__(self) -> None:
        checks.number(self.ratio, "ratio", 0.0, 1.0)

    def value(self, v: Tensor) -> Tensor:
        return self.ratio * v.abs().sum(-1) + (1 - self.ratio) * 0.5 * v.square().sum(-1)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        t = in_metric(t, metric)  # 0 times an infinite t is no number
        shrunk = soft_threshold(v, self.ratio * t) if self.ratio else v
        return shrunk / (1 + (1 - self.ratio) * t) if self.ratio < 1 else shrunk

    def _prox_(self, rows: Tensor, t: float | Tensor, metric: Tensor | Diagonal | None) -> bool:
        if metric is not None or not shrink_(rows, self.ratio * t if self.ratio else 0.0, 0.0, None):
            return False
        if self.ratio < 1:
            rows.div_(1 + (1 - self.ratio) * t)
        return True

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        if self.ratio == 0:
            return super()._lam_max(c, step)
        return nudged_up(c.abs().amax(-1) / self.ratio)


@dataclass(frozen=True)
class Ridge(Penalty):
    r"""R(v) = 1/2 ‖v‖_2².

    prox: v / (1 + t);  in a metric d: v / (1 + t / d).  lam_max: none, nothing becomes exactly zero.

    Source: Hoerl and Kennard 1970.

    When not to use: for exact zeros. For the exact ridge code use `F.ridge`.

    >>> import torch, sparselayers as sl
    >>> sl.Ridge().prox(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-1.0000,  0.2500,  1.5000])
    """

    separable = True
    has_metric = True

    def value(self, v: Tensor) -> Tensor:
        return 0.5 * v.square().sum(-1)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        return v / (1 + in_metric(t, metric))


@dataclass(frozen=True)
class L0(Penalty):
    r"""The number of nonzero entries, R(v) = ‖v‖_0.

    prox: v where abs(v) > sqrt(2 t), else 0 (a tie goes to zero);  in a metric d the bound is sqrt(2 t / d).
    lam_max: step max(c²) / 2.

    Source: Blumensath and Davies, J. Fourier Anal. Appl. 2008.

    When not to use: to learn lam: the prox has derivative zero in t almost everywhere.

    >>> import torch, sparselayers as sl
    >>> sl.L0().prox(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-2.,  0.,  3.])
    """

    convex = False
    separable = True
    has_metric = True

    def value(self, v: Tensor) -> Tensor:
        return v.sign().abs().sum(-1)  # a sum of signs keeps the graph, with derivative 0

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        return hard_threshold(v, hard_bound(in_metric(t, metric)))

    def _prox_(self, rows: Tensor, t: float | Tensor, metric: Tensor | Diagonal | None) -> bool:
        return keep_(rows, t, None, metric, by_row=False)

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        largest = upcast(c).abs().amax(-1)
        return nudged_up(step * largest * (largest / 2), c.dtype)


def nearly_nonnegative(v: Tensor) -> Tensor:
    """Row by row: no entry below 0 by more than sqrt(eps) of the row's largest."""
    v = upcast(v.detach())
    if v.shape[-1] == 0:
        return v.sum(-1) == 0
    slack = torch.finfo(v.dtype).eps ** 0.5 * v.abs().amax(-1)
    return v.amin(-1) >= -slack
