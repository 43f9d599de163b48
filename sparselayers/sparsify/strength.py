"""How a regularizer's strength lam runs over training: a schedule, a target for the density, a path for a sweep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..ops import checks

State = dict[str, float | Tensor]  # "lam", the strength in use, and what a rule needs to go on


class Rule(Protocol):
    """What `Regularizer(lam=...)` and `regularizer.lam = ...` take besides a number."""

    def initial(self) -> State:
        """The state before the first prox step."""

    def advance(self, state: State, density: Callable[[], Tensor]) -> State:
        """The state after a prox step; `density()` counts the share of weights that are not zero."""


@dataclass(frozen=True)
class LamSchedule:
    r"""lam_k = lam + (start - lam) (1 - (k - delay) / warmup)^power at prox step k = 0, 1, ..., the fraction kept in [0, 1].

    power = 1 is a linear warm-up, power = 3 the cubic one, fast first and slow near the end; warmup = 0 is constant lam.

    Args:
        lam: the strength reached and kept, >= 0.
        warmup: prox steps from start to lam.
        start: the strength before and at step `delay`, >= 0.
        power: > 0.
        delay: prox steps before the warm-up.

    Raises: ValueError for a number out of range, TypeError for step counts that are not integers.

    Source: Zhu and Gupta 2017 (the cubic form, there of a sparsity).

    When not to use: to meet a given density (`DensityTarget`).

    >>> import sparselayers as sl
    >>> [round(sl.LamSchedule(1.0, warmup=4, power=3).at(k), 3) for k in range(6)]
    [0.0, 0.578, 0.875, 0.984, 1.0, 1.0]
    """

    lam: float
    warmup: int = 0
    start: float = 0.0
    power: float = 1.0
    delay: int = 0

    def __post_init__(self) -> None:
        checks.number(self.lam, "lam", low=0.0)
        checks.count(self.warmup, "warmup", least=0)
        checks.number(self.start, "start", low=0.0)
        checks.number(self.power, "power", low=0.0, open_low=True)
        checks.count(self.delay, "delay", least=0)

    def at(self, k: int) -> float:
        """The strength of prox step k, counted from 0."""
        if k >= self.delay + self.warmup:
            return self.lam
        left = 1 - max(k - self.delay, 0) / max(self.warmup, 1)
        return self.lam + (self.start - self.lam) * left**self.power

    def initial(self) -> State:
        return {"k": 0, "lam": self.at(0)}

    def advance(self, state: State, density: Callable[[], Tensor]) -> State:
        k = int(state["k"]) + 1
        return {"k": k, "lam": self.at(k)}


@dataclass(frozen=True)
class DensityTarget:
    r"""lam as the multiplier of the constraint "a share `density` of the caught weights is not zero".

    Every `every` prox steps, with d the share of weights that are not zero:
    log lam <- log lam + rate (d - density) + damping (d - d before),      d counted exactly.

    lam grows while there are too many weights and falls when there are too few; `damping` looks ahead, as the weights
    answer late. On a logarithm no scale of lam need be known.

    Args:
        density: in [0, 1], the share to be left of all weights caught.
        start: the first strength, > 0.
        rate: >= 0, of the ascent.
        damping: >= 0, the weight of the change of d.
        every: prox steps between two counts; a count reads all weights once.

    Raises: ValueError for a number out of range, TypeError where `every` is not an integer.

    Source: Gallego-Posada et al. 2022 (density as a constraint); Sohrabi et al. 2024 (damping of the multiplier), there
    with gates and without the logarithm.

    When not to use: with groups so large that one of them is more than the accuracy wanted; with a penalty that gives no
    zeros (Ridge, LInf).

    >>> import torch, sparselayers as sl
    >>> target = sl.DensityTarget(0.1, start=1.0, rate=1.0, damping=0.0, every=1)
    >>> target.advance(target.initial(), lambda: torch.tensor(0.5))["lam"]
    tensor(1.4918)
    """

    density: float
    start: float = 1e-4
    rate: float = 0.2
    damping: float = 20.0
    every: int = 10

    def __post_init__(self) -> None:
        checks.number(self.density, "density", low=0.0, high=1.0)
        checks.number(self.start, "start", low=0.0, open_low=True)
        checks.number(self.rate, "rate", low=0.0)
        checks.number(self.damping, "damping", low=0.0)
        checks.count(self.every, "every")

    def initial(self) -> State:
        return {"k": 0, "lam": self.start}

    def advance(self, state: State, density: Callable[[], Tensor]) -> State:
        k = int(state["k"]) + 1
        if k % self.every:
            return {**state, "k": k}
        now = density()
        log = self.rate * (now - self.density) + self.damping * (now - state.get("density", now))
        return {"k": k, "lam": state["lam"] * log.exp(), "density": now}


def lam_path(lam_max: float | Tensor, n: int = 10, ratio: float = 1e-2) -> Tensor:
    r"""Strengths for a sweep, from strong to weak: lam_max ratio^(i / (n - 1)), i = 0..n-1.

    Args:
        lam_max: the strength from which on all is zero, a number or a 0-d tensor; `regularizer.lam_max()` gives one.
        n: how many.
        ratio: in (0, 1], the last over the first.

    Returns: (n,).

    Raises: ValueError for a number out of range, TypeError where n is no integer.

    Source: Friedman, Hastie and Tibshirani, J. Stat. Softw. 2010, section 2.5.

    When not to use: for a nonconvex model trained from one start at each lam, where a path from strong to weak means that
    weights must come back from zero.

    >>> import sparselayers as sl
    >>> sl.lam_path(1.0, n=3, ratio=0.01)
    tensor([1.0000, 0.1000, 0.0100])
    """
    checks.number(lam_max, "lam_max", low=0.0)
    checks.count(n, "n")
    checks.number(ratio, "ratio", low=0.0, high=1.0, open_low=True)
    like = lam_max if isinstance(lam_max, Tensor) else torch.tensor(float(lam_max))
    return like * ratio ** torch.linspace(0, 1, n, dtype=like.dtype, device=like.device)
