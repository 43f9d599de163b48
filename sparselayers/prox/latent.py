"""Groups that overlap, along the edges of a graph for instance: the latent group lasso."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import checks
from ..ops.cylinders import multipliers, stretch
from ..ops.norm import strength
from .base import Penalty, nudged_up


@dataclass(frozen=True)
class LatentGroupL2(Penalty):
    r"""Overlapping groups (latent group lasso): what survives is a union of groups.

    R(v) = min { sum_g w_g ‖z_g‖_2 : sum_g z_g = v, z_g zero outside g } = max { u^T v : ‖u_g‖_2 <= w_g for all g }.

    prox: v minus the nearest point with ‖u_g‖ <= t w_g for all g, that is v_k (1 - 1 / d_k) with d_k = 1 + the sum of the
    multipliers of the groups that hold k: exactly 0 where none of them is active. lam_max: max_g ‖c_g‖ / w_g.

    Args:
        groups: tuples of block indices; together they hold every index from 0 on. Pairs are the edges of a graph.
        weights: w_g > 0, one a group; 1 if None.
        size: entries a block; the last axis is n_blocks * size. With size = n_inputs and groups="tensor" in a
            `Regularizer` the blocks are the rows of a weight matrix.
        max_iter: passes of the solver at most; it stops earlier on the CPU. Some five to fifteen are enough on paths and
            small graphs; where there are many more groups than blocks look at `gap`.

    Raises: TypeError or ValueError for groups that are no tuples of indices, leave an index out, or do not fit the axis.

    Source: Jacob, Obozinski and Vert, ICML 2009; the multipliers: Villa, Rosasco, Mosci and Verri 2014. Groups on a graph
        are inspired by Dai, Zhang, Huang, Chen and Zhou, AAAI 2015.

    When not to use: for groups that do not overlap (`GroupL2`, `Grouped`): the same answer at a small part of the cost, which
        grows with the cube of the number of groups.

    >>> import torch, sparselayers as sl
    >>> path = sl.LatentGroupL2(groups=((0, 1), (1, 2), (2, 3)))
    >>> path.prox(torch.tensor([3.0, 4.0, 0.1, 0.2]), 1.0)
    tensor([2.4000, 3.2000, 0.0000, 0.0000])
    >>> path.value(torch.tensor([3.0, 4.0, 0.0, 0.0]))
    tensor(5.)
    """

    groups: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...] | None = None
    size: int = 1
    max_iter: int = 50

    def __post_init__(self) -> None:
        tuples = isinstance(self.groups, tuple) and all(isinstance(group, tuple) for group in self.groups)
        if not tuples or not all(type(k) is int for group in self.groups for k in group):
            raise TypeError(
                f"groups must be a tuple of tuples of indices such as ((0, 1), (1, 2)), got {self.groups!r}"
            )
        held = {k for group in self.groups for k in group}
        if not self.groups or not all(self.groups) or min(held) < 0:
            raise ValueError(f"groups must hold at least one index >= 0 each, got {self.groups!r}")
        missing = sorted(set(range(max(held) + 1)) - held)
        if missing:
            raise ValueError(f"groups must together hold every index up to {max(held)}; none holds {missing}")
        if self.weights is not None:
            if not isinstance(self.weights, tuple) or len(self.weights) != len(self.groups):
                raise ValueError(
                    f"weights must be a tuple of one number a group, {len(self.groups)}, got {self.weights!r}"
                )
            for weight in self.weights:
                checks.number(weight, "weights", low=0.0, open_low=True)
        checks.count(self.size, "size")
        checks.count(self.max_iter, "max_iter")

    @property
    def n_blocks(self) -> int:
        return 1 + max(k for group in self.groups for k in group)

    def value(self, v: Tensor) -> Tensor:
        _, a, member, weights, scale = self._problem(v)
        lam = multipliers(a, member, weights, 0.0, self.max_iter)
        total = (a / stretch(lam, member, 0.0)).sum(-1) * scale.squeeze(-1)
        return torch.where(v.isfinite().all(-1), total, torch.nan).to(v.dtype)

    def gap(self, v: Tensor, t: float | Tensor) -> Tensor:
        """How far prox(v, t) may be from the optimum: the duality gap over 1/2 ‖v‖², row by row; 0 for v = 0."""
        _, a, member, weights, scale = self._problem(v.detach())
        tau = self._radii(t, weights, scale)
        lam = multipliers(a, member, tau, 1.0, self.max_iter).clamp_min(0)
        d = stretch(lam, member, 1.0)
        lengths = ((a / d.square()) @ member.mT).sqrt()
        primal = (a / d.square()).sum(-1) / 2 + (tau * lam * lengths).sum(-1)
        inside = (tau / torch.where(lengths > 0, lengths, 1)).amin(-1, keepdim=True).clamp(max=1)
        dual = (a.sum(-1) - (a * (1 - inside / d).square()).sum(-1)) / 2
        half = a.sum(-1) / 2
        relative = (primal - dual).clamp_min(0) / torch.where(half > 0, half, 1)
        return torch.where(v.isfinite().all(-1), relative, torch.nan).to(v.dtype)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        rows, a, member, weights, scale = self._problem(v)
        t = strength(t, a)
        lam = multipliers(a, member, self._radii(torch.where(t == 0, 1, t), weights, scale), 1.0, self.max_iter)
        kept = (lam @ member) / stretch(lam, member, 1.0)
        shrunk = (rows * kept.unsqueeze(-1) * scale.unsqueeze(-1)).flatten(-2)
        return torch.where(t == 0, v.to(a.dtype), torch.where(v.isfinite().all(-1, keepdim=True), shrunk, torch.nan))

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        _, a, member, weights, scale = self._problem(c)
        square = a @ member.mT
        length = torch.where(square > 0, torch.where(square > 0, square, 1).sqrt(), 0)
        largest = (length / weights).amax(-1) * scale.squeeze(-1)
        return nudged_up(torch.where(c.isfinite().all(-1), largest, torch.nan).to(c.dtype))

    def _problem(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Rows (..., K, size) scaled to a largest entry of 1, the squared norms of their blocks, member, weights, the scale."""
        if v.shape[-1] != self.n_blocks * self.size:
            raise ValueError(
                f"groups of {self.n_blocks} blocks of size {self.size} take a last axis of {self.n_blocks * self.size}, "
                f"got shape {tuple(v.shape)}"
            )
        # The multipliers of a small t are large and their equations ill conditioned: all in double where there is double.
        wide = torch.float32 if v.device.type == "mps" else torch.float64
        finite = torch.where(v.isfinite().all(-1, keepdim=True), v, 0).to(wide)
        largest = finite.detach().abs().amax(-1, keepdim=True)
        scale = torch.where(largest > 0, largest, 1)
        rows = (finite / scale).unflatten(-1, (self.n_blocks, self.size))
        member = torch.tensor(
            [[k in group for k in range(self.n_blocks)] for group in self.groups], dtype=wide, device=v.device
        )
        weights = torch.tensor(self.weights or [1.0] * len(self.groups), dtype=wide, device=v.device)
        return rows, rows.square().sum(-1), member, weights, scale

    def _radii(self, t: float | Tensor, weights: Tensor, scale: Tensor) -> Tensor:
        return strength(t, weights) * weights / scale
