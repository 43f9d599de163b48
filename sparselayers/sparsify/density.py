"""A share of groups that shall stay nonzero, in the place of a strength: lam is found anew before every prox step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..ops import checks
from .strength import State

POWER = 3  # of the way to zero


@dataclass(frozen=True)
class DensityTarget:
    r"""The share of groups left nonzero, in the place of lam: `Regularizer(model, penalty, lam=DensityTarget(0.1))`.

    Let s_g be the strength at which the next prox step would make group g zero, and q the (1 - density)-quantile of s over
    all groups of the regularizer. After `delay` prox steps with lam = 0, and with tau steps of the warm-up left,

    lam = q min(3 / tau, 1), with which the group at the quantile shrinks as tau³ and is zero at the end;
    lam = q from then on: after every step exactly the share `density` of the groups is nonzero.

    For a penalty that keeps what it does not zero (L0, GroupL0) nothing shrinks: lam = q at the share
    density + (1 - density) (tau / warmup)³. Once the weights stand still, lam is the largest at which that many groups are
    nonzero: on a lasso, a knot of its path. One lam serves the whole model, and layers compete for the share; for a
    density a layer take one Regularizer a layer, by `include`.

    "Groups" are the rows that the penalty sees, entries for a separable penalty such as L1. Those of parameters without a
    gradient are not counted. What is zero at lam = 0 already, by the sign in NonnegativeL1, no lam brings back. From 2^18
    entries or 2^13 rows on, q is that of an evenly spaced part of them.

    Args:
        density: in (0, 1], the share of groups that stay nonzero; at least one does.
        warmup: prox steps from dense to `density`. Too few leave no time to learn to do without.
        delay: prox steps before the warm-up, for the dense model to learn.

    Raises: ValueError for a number out of range, TypeError for step counts that are not integers; at the regularizer,
    ValueError for a penalty without a lam_max.

    Source: the cubic form is that of Zhu and Gupta 2017; the threshold set by rank is that of hard and soft thresholding
    pursuits, here for any penalty with a lam_max.

    When not to use: where the penalty is a term of the loss (`value()`), which leaves no exact zeros to count. With a
    convex penalty and a small share the weights that stay are small too: hold the pattern by `freeze()`, set lam to 0 and
    fine-tune.

    >>> import torch, sparselayers as sl
    >>> layer = torch.nn.Linear(4, 10)
    >>> regularizer = sl.Regularizer(layer, sl.GroupL2(), sl.DensityTarget(0.3, warmup=5))
    >>> optimizer = sl.ProxSGD(layer.parameters(), lr=0.1, regularizer=regularizer)
    >>> for _ in range(6):
    ...     optimizer.zero_grad()
    ...     layer(torch.randn(8, 4)).square().mean().backward()
    ...     optimizer.step()
    >>> int(layer.weight.any(dim=1).sum())
    3
    """

    density: float
    warmup: int = 1000
    delay: int = 0

    def __post_init__(self) -> None:
        checks.number(self.density, "density", low=0.0, high=1.0, open_low=True)
        checks.count(self.warmup, "warmup", least=0)
        checks.count(self.delay, "delay", least=0)

    def initial(self) -> State:
        return {"k": 0, "lam": 0.0}

    def steer(self, state: State, strengths: Tensor, shrinks: bool) -> State:
        """The state for the prox step before which the groups' `strengths` (n,) are as given."""
        k = cast("int | Tensor", state["k"])
        left = self.delay + self.warmup - k  # a tensor where an optimizer may have skipped steps
        n = strengths.numel()
        if shrinks:
            keep: float | Tensor = self.density * n
            part = POWER / left.clamp_min(POWER) if isinstance(left, Tensor) else POWER / max(left, POWER)
        else:
            ahead = left.clamp_min(1) if isinstance(left, Tensor) else max(left, 1)
            keep = n * (self.density + (1 - self.density) * ((ahead - 1) / max(self.warmup, 1)) ** POWER)
            part = 1.0
        edge = _edge(strengths, keep) * part
        # With lr = 0 no strength makes a group zero.
        found = torch.where(edge.isfinite(), edge, state["lam"])
        if isinstance(k, Tensor):
            return {"k": k + 1, "lam": torch.where(k < self.delay, 0, found)}
        return {"k": k + 1, "lam": found if k >= self.delay else 0.0}


def _edge(strengths: Tensor, keep: float | Tensor) -> Tensor:
    """The largest strength of those that go when `keep`, rounded and at least one, stay; 0 where all stay."""
    n = strengths.numel()
    if isinstance(keep, Tensor):
        gone = (n - keep.round().clamp_min(1).long()).clamp_min(0).to(strengths.device)
        return torch.cat([strengths.new_zeros(1), strengths.sort().values]).gather(0, gone.reshape(1)).squeeze(0)
    least = n - max(round(keep), 1)
    return strengths.kthvalue(least).values if least > 0 else strengths.new_zeros(())
