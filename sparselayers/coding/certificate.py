"""How far a code is from the optimum, sample by sample: the duality gap, or a fixed-point residual where there is none.

With weights a_j >= 0 on abs(z_j) and b_j >= 0 on 1/2 z_j² the elastic net is a Lasso in the residual (x - D z, -sqrt(b) z).
Its dual points s (r, -sqrt(b) z) have the correlation s c, c = D^T r - b z, which must stay within abs(s c) <= a. There

    gap = 1/2 (1 - s)² (‖r‖² + sum b z²) + sum_j (a_j abs(z_j) - s c_j z_j),

a sum of terms that are not negative, so that nothing cancels near the optimum. Where b > 0 the dual point r itself is
good, too: sum_j of a abs(z) + b/2 z² + (abs(D^T r) - a)_+² / (2 b) - z D^T r. The smaller of the two counts. Where atoms
have no penalty, a = b = 0, the dual point is the part of r orthogonal to them, and the rest of r adds its 1/2 ‖.‖².
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.eager import may_wait
from ..ops.norm import norm, strength, upcast
from ..ops.shrink import soft_threshold
from ..prox import L1, ElasticNet, NonnegativeL1, Penalty
from . import dictionary


@dataclass(frozen=True)
class Weights:
    """The penalty sum_j a_j abs(z_j) + b_j 1/2 z_j², over z >= 0 where it is nonnegative; a, b broadcast to the codes.

    b is None where it is 0.
    """

    a: Tensor
    b: Tensor | None
    nonnegative: bool

    def prox(self, v: Tensor, t: Tensor) -> Tensor:
        shrunk = torch.relu(v - t * self.a) if self.nonnegative else soft_threshold(v, t * self.a)
        return shrunk if self.b is None else shrunk / (1 + t * self.b)

    def gap(self, x: Tensor, D: Tensor, z: Tensor) -> Tensor:
        """The duality gap relative to 1/2 ‖x‖²: (..., 1)."""
        r = x - z @ D.mT
        pinned = self._free_part(r, D)
        r = r - pinned
        c, size, other = r @ D, r.square().sum(-1, keepdim=True), None
        if self.b is not None:
            excess = torch.relu(c.abs() - self.a)
            tail = torch.where(excess == 0, 0, excess * (excess / (2 * self.b)))
            other = (self.a * z.abs() - c * z + 0.5 * self.b * z.square() + tail).sum(-1, keepdim=True)
            c, size = c - self.b * z, size + (self.b * z.square()).sum(-1, keepdim=True)
        reach = c if self.nonnegative else c.abs()
        inside = reach <= (self.a if not pinned.ndim else torch.where(self.a == 0, torch.inf, self.a))
        s = torch.where(inside, 1, self.a / torch.where(inside, 1, reach)).amin(-1, keepdim=True)
        gap = 0.5 * (1 - s).square() * size + (self.a * z.abs() - s * c * z).sum(-1, keepdim=True)
        gap = gap + 0.5 * pinned.square().sum(-1, keepdim=True) if pinned.ndim else gap
        gap = gap if other is None else torch.minimum(gap, other)
        if self.nonnegative:
            gap = torch.where((z < 0).any(-1, keepdim=True), torch.inf, gap)
        # What is not a number stays so; rounding may leave a little less than nothing.
        return torch.where(gap <= 0, 0, gap / (0.5 * x.square().sum(-1, keepdim=True)))

    def free(self) -> bool:
        """Whether there are atoms without a penalty, as far as one can look."""
        return self.b is None and not self.nonnegative and may_wait(self.a) and bool((self.a == 0).any())

    def _free_part(self, r: Tensor, D: Tensor) -> Tensor:
        """The part of r in the span of the atoms without a penalty, where no dual point has any; the number 0 if none are."""
        if not self.free():
            return r.new_zeros(())
        free = self.a == 0
        if free.ndim == 0 or free.shape[-1] == 1:
            return torch.where(free, _within(r, D), 0)
        patterns, which = free.reshape(-1, free.shape[-1]).unique(dim=0, return_inverse=True)
        if len(patterns) == 1:
            return _within(r, D * patterns[0])
        which = which.view(free.shape[:-1]).expand(r.shape[:-1])
        part = torch.zeros_like(r)
        for i, pattern in enumerate(patterns):
            part[which == i] = _within(r[which == i], D * pattern)
        return part

    def to(self, dtype: torch.dtype) -> Weights:
        """The same in another precision."""
        return Weights(self.a.to(dtype), None if self.b is None else self.b.to(dtype), self.nonnegative)

    def take(self, rows: Tensor) -> Weights:
        """Those of some samples."""
        return Weights(_take(self.a, rows), None if self.b is None else _take(self.b, rows), self.nonnegative)

    def scaled(self, sample: Tensor, dictionary: Tensor) -> Weights:
        """Those of the same codes, times dictionary / sample, when x is divided by `sample` and D by `dictionary`."""
        sample, dictionary = sample.to(self.a.dtype), dictionary.to(self.a.dtype)
        b = None if self.b is None else _finite(self.b / dictionary / dictionary)
        return Weights(_finite(self.a / sample / dictionary), b, self.nonnegative)


@dataclass(frozen=True)
class Strong:
    """lam times any convex penalty; `step` is at most 1 / ‖D‖²."""

    penalty: Penalty
    lam: Tensor
    step: Tensor

    def prox(self, v: Tensor, t: Tensor) -> Tensor:
        return self.penalty.prox(v, t * self.lam)

    def gap(self, x: Tensor, D: Tensor, z: Tensor) -> Tensor:
        """How far a proximal gradient step moves z, relative to the longer of the two: (..., 1); 0 at an optimum only."""
        moved = self.prox(z - self.step * ((z @ D.mT - x) @ D), self.step)
        distance, longest = norm(moved - z), torch.maximum(norm(z), norm(moved))
        return torch.where(distance == 0, 0, distance / torch.where(longest == 0, 1, longest))

    def to(self, dtype: torch.dtype) -> Strong:
        """The same in another precision."""
        return Strong(self.penalty, self.lam.to(dtype), self.step.to(dtype))

    def take(self, rows: Tensor) -> Strong:
        """Those of some samples."""
        return Strong(self.penalty, _take(self.lam, rows), self.step)


def weighed(penalty: Penalty, lam: Tensor, D: Tensor) -> Weights | Strong:
    """lam times the penalty, by weights where it has a duality gap; in the dtype of lam."""
    if isinstance(penalty, L1 | NonnegativeL1 | ElasticNet):
        lam = _finite(lam)
    if isinstance(penalty, L1 | NonnegativeL1):
        return Weights(lam, None, isinstance(penalty, NonnegativeL1))
    if isinstance(penalty, ElasticNet):
        return Weights(penalty.ratio * lam, (1 - penalty.ratio) * lam, nonnegative=False)
    return Strong(penalty, lam, dictionary.safe_step(D))


def unit(v: Tensor, *, a_row: bool) -> Tensor:
    """A power of two about the size of the largest entry, (..., 1) a row or () of everything; 1 where all are 0."""
    largest = v.abs().amax(-1, keepdim=True) if a_row else v.abs().amax()
    mantissa = largest.frexp().mantissa
    return torch.where(largest == 0, 1, largest / torch.where(largest == 0, 1, 2 * mantissa))


def duality_gap(x: Tensor, D: Tensor, z: Tensor, lam: float | Tensor, penalty: Penalty) -> Tensor:
    r"""How far the code z is from the optimum of 1/2 ‖x - D z‖² + lam R(z), relative to 1/2 ‖x‖².

    Args:
        x: (..., n_features).
        D: (n_features, n_atoms).
        z: (..., n_atoms).
        lam: a number, or a tensor () or (..., 1) one a sample, or (n_atoms,) one an atom.
        penalty: L1, NonnegativeL1 or ElasticNet; for another one the fixed-point residual comes back.

    Returns: (...,) without a graph, computed in float64 where the device has it: an upper bound on what the objective
        exceeds its minimum by; 0 for x = z = 0. Where lam is 0 the bound is loose, 1/2 ‖x - D z‖².

    Source: Kim, Koh, Lustig, Boyd and Gorinevsky 2007, section III (the scaled residual as a dual point).
    """
    shown = upcast(D).dtype
    x, D, z = (widest(q.detach()) for q in (x, D, z))
    kind = weighed(penalty, strength(lam.detach() if isinstance(lam, Tensor) else lam, D), D)
    if isinstance(kind, Weights):
        scale, spread = unit(x, a_row=True), unit(D, a_row=False)
        x, D, z, kind = x / scale, D / spread, z / scale * spread, kind.scaled(scale, spread)
    return kind.gap(x, D, z).squeeze(-1).to(shown)


def widest(q: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return upcast(q) if q.device.type == "mps" else q.double()


def _within(r: Tensor, atoms: Tensor) -> Tensor:
    """The part of r in the span of the atoms."""
    basis, sizes, _ = torch.linalg.svd(torch.where(atoms.isfinite(), atoms, 0), full_matrices=False)
    basis = basis * (sizes > sizes[0] * max(atoms.shape) * torch.finfo(atoms.dtype).eps)
    return r @ basis @ basis.mT


def _finite(lam: Tensor) -> Tensor:
    """An infinite strength as the largest number there is: 0 times it is 0."""
    return lam.clamp_max(torch.finfo(lam.dtype).max)


def _take(lam: Tensor, rows: Tensor) -> Tensor:
    return lam[rows] if lam.ndim > 1 and lam.shape[0] > 1 else lam
