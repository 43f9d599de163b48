"""Least squares over the simplex: the weights with which atoms explain a point, with a certificate."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..ops import checks
from ..ops.eager import is_plain_eager, may_branch
from ..ops.kernels.nearest import nearest_points, pulled_gradients
from ..ops.norm import upcast
from ..ops.project import project_simplex
from ..proxgrad import proximal_gradient
from .active_set import nearest_atom, polish
from .least_squares import LeastSquares

Backward = Literal["implicit", "unroll"]
Strength = float | Tensor

DESCENT = 30  # steps of projected gradient, which find most of the support, before the active set settles the rest
MOST_WITH_RIDGE = 256  # a ridge has supports of any size; beyond this it is left to projected gradient alone


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
    locality: Strength = 0.0,
    ridge: Strength = 0.0,
    tol: float = 1e-6,
    max_iter: int = 1000,
    backward: Backward = "implicit",
) -> SimplexResult:
    r"""Explain each point by a convex combination of atoms, with exact zeros and a certificate.

    argmin_y over the simplex  1/2 ‖x - sum_j y_j k_j‖² + locality/2 sum_j y_j ‖x - k_j‖² + ridge/2 ‖y‖²

    Wolfe's active-set method in float64, each query for itself: by a kernel on the CPU, else in torch operations after a
    few steps of accelerated projected gradient. No query sees the others, nor an atom that it may not use. With
    locality > 0 or outside the atoms' hull the answer does not change when x and atoms are scaled, shifted or rotated
    together; inside the hull, at locality = ridge = 0, many weights explain x exactly and any of them is returned.

    Args:
        x: (..., d).
        atoms: (..., n, d); the leading axes broadcast against those of x. (n, d) or (..., 1, n, d) is one set of atoms for
            many queries and is not expanded.
        mask: boolean, broadcasts to (..., n), True = may be used. What stands in an atom matters to those alone who may
            use it, be it NaN.
        locality: >= 0, dimensionless; a number or a tensor that broadcasts to (..., 1); may need grad.
        ridge: >= 0, absolute: it breaks the scale invariance; likewise.
        tol: a query stops once gap <= tol.
        max_iter: steps at most, each of projected gradient or one atom that joins or leaves the support; if they end
            first, the honest gap comes back and no exception.
        backward: "implicit": the exact derivative of the optimum on its support, in memory that does not grow with the
            steps; "unroll": through steps of projected gradient alone, which may take thousands.

    Returns: SimplexResult(weights (..., n), gap (...,), iterations (...,)). gap is the duality gap relative to
        max_j ‖k_j - x‖² (0 where that is 0), an upper bound on the suboptimality. A query without any atom gets 0.

    Raises: TypeError for dtypes; ValueError for shapes, negative numbers and an unknown `backward`.

    Source: Wolfe 1976 (problem and method, as the nearest point of a polytope); Beck and Teboulle 2009; Jaggi 2013 (the gap).

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
        nothing = (x.unsqueeze(-2) * atoms).sum(-1)  # with a graph, through which the gradient is 0
        return SimplexResult(nothing, x.new_zeros(batch), torch.zeros(batch, dtype=torch.long, device=x.device))
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


def _as_row(q: Strength) -> Strength:
    return q.unsqueeze(-2) if isinstance(q, Tensor) and q.ndim else q


def _solve(
    x: Tensor,
    atoms: Tensor,
    mask: Tensor | None,
    locality: Strength,
    ridge: Strength,
    tol: float,
    max_iter: int,
    backward: Backward,
) -> SimplexResult:
    """Queries x (..., m, d), atoms (..., n, d), mask (..., m, n) -> weights (..., m, n), gap and iterations (..., m, 1)."""
    shared = mask is None or all(size == 1 for size in mask.shape[slice(-1) if atoms.ndim == 2 else slice(-2, -1)])
    if backward == "unroll":
        problem = LeastSquares.of(x, atoms, mask, locality, ridge)
        y, steps = _descend(problem, shared, tol, max_iter)
        # A query that was right from the start took no step; it belongs to the graph all the same, with derivative 0.
        return SimplexResult(y + 0 * problem.linear, problem.fixed(y.dtype).gap(y.detach()), steps)
    served = nearest_points(x, atoms, mask, locality, ridge, tol, max_iter)
    leaves = [q for q in (x, atoms, locality, ridge) if isinstance(q, Tensor)]
    if served is not None:
        y, gap, steps = served
        if torch.is_grad_enabled() and any(q.requires_grad for q in leaves):
            y = with_derivative(y, x, atoms, mask, locality, ridge)
        return SimplexResult(y, gap, steps)
    problem = LeastSquares.of(x, atoms, mask, locality, ridge)
    y, gap, steps = _search(problem, shared, tol, max_iter)
    if not is_plain_eager(y) or (torch.is_grad_enabled() and any(q.requires_grad for q in leaves)):
        y = problem.attach_derivative(y)
    return SimplexResult(y, gap, steps)


