"""Least squares over the simplex: the weights with which atoms explain a point, with a certificate."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..ops import checks
from ..ops.norm import upcast
from ..ops.project import project_simplex
from ..ops.spectral import squared_norm
from ..proxgrad import proximal_gradient

Backward = Literal["implicit", "unroll"]


class SimplexResult(NamedTuple):
    """Weights (..., n) on the simplex, their relative duality gap (...,), and the steps each query took (...,)."""

    weights: Tensor
    gap: Tensor
    iterations: Tensor


def simplex_least_squares(
    x: Tensor,
    atoms: Tensor,
    *,
    mask: Tensor | None = None,
    locality: float | Tensor = 0.0,
    ridge: float | Tensor = 0.0,
    tol: float = 1e-6,
    max_iter: int = 1000,
    backward: Backward = "implicit",
) -> SimplexResult:
    r"""Explain each point by a convex combination of atoms, with exact zeros and a certificate.

    argmin_y over the simplex  1/2 ‖x - sum_j y_j k_j‖² + locality/2 sum_j y_j ‖x - k_j‖² + ridge/2 ‖y‖²

    Accelerated projected gradient with per-query restart on centred atoms. With locality > 0 or outside the atoms' hull
    the answer does not change when x and atoms are scaled, shifted or rotated together; inside the hull, at
    locality = ridge = 0, many weights explain x exactly and any of them is returned.

    Args:
        x: (..., d).
        atoms: (..., n, d); the leading axes broadcast against those of x. (n, d) or (..., 1, n, d) is one set of atoms for
            many queries and is not expanded.
        mask: boolean, broadcasts to (..., n), True = may be used.
        locality: >= 0, dimensionless; a number or a tensor that broadcasts to (..., 1); may need grad.
        ridge: >= 0, absolute: it breaks the scale invariance; likewise.
        tol: a query stops once gap <= tol (looked at every 5 steps).
        max_iter: steps at most; if they end first, the honest gap comes back and no exception.
        backward: "implicit": the exact derivative of the optimum on its support, in memory that does not grow with the
            steps; "unroll": through the steps.

    Returns: SimplexResult(weights (..., n), gap (...,), iterations (...,)). gap is the duality gap relative to
        max_j ‖k_j - x‖² (0 where that is 0), an upper bound on the suboptimality. A query without any atom gets 0.

    Raises: TypeError for dtypes; ValueError for shapes, negative numbers and an unknown `backward`.

    Source: Wolfe 1976 (the problem, as the nearest point of a polytope); Beck and Teboulle 2009; Jaggi 2013 (the gap).

    When not to use: for weights of either sign, or without sum 1: that is the Lasso or `ridge`.

    >>> import torch, sparselayers.functional as F
    >>> atoms = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 5.0]])
    >>> F.simplex_least_squares(torch.tensor([0.5, -1.0]), atoms).weights
    tensor([0.7500, 0.2500, 0.0000])
    """
    checks.floating(x, "x")
    checks.floating(atoms, "atoms")
    if x.ndim < 1 or atoms.ndim < 2 or x.shape[-1] != atoms.shape[-1]:
        raise ValueError(
            f"x must be (..., d) and atoms (..., n, d) with one d, got {tuple(x.shape)} and {tuple(atoms.shape)}"
        )
    if x.dtype != atoms.dtype:
        raise TypeError(f"x and atoms must have one dtype, got {x.dtype} and {atoms.dtype}; use x.to(atoms.dtype)")
    checks.number(tol, "tol", low=0.0)
    checks.count(max_iter, "max_iter")
    if backward not in ("implicit", "unroll"):
        raise ValueError(f'backward must be "implicit" or "unroll", got {backward!r}')
    n = atoms.shape[-2]
    checks.per_row(locality, x, "locality")
    checks.per_row(ridge, x, "ridge")
    batch = torch.broadcast_shapes(x.shape[:-1], atoms.shape[:-2])
    checks.boolean_mask(mask, x.new_empty(*batch, n) if mask is None else _shape_only(x, (*batch, n)), "the weights")
    shared = atoms.ndim == 2 or (x.ndim >= 2 and atoms.shape[-3] == 1)
    dtype = x.dtype
    x, atoms = upcast(x), upcast(atoms)
    if shared and batch:  # queries that share their atoms become the rows of one matrix product
        atoms = atoms if atoms.ndim == 2 else atoms.squeeze(-3)
        found = _solve(x.expand(*batch, x.shape[-1]), atoms, mask, locality, ridge, tol, max_iter, backward)
    else:
        row = [q.unsqueeze(-2) if isinstance(q, Tensor) and q.ndim else q for q in (mask, locality, ridge)]
        found = _solve(x.expand(*batch, x.shape[-1]).unsqueeze(-2), atoms, *row, tol, max_iter, backward)
        found = SimplexResult(*(q.squeeze(-2) for q in found))
    return SimplexResult(found.weights.to(dtype), found.gap.squeeze(-1), found.iterations.squeeze(-1))


def _shape_only(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.new_empty(()).expand(shape)


def _solve(
    x: Tensor,
    atoms: Tensor,
    mask: Tensor | None,
    locality: float | Tensor,
    ridge: float | Tensor,
    tol: float,
    max_iter: int,
    backward: Backward,
) -> SimplexResult:
    """Queries x (..., m, d), atoms (..., n, d), mask (..., m, n) -> weights (..., m, n), gap and iterations (..., m, 1)."""
    usable = torch.ones((), dtype=torch.bool, device=x.device) if mask is None else mask
    usable = usable.expand(*x.shape[:-1], atoms.shape[-2])
    if mask is not None:  # what no query may use takes no part, be it NaN
        atoms = torch.where(usable.reshape(-1, *usable.shape[-2:]).any(0).any(-2).unsqueeze(-1), atoms, 0) \
            if atoms.ndim == 2 else torch.where(usable.any(-2).unsqueeze(-1), atoms, 0)
    centre = atoms.mean(-2, keepdim=True)  # a shift changes nothing but the conditioning
    problem = _Problem(x - centre, atoms - centre, usable, locality, ridge)
    fixed = problem.detach()
    run = problem if backward == "unroll" else fixed
    step = 1 / run.curvature()
    found = proximal_gradient(
        project_simplex(torch.zeros_like(usable, dtype=x.dtype), mask=usable),
        grad=run.gradient,
        prox=lambda v, k: project_simplex(v, mask=usable),
        step=step,
        depth=max_iter,
        momentum=True,
        restart="sample",
        stop=lambda y: fixed.gap(y.detach()) <= tol,
    )
    weights = found.z if backward == "unroll" else problem.attach_derivative(found.z)
    return SimplexResult(weights, fixed.gap(found.z.detach()), found.steps)


class _Problem:
    """One least squares problem a query: 1/2 ‖x - y K‖² + locality/2 sum y ‖x - k‖² + ridge/2 ‖y‖²."""

    def __init__(
        self, x: Tensor, atoms: Tensor, usable: Tensor, locality: float | Tensor, ridge: float | Tensor
    ) -> None:
        self.x, self.atoms, self.usable, self.locality, self.ridge = x, atoms, usable, locality, ridge
        products = x @ atoms.mT
        # ‖x - k‖² without its part in x alone, which is constant on the simplex
        nearness = atoms.square().sum(-1).unsqueeze(-2) / 2 - products
        self.linear = locality * nearness - products

    def detach(self) -> _Problem:
        plain = [q.detach() if isinstance(q, Tensor) else q for q in (self.locality, self.ridge)]
        return _Problem(self.x.detach(), self.atoms.detach(), self.usable, *plain)

    def gradient(self, y: Tensor) -> Tensor:
        return (y @ self.atoms) @ self.atoms.mT + self.linear + self.ridge * y

    def curvature(self) -> Tensor:
        """An upper bound on the largest eigenvalue of K K^T + ridge I, one a set of atoms (..., 1, 1)."""
        bound = squared_norm(self.atoms)[..., None, None] + self.ridge
        return torch.where(bound > 0, bound, 1)

    def gap(self, y: Tensor) -> Tensor:
        """<g, y> - min g over the usable atoms, relative to max ‖k - x‖²: (..., m, 1)."""
        g = self.gradient(y)
        least = torch.where(self.usable, g, torch.inf).amin(-1, keepdim=True)
        excess = (torch.where(self.usable, g - least, 0) * y).sum(-1, keepdim=True)
        distance = (self.x.unsqueeze(-2) - self.atoms.unsqueeze(-3)).square().sum(-1) if self.x.shape[-1] == 1 else (
            self.x.square().sum(-1, keepdim=True) + self.atoms.square().sum(-1).unsqueeze(-2) - 2 * self.x @ self.atoms.mT
        )
        scale = torch.where(self.usable, distance, 0).amax(-1, keepdim=True)
        return torch.where(scale > 0, excess / torch.where(scale > 0, scale, 1), 0)

    def attach_derivative(self, y: Tensor) -> Tensor:
        r"""The value of y with the derivative of the optimum on its support S.

        On S the optimum solves  [G_SS + ridge I, 1; 1^T, 0] [y_S; mu] = [-linear_S; 1]. The solve is written in plain
        torch operations on the gathered support, so that it can be differentiated in every mode and order; its value
        is replaced by that of the solver.
        """
        n, d = self.atoms.shape[-2:]
        room = n if isinstance(self.ridge, Tensor) or self.ridge > 0 else min(n, d + 1)
        kept, where = y.topk(room, dim=-1)
        member = (kept > 0).to(y.dtype)
        rows = self.atoms.unsqueeze(-3).expand(*y.shape[:-1], n, d)
        rows = rows.gather(-2, where.unsqueeze(-1).expand(*where.shape, d)) * member.unsqueeze(-1)
        ridge = self.ridge if isinstance(self.ridge, Tensor) else y.new_full((1,), self.ridge)
        gram = rows @ rows.mT
        # Affinely dependent atoms have many derivatives; a trace of ridge picks nearly the smallest of them.
        trace = torch.diagonal(gram.detach(), dim1=-2, dim2=-1).sum(-1, keepdim=True)
        slight = torch.finfo(y.dtype).eps * torch.where(trace > 0, trace, 1)
        gram = gram + torch.diag_embed((ridge + slight) * member + (1 - member))
        top = torch.cat([gram, member.unsqueeze(-1)], -1)
        bottom = torch.cat([member, torch.zeros_like(member[..., :1])], -1).unsqueeze(-2)
        right = torch.cat([-self.linear.gather(-1, where) * member, torch.ones_like(member[..., :1])], -1)
        # A query without atoms would be singular; it has no derivative.
        alive = (member.sum(-1, keepdim=True) > 0).unsqueeze(-1)
        system = torch.where(alive, torch.cat([top, bottom], -2), torch.eye(room + 1, dtype=y.dtype, device=y.device))
        solved = torch.linalg.solve(system, right)[..., :room] * member
        moved = solved - solved.detach()
        return y + torch.zeros_like(y).scatter(-1, where, moved)
