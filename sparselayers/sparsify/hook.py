"""What comes after an optimizer's step: the prox, in the geometry of that step, and nothing at all where it was skipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from .metric import Rates

if TYPE_CHECKING:
    from .regularizer import Regularizer


class ProxHook:
    """What `attach` registers; it knows its regularizer, so that a second one on the same weights is seen."""

    def __init__(self, regularizer: Regularizer, rates: Callable[[Optimizer], Rates]) -> None:
        self.regularizer, self.rates = regularizer, rates

    @property
    def caught(self) -> set[int]:
        """The parameters, by id."""
        return {id(p) for p in self.regularizer._caught().values()}

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        rates = self.rates(optimizer)
        moved = {name: (p, rates[id(p)]) for name, p in self.regularizer._caught().items() if id(p) in rates}
        before = [(p, p.detach().clone(), r) for p, r in moved.values() if r.momentum is not None]
        # A fused optimizer runs its hooks even on a step that GradScaler skipped, and says so here.
        found_inf = getattr(optimizer, "found_inf", None)
        skipped = None if found_inf is None else found_inf > 0
        self.regularizer._apply({name: rate for name, (_, rate) in moved.items()}, skipped)
        for p, old, rate in before:
            if rate.momentum is not None:
                _add_pull(rate.momentum, (old - p) * rate.share, rate.lr)
        self.regularizer._advance(skipped)


class FirstMomentum:
    """Mends torch's fused SGD: a first step that GradScaler skips leaves its momentum in memory that nobody has set.

    Such a momentum becomes zero. (With dampening the next step is then dampened, as a first one is not.)
    """

    def __init__(self) -> None:
        self.new: list[Tensor] = []

    def before(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        scaled = getattr(optimizer, "found_inf", None) is not None
        params = [p for group in optimizer.param_groups for p in group["params"]] if scaled else []
        self.new = [p for p in params if optimizer.state.get(p, {}).get("momentum_buffer") is None]

    @torch.no_grad()
    def after(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        for p in self.new:
            momentum = optimizer.state.get(p, {}).get("momentum_buffer")
            if momentum is not None:
                momentum.masked_fill_(optimizer.found_inf > 0, 0)  # type: ignore[attr-defined]
        self.new = []


def _add_pull(momentum: Tensor, shift: Tensor, lr: float | Tensor) -> None:
    """momentum += shift / lr; at lr = 0 nothing was pulled, a constraint apart."""
    if isinstance(lr, Tensor):
        momentum.add_(torch.where(lr > 0, shift / lr, 0))
    elif lr:
        momentum.add_(shift, alpha=1 / lr)