def _descend(problem: LeastSquares, shared: bool, tol: float, depth: int) -> tuple[Tensor, Tensor]:
    """Projected gradient with momentum from even weights, each query until its gap is below tol."""
    usable, fixed = problem.usable, problem.fixed(problem.x.dtype)
    found = proximal_gradient(
        project_simplex(torch.zeros_like(usable, dtype=problem.x.dtype), mask=usable),
        grad=problem.gradient,
        prox=lambda v, k: project_simplex(v, mask=usable),
        step=1 / problem.curvature(shared),
        depth=depth,
        momentum=True,
        restart="sample",
        stop=lambda y: fixed.gap(y.detach()) <= tol,
    )
    return found.z, torch.as_tensor(found.steps)


def _search(problem: LeastSquares, shared: bool, tol: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The weights, their gap and the steps taken, without a graph: projected gradient, then the active set in float64."""
    n, d = problem.atoms.shape[-2:]
    dtype, exact = problem.x.dtype, problem.fixed(torch.float64)
    ridged = isinstance(problem.ridge, Tensor) or problem.ridge > 0
    settles, room = not ridged or n <= MOST_WITH_RIDGE, n if ridged else min(n, d + 2)
    if settles and torch.compiler.is_compiling():  # a traced step of projected gradient is a long program
        y, steps = nearest_atom(exact), torch.zeros((), dtype=torch.long, device=problem.x.device)
        descent = 0
    else:
        descent = min(most, DESCENT) if settles else most
        y, steps = _descend(problem.fixed(dtype), shared, tol / 2, descent)
    if most > descent:
        passes = most - descent if may_branch(y) else min(most - descent, 3 * room)
        y, more = polish(exact, y.double(), room, tol if dtype == torch.float64 else tol / 2, passes)
        steps = steps + more
    y = torch.where(problem.usable, y, 0).to(dtype)
    return y, exact.gap(y.double()).to(dtype), steps


def with_derivative(
    y: Tensor, x: Tensor, atoms: Tensor, mask: Tensor | None, locality: Strength, ridge: Strength
) -> Tensor:
    """Optimal weights y (..., m, n) of queries x (..., m, d) and atoms (..., n, d), found before, with their derivative."""
    return _Implicit.apply(y, x, atoms, mask, locality, ridge)


class _Implicit(torch.autograd.Function):
    """The identity on weights y that a kernel found, with the derivative of the optimum on their support.

    With M = [[G + ridge, 1], [1, 0]] on the support, w the solution of M [w; .] = [dL/dy; 0], P = w K and r = x - y K:
    (1 + locality) P is the gradient of x, w_i (r + locality (x - k_i)) - y_i P that of k_i, -w ‖x - k‖² / 2 that of the
    locality and -w y that of the ridge.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, atoms: Tensor, mask: Tensor | None, locality: Strength, ridge: Strength
    ) -> Tensor:
        tensors = [q if isinstance(q, Tensor) else None for q in (locality, ridge)]
        ctx.save_for_backward(y, x, atoms, mask, *tensors)
        ctx.numbers = [None if isinstance(q, Tensor) else q for q in (locality, ridge)]
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        y, x, atoms, mask, *tensors = ctx.saved_tensors
        locality, ridge = (q if t is None else t for q, t in zip(ctx.numbers, tensors, strict=True))
        inputs = (x, atoms, locality, ridge)
        wanted = [ctx.needs_input_grad[i] for i in (1, 2, 4, 5)]
        found = None if torch.is_grad_enabled() else pulled_gradients(y, v, *inputs)
        if found is not None:
            gx, gk, gl, gr = (
                _summed(g, q.shape) if want else None for g, q, want in zip(found, inputs, wanted, strict=True)
            )
            return None, gx, gk, None, gl, gr
        with torch.enable_grad():
            chosen = [q for q, want in zip(inputs, wanted, strict=True) if want]
            again = LeastSquares.of(x, atoms, mask, locality, ridge).attach_derivative(y)
        grads = iter(torch.autograd.grad(again, chosen, v, create_graph=torch.is_grad_enabled()))
        gx, gk, gl, gr = (next(grads) if want else None for want in wanted)
        return None, gx, gk, None, gl, gr


def _summed(g: Tensor, shape: torch.Size) -> Tensor:
    return g.view((1,) * (len(shape) - g.ndim) + g.shape).sum_to_size(shape)
