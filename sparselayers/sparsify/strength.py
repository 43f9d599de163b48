"""How a regularizer's strength lam runs over training: what may move it, a schedule, a path for a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ..ops import checks

State = dict[str, float | Tensor]  # "lam", the strength in use, and what a rule needs to go on


@runtime_checkable
class Rule(Protocol):
    """What `Regularizer(lam=...)` and `regularizer.lam = ...` take besides a number: lam by the count of steps."""

    def initial(self) -> State:
        """The state before the first prox step."""

    def advance(self, state: State) -> State:
        """The state after a prox step."""


@runtime_checkable
class Steering(Protocol):
    """The same, but lam is found before each prox step from the weights that it is about to meet."""

    def initial(self) -> State:
        """The state before the first prox step."""

    def steer(self, state: State, strengths: Tensor, shrinks: bool) -> State:
        """The state for this prox step, by each group's vanishing strength; `shrinks`: does the prox move what it keeps?"""


def unless(skipped: Tensor | None, new: State, old: State) -> State:
    """`new`, or `old` where the step is skipped, of which only the device may know."""
    if skipped is None:
        return new
    return {key: torch.where(skipped, torch.as_tensor(old[key], device=skipped.device), new[key]) for key in new}


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

    When not to use: to sweep over strengths with a training run for each (`lam_path`).

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

    def at(self, k: int | Tensor) -> float | Tensor:
        """The strength of prox step k, counted from 0."""
        if isinstance(k, Tensor):
            rest = (1 - (k - self.delay) / max(self.warmup, 1)).clamp(0, 1)
            moving = self.lam + (self.start - self.lam) * rest**self.power
            return torch.where(k >= self.delay + self.warmup, self.lam, moving)
        if k >= self.delay + self.warmup:
            return self.lam
        left = 1 - max(k - self.delay, 0) / max(self.warmup, 1)
        return self.lam + (self.start - self.lam) * left**self.power

    def initial(self) -> State:
        return {"k": 0, "lam": self.at(0)}

    def advance(self, state: State) -> State:
        k = cast("int | Tensor", state["k"]) + 1
        return {"k": k, "lam": self.at(k)}


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
