"""The derivative of a Lasso code on its support, in memory that does not grow with the steps of the solver.

With the penalty a abs(z) + b 1/2 z², on the support S of a code and with its signs, the optimum solves

    D_S^T (D z - x) + a sign(z) + b z = 0.

With H = D_S^T D_S + diag(b) on S, and g the gradient of a loss in z, v = H^{-1} g there and 0 elsewhere gives

    dx = D v,   dD = (x - D z) v^T - (D v) z^T,   da = -sign(z) v,   db = -z v.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.eager import is_plain_eager, may_branch
from ..ops.norm import strength
from ..prox import Penalty
from .certificate import Weights, weighed, widest
from .fixed_point import attach_fixed_point

CHORD_STEPS = 4  # two for two orders of derivative, two for what the constant inverse is short of
SLIGHT = 1e-9  # of the mean squared size of a support's atoms: far below what counts, far above rounding
AT_ONCE = 2**23  # entries of atoms that are gathered at a time


def with_derivative(z: Tensor, x: Tensor, D: Tensor, lam: float | Tensor, penalty: Penalty) -> Tensor:
    """The code z, which carries no graph, with the derivative of the optimum in x, D and lam."""
    lam = strength(lam, D)
    plain = is_plain_eager(z)
    if plain and not (torch.is_grad_enabled() and any(q.requires_grad for q in (x, D, lam))):
        return z
    kind = weighed(penalty, lam, D)
    if not isinstance(kind, Weights):
        return attach_fixed_point(z, x, D, lam, penalty)
    return _Implicit.apply(z, x, D, kind.a, kind.b) if plain else _attached(z, x, D, kind.a, kind.b)


class _Implicit(torch.autograd.Function):
    """The identity on a code, with the derivative of the optimum; all the work is done in the backward pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, x: Tensor, D: Tensor, a: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(z, x, D, a, b)
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        z, x, D, a, b = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # for a second derivative
            chosen = [q for q, want in zip((x, D, a, b), wanted, strict=True) if want]
            grads = iter(torch.autograd.grad(_attached(z, x, D, a, b), chosen, g, create_graph=True))
            return None, *(next(grads) if want else None for want in wanted)
        v = _solve(g, z, D, b)
        pull = v @ D.mT
        gx, gd, ga, gb = wanted
        return (
            None,
            pull if gx else None,
            _outer(x - z @ D.mT, v) - _outer(pull, z) if gd else None,
            (-z.sign() * v).sum_to_size(a.shape) if ga else None,
            (-z * v).sum_to_size(b.shape) if gb else None,
        )


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """The sum over samples of left right^T."""
    return left.reshape(-1, left.shape[-1]).mT @ right.reshape(-1, right.shape[-1])


def _attached(z: Tensor, x: Tensor, D: Tensor, a: Tensor, b: Tensor | None) -> Tensor:
    """The value of z with its derivative, in plain torch operations: chord steps with a constant inverse.

    Each step makes one more order of derivative exact, and reduces what the inverse is short of by the same factor again.
    """
    start = z.detach()
    signs, inverse = start.sign(), Inverse(start, D.detach(), None if b is None else b.detach())

    def equation(z: Tensor) -> Tensor:
        smooth = (z @ D.mT - x) @ D + a * signs
        return smooth if b is None else smooth + b * z

    offset, code = equation(start).detach(), start
    for _ in range(CHORD_STEPS):
        code = code - inverse(equation(code) - offset)
    return z + (code - start)


def _solve(g: Tensor, z: Tensor, D: Tensor, b: Tensor | None) -> Tensor:
    """H^{-1} g on the support of each code, 0 elsewhere; a few samples at a time where that can be."""
    batch, (n_features, n_atoms) = z.shape[:-1], D.shape
    if not may_branch(g):
        return _refined(g, z, D, b)
    g, z = g.reshape(-1, n_atoms), z.reshape(-1, n_atoms)
    rows = None if b is None else b.expand(*batch, n_atoms).reshape(-1, n_atoms)
    room = max(1, int((z != 0).sum(-1).max())) if z.numel() else 1
    size = max(1, AT_ONCE // (room * (room + n_features)))
    parts = [
        _refined(g[i : i + size], z[i : i + size], D, None if rows is None else rows[i : i + size])
        for i in range(0, g.shape[0], size)
    ]
    return torch.cat(parts).view(*batch, n_atoms) if parts else torch.zeros_like(g).view(*batch, n_atoms)


def _refined(g: Tensor, z: Tensor, D: Tensor, b: Tensor | None) -> Tensor:
    inverse = Inverse(z, D, b)
    v = inverse(g)
    for _ in range(2):
        image = (v @ D.mT) @ D
        v = v + inverse(g - (image if b is None else image + b * v))
    return v


class Inverse:
    """Nearly H^{-1} on the support of each code, and 0 off it; on a support of dependent atoms nearly the pseudoinverse.

    With A = H + slight I it is A^{-1} H A^{-1}, which vanishes where H does. H is used as the product of the atoms that
    it is made of, so that rounding cannot leave its range.
    """

    def __init__(self, z: Tensor, D: Tensor, b: Tensor | None) -> None:
        member = z.abs() > 0  # not of a code that is NaN
        if may_branch(z):
            room = max(1, int(member.sum(-1).max())) if z.numel() else 1
        else:
            room = min(D.shape) if b is None else D.shape[1]
        kept, self.place = torch.where(member, z.abs(), 0).topk(room, dim=-1)
        atoms, inside = widest(D), (kept > 0).to(widest(D).dtype)
        self.inside = inside
        self.rows = atoms.mT[self.place] * inside.unsqueeze(-1)
        self.ridge = None if b is None else widest(b).expand(z.shape).gather(-1, self.place) * inside
        gram = self.rows @ self.rows.mT
        if self.ridge is not None:
            gram = gram + torch.diag_embed(self.ridge)
        size = torch.diagonal(gram, dim1=-2, dim2=-1).sum(-1, keepdim=True) / inside.sum(-1, keepdim=True).clamp_min(1)
        size = torch.where(size > 0, size, 1)
        self.factor = torch.linalg.cholesky_ex(gram + torch.diag_embed(size * (1 - inside + SLIGHT)))[0]

    def __call__(self, g: Tensor) -> Tensor:
        small = self._smoothed(widest(g).gather(-1, self.place) * self.inside)
        image = (self.rows @ (self.rows.mT @ small.unsqueeze(-1))).squeeze(-1)
        image = image if self.ridge is None else image + self.ridge * small
        found = self._smoothed(image) * self.inside
        return torch.zeros_like(g).scatter(-1, self.place, found.to(g.dtype))

    def _smoothed(self, small: Tensor) -> Tensor:
        return torch.cholesky_solve(small.unsqueeze(-1), self.factor).squeeze(-1)
