"""The prox step after an optimizer's step: in the geometry of that step, and not at all where it was skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from .groups import Block, Part
from .metric import Rate, Rates, per_lr
from .multitensor import Metric, Weighted

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


def _add_pull(momentum: Tensor, shift: Tensor, lr: float | Tensor) -> None:
    """momentum += shift / lr; at lr = 0 nothing was pulled, a constraint apart."""
    if isinstance(lr, Tensor):
        momentum.add_(torch.where(lr > 0, shift / lr, 0))
    elif lr:
        momentum.add_(shift, alpha=1 / lr)


def weigh(
    block: Block, tensors: Mapping[str, Tensor], rates: Mapping[str, Rate], lam: float | Tensor
) -> Weighted | None:
    """The views of a block with t = lr lam and the metric D; parts with different lr are one prox, t = lam in D / lr.

    A part without a rate stays as it is.
    """
    live = [(part, rates[part.name]) for part in block if part.name in rates]
    if not _alike(live):  # a part that does not move has no metric
        live = [(part, rate) for part, rate in live if isinstance(rate.lr, Tensor) or rate.lr != 0]
    if not live:
        return None
    parts = tuple(part for part, _ in live)
    views = tuple(part.cut(tensors[part.name]) for part in parts)
    if not _alike(live):
        return Weighted(parts, views, lam, tuple(_cut(part, per_lr(rate)) for part, rate in live))
    t = live[0][1].lr * lam
    if all(rate.metric is None for _, rate in live):
        return Weighted(parts, views, t)
    return Weighted(
        parts, views, t, tuple(_cut(part, 1.0 if rate.metric is None else rate.metric) for part, rate in live)
    )


def _alike(live: list[tuple[Part, Rate]]) -> bool:
    """Is it one lr, as far as one may know without looking into tensors?"""
    lrs = [rate.lr for _, rate in live]
    return all(lr is lrs[0] or (not isinstance(lr, Tensor) and lr == lrs[0]) for lr in lrs)


def _cut(part: Part, metric: Metric) -> Metric:
    return metric if isinstance(metric, (float, Tensor)) else metric.over(part.cut(metric.second))
