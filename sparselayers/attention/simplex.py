"""Least squares over the simplex: the weights with which atoms explain a point, with a certificate."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..ops import checks
from ..ops.eager import may_branch
from ..ops.norm import upcast
from ..ops.project import project_simplex
from ..ops.spectral import squared_norm
from ..proxgrad import proximal_gradient

Backward = Literal["implicit", "unroll"]

CHORD_STEPS = 4  # two for two orders of derivative, two for what the constant inverse is short of


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
        mask: boolean, broadcasts to (..., n), True = may be used. An atom that no query may use may hold NaN; one that
            some queries may use may not, unless each query has atoms of its own.
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
    batch = checks.broadcast(x=x.shape[:-1], atoms=atoms.shape[:-2])
    checks.boolean_mask(mask, x.new_empty(()).expand(*batch, n), "weights")
    for name, strength in (("locality", locality), ("ridge", ridge)):
        if (
            isinstance(strength, Tensor)
            and strength.ndim
            and checks.broadcast(**{name: strength.shape[:-1], "x and atoms": batch}) != batch
        ):
            raise ValueError(
                f"{name} of shape {tuple(strength.shape)} has more queries than x and atoms, {tuple(batch)}"
            )
    if n == 0:
        return SimplexResult(
            x.new_zeros(*batch, 0), x.new_zeros(batch), torch.zeros(batch, dtype=torch.long, device=x.device)
        )
    shared = atoms.ndim == 2 or (x.ndim >= 2 and atoms.shape[-3] == 1)
    dtype = x.dtype
    x, atoms = upcast(x), upcast(atoms)
    if shared and batch:  # queries that share their atoms become the rows of one matrix product
        atoms = atoms if atoms.ndim == 2 else atoms.squeeze(-3)
        found = _solve(x.expand(*batch, x.shape[-1]), atoms, mask, locality, ridge, tol, max_iter, backward)
    else:
        queries = x.expand(*batch, x.shape[-1]).unsqueeze(-2)
        rows = None if mask is None else mask.unsqueeze(-2)
        found = _solve(queries, atoms, rows, _as_row(locality), _as_row(ridge), tol, max_iter, backward)
        found = SimplexResult(*(q.squeeze(-2) for q in found))
    return SimplexResult(found.weights.to(dtype), found.gap.squeeze(-1), found.iterations.squeeze(-1))


def _as_row(q: float | Tensor) -> float | Tensor:
    return q.unsqueeze(-2) if isinstance(q, Tensor) and q.ndim else q


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
    used = (usable.any(-2) if atoms.ndim > 2 else usable.flatten(0, -2).any(0)).unsqueeze(-1)
    # A shift changes nothing but the conditioning, a scale nothing but what the ridge is measured in; what no query may
    # use takes no part in either, be it NaN.
    centre = torch.where(used, atoms, 0).sum(-2, keepdim=True) / used.sum(-2, keepdim=True).clamp_min(1)
    atoms, x = torch.where(used, atoms - centre, 0), x - centre
    radius = atoms.detach().abs().amax((-2, -1), keepdim=True)
    radius = torch.where(radius > 0, radius, 1)
    problem = _Problem(x / radius, atoms / radius, usable, locality, ridge / radius / radius)
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
    # A query that was right from the start took no step; it belongs to the graph all the same, with derivative 0.
    weights = found.z + 0 * problem.linear if backward == "unroll" else problem.attach_derivative(found.z)
    return SimplexResult(weights, fixed.gap(found.z.detach()), torch.as_tensor(found.steps))


class _Problem:
    """One least squares problem a query: 1/2 ‖x - y K‖² + locality/2 sum y ‖x - k‖² + ridge/2 ‖y‖²."""

    def __init__(self, x: Tensor, atoms: Tensor, usable: Tensor, locality: float | Tensor, ridge: Tensor) -> None:
        self.x, self.atoms, self.usable, self.locality, self.ridge = x, atoms, usable, locality, ridge
        products = x @ atoms.mT
        # ‖x - k‖² without its part in x alone, which is constant on the simplex
        nearness = atoms.square().sum(-1).unsqueeze(-2) / 2 - products
        self.linear = locality * nearness - products

    def detach(self) -> _Problem:
        locality = self.locality.detach() if isinstance(self.locality, Tensor) else self.locality
        return _Problem(self.x.detach(), self.atoms.detach(), self.usable, locality, self.ridge.detach())

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
        products, sizes = self.x @ self.atoms.mT, self.atoms.square().sum(-1).unsqueeze(-2)
        distance = self.x.square().sum(-1, keepdim=True) + sizes - 2 * products
        scale = torch.where(self.usable, distance, 0).amax(-1, keepdim=True)
        return torch.where(scale > 0, excess / torch.where(scale > 0, scale, 1), 0)

    def attach_derivative(self, y: Tensor) -> Tensor:
        r"""The value of y with the derivative of the optimum on its support S.

        On S, with C the projection on sum 0, the optimum solves  C (G_SS + ridge I) y_S = -C linear_S.  Chord steps from
        the constant y, y <- y - N (residual - its constant value), write that in plain torch operations: each step makes
        one more order of derivative exact. N is a constant inverse of C (G_SS + ridge I) C that vanishes where that is
        singular (affinely dependent atoms have many derivatives; this is nearly the smallest); what it is short of the
        inverse elsewhere, each step reduces by the same factor again.
        """
        n, d = self.atoms.shape[-2:]
        if may_branch(y):
            room = max(1, int((y > 0).sum(-1).max())) if y.numel() else 1
        else:
            room = min(n, d + 1) if isinstance(self.locality, Tensor) or self.locality > 0 else n
        kept, where = y.topk(room, dim=-1)
        member = (kept > 0).to(y.dtype)
        across = member.unsqueeze(-2)
        rows = self.atoms.unsqueeze(-3).expand(*y.shape[:-1], n, d)
        rows = rows.gather(-2, where.unsqueeze(-1).expand(*where.shape, d)) * member.unsqueeze(-1)
        linear, ridge = self.linear.gather(-1, where), self.ridge

        def residual(weights: Tensor) -> Tensor:
            explained = (weights.unsqueeze(-2) @ rows) @ rows.mT
            return _centred(explained.squeeze(-2) + linear + ridge * weights, member)

        spread = _centred(rows.detach().mT, across)
        gram = spread.mT @ spread + ridge.detach().unsqueeze(-1) * _centred(torch.diag_embed(member), across)
        count = member.sum(-1, keepdim=True).clamp_min(1)
        mean = torch.diagonal(gram, dim1=-2, dim2=-1).sum(-1, keepdim=True) / count
        mean = torch.where(mean > 0, mean, 1).unsqueeze(-1)
        # What C takes out is filled in, so that only true dependence among the atoms is near singular.
        filled = torch.diag_embed(1 - member) + across * member.unsqueeze(-1) / count.unsqueeze(-1)
        slight = torch.finfo(y.dtype).eps ** 0.5 * torch.eye(room, dtype=y.dtype, device=y.device)
        factor = torch.linalg.cholesky_ex(gram + mean * (filled + slight))[0]

        def inverse(v: Tensor) -> Tensor:
            once = torch.cholesky_solve(v.unsqueeze(-1), factor)
            return _centred(torch.cholesky_solve(gram @ once, factor).squeeze(-1), member)

        start = kept.detach()
        offset = residual(start).detach()
        weights = start
        for _ in range(CHORD_STEPS):
            weights = weights - inverse(residual(weights) - offset)
        return y.scatter_add(-1, where, weights - start)


def _centred(v: Tensor, member: Tensor) -> Tensor:
    """v (..., n) on the members (1, not 0) less its mean over them, and 0 elsewhere."""
    count = member.sum(-1, keepdim=True).clamp_min(1)
    return (v - (v * member).sum(-1, keepdim=True) / count) * member
