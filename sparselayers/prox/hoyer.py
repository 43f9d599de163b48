"""Scale-free measures of sparsity for a loss, values without a prox: HoyerSquare, GroupHoyerSquare."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import checks
from ..ops.norm import norm, upcast
from .base import Penalty


def hoyer_square(size: Tensor) -> Tensor:
    """(sum size)² / sum size² along the last axis, for sizes >= 0; 0 with derivative 0 for a row of zeros."""
    if size.shape[-1] == 0:
        return size.sum(-1)
    largest = size.detach().amax(-1, keepdim=True)
    zero = largest == 0
    size = size / torch.where(zero, 1, largest)
    square = torch.where(zero.squeeze(-1), 1, size.square().sum(-1))
    return size.sum(-1).square() / square


class ValueOnly(Penalty):
    """A penalty for a loss: it has no prox that is known to be exact, and says so."""

    convex = False

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        raise ValueError(
            f"{self!r} has no prox; add lam * penalty.value(v) to the loss (for weights: Regularizer.value()), "
            "or take a penalty with a prox, such as L1MinusL2() or LHalf()"
        )

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        raise ValueError(
            f"{self!r} has no finite lam_max, as it has no prox; add lam * penalty.value(v) to the loss, "
            "or take a penalty with a prox and schedule=Constant()"
        )


@dataclass(frozen=True)
class HoyerSquare(ValueOnly):
    r"""R(v) = ‖v‖_1² / ‖v‖_2²: between 1 (one nonzero entry) and n (all of one size), whatever the scale of v; 0 at v = 0.

    Only `value`: as a term of a loss its gradient shrinks entries below ‖v‖_2² / ‖v‖_1 and grows those above. `prox` and
    `lam_max` are a ValueError.

    Source: Yang, Wen and Li (DeepHoyer), ICLR 2020.

    When not to use: for exact zeros during training: those need a prox.

    >>> import torch, sparselayers as sl
    >>> sl.HoyerSquare().value(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor([1.9600, 1.0000])
    """

    def value(self, v: Tensor) -> Tensor:
        return hoyer_square(upcast(v).abs()).to(v.dtype)


@dataclass(frozen=True)
class GroupHoyerSquare(ValueOnly):
    r"""R(v) = (sum_g ‖v_g‖_2)² / ‖v‖_2² over the last TWO axes (..., groups, size): HoyerSquare of the group norms.

    Only `value`, (..., groups, size) -> (...,). `prox` and `lam_max` are a ValueError.

    Raises: ValueError for a v without two axes.

    Source: Yang, Wen and Li (DeepHoyer), ICLR 2020.

    When not to use: for exact zeros during training: those need a prox, such as that of GroupL2.

    >>> import torch, sparselayers as sl
    >>> sl.GroupHoyerSquare().value(torch.tensor([[3.0, 4.0], [0.0, 5.0]]))
    tensor(2.)
    """

    def value(self, v: Tensor) -> Tensor:
        checks.floating(v, "v")
        if v.ndim < 2:
            raise ValueError(f"v must be (..., groups, size), got shape {tuple(v.shape)}; use v.view(groups, size)")
        return hoyer_square(norm(v).squeeze(-1)).to(v.dtype)
