"""The converged code: the Lasso and its relatives with a certificate, and four ways to differentiate through it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..ops import checks
from ..ops.norm import strength, upcast
from ..prox import L1, Penalty
from ..proxgrad import proximal_gradient
from . import dictionary
from .certificate import weighed
from .implicit import with_derivative
from .ista import check_strength
from .solver import Solved, solve

Backward = Literal["implicit", "unroll", "truncated", "danskin"]
BACKWARDS = ("implicit", "unroll", "truncated", "danskin")


class LassoResult(NamedTuple):
    """Codes (..., n_atoms), their certificates (...,), and the passes of the solver that each sample took (...,)."""

    code: Tensor
    gap: Tensor
    iterations: Tensor


def lasso(
    x: Tensor,
    D: Tensor,
    lam: float | Tensor,
    *,
    penalty: Penalty = L1(),  # noqa: B008 - a frozen dataclass
    tol: float = 1e-6,
    max_iter: int = 1000,
    backward: Backward = "implicit",
    backward_steps: int = 50,
) -> LassoResult:
    r"""Code x in the dictionary D to the optimum, with a certificate for each sample.

    argmin_z  1/2 ‖x - D z‖² + lam R(z)

    On the support S of a code and with its signs s the optimum is (D_S^T D_S)^{-1} (D_S^T x - lam s); the gradient is that
    of this closed form. Each sample stops by itself, and its code does not depend on its batch.

    Args:
        x: (..., n_features).
        D: (n_features, n_atoms).
        lam: strength >= 0: a number, or a tensor () or (..., 1) one a sample, or (n_atoms,) one an atom (separable
            penalties). May need grad.
        penalty: R. L1, NonnegativeL1 and ElasticNet have a duality gap; any other convex penalty is run to a fixed point.
        tol: a sample stops once gap <= tol.
        max_iter: passes at most; if they end first, the honest gap comes back and no exception.
        backward: how gradients reach x, D and lam.
            "implicit": exact on the support, in memory that does not grow with the passes of the solver. Where the atoms
            of the support are dependent, the derivative of least norm. Other penalties than the three above: exact at the
            fixed point, with n_atoms² entries a sample.
            "unroll": through steps of FISTA, all of which are kept; errors gather while the support still changes.
            "truncated": through the last `backward_steps` steps of FISTA, run on from the optimum.
            "danskin": the code is a constant. For a loss that is the Lasso's own value this is its exact gradient.
        backward_steps: steps that "truncated" keeps.

    Returns: LassoResult(code (..., n_atoms), gap (...,), iterations (...,)). gap is the duality gap relative to 1/2 ‖x‖²
        (0 where x = 0), an upper bound on the suboptimality; for a penalty without one, how far a proximal gradient step
        moves the code, relative to its norm.

    Raises: TypeError for dtypes; ValueError for shapes, hyperparameters and a penalty that is not convex.

    Source: Tibshirani 1996 (the problem); Kim, Koh, Lustig, Boyd and Gorinevsky 2007 (the certificate); Malezieux, Moreau
        and Kowalski, ICLR 2022 (the derivatives).

    When not to use: where a fixed, small number of steps is enough, as inside a deep network: `fista`.

    >>> import torch, sparselayers.functional as F
    >>> F.lasso(torch.tensor([1.0, -0.2]), torch.eye(2), 0.5).code
    tensor([0.5000, 0.0000])
    """
    check_options(penalty, tol, max_iter, backward, backward_steps)
    dictionary.check(x, D)
    checks.number(lam, "lam", low=0.0)
    check_strength(lam, D.shape[1], penalty)
    if torch.is_autocast_enabled(x.device.type):  # the certificate needs all of its digits
        with torch.autocast(x.device.type, enabled=False):
            return lasso(
                x.to(D.dtype), D, lam, penalty=penalty, tol=tol, max_iter=max_iter, backward=backward,
                backward_steps=backward_steps,
            )  # fmt: skip
    dtype, x, D = x.dtype, upcast(x), upcast(D)
    if isinstance(lam, Tensor):
        lam = upcast(lam)
        x = x.expand(*checks.broadcast(x=x.shape[:-1], lam=lam.shape[:-1]), x.shape[-1])
    if backward == "unroll":
        found = _unrolled(x, D, lam, penalty, tol, max_iter)
    else:
        found = solve(x, D, lam, penalty, tol=tol, max_iter=max_iter)
        found = found._replace(code=differentiable(found.code, x, D, lam, penalty, backward, backward_steps))
    return LassoResult(found.code.to(dtype), found.gap, found.iterations)


def differentiable(
    z: Tensor, x: Tensor, D: Tensor, lam: float | Tensor, penalty: Penalty, backward: Backward, steps: int
) -> Tensor:
    """The code z of an optimum, which carries no graph, with the derivative that `backward` names."""
    if backward == "implicit":
        return with_derivative(z, x, D, lam, penalty)
    return _last_steps(z, x, D, lam, penalty, steps) if backward == "truncated" else z


def check_options(penalty: Penalty, tol: float, max_iter: int, backward: str, backward_steps: int) -> None:
    """What can be known before any data."""
    if not isinstance(penalty, Penalty):
        raise TypeError(f"penalty must be a Penalty such as L1(), got {penalty!r}")
    if not penalty.convex:
        raise ValueError(f"penalty must be convex, or no certificate exists, got {penalty!r}; use fista with a depth")
    checks.number(tol, "tol", low=0.0)
    checks.count(max_iter, "max_iter")
    checks.count(backward_steps, "backward_steps")
    if backward not in BACKWARDS:
        raise ValueError(f"backward must be one of {', '.join(map(repr, BACKWARDS))}, got {backward!r}")


def _unrolled(x: Tensor, D: Tensor, lam: float | Tensor, penalty: Penalty, tol: float, max_iter: int) -> Solved:
    """FISTA from zero with all its steps in the graph, each sample until its certificate is at most tol."""
    kind = weighed(penalty, strength(lam, D), D)
    fixed = weighed(penalty, strength(lam.detach() if isinstance(lam, Tensor) else lam, D), D.detach())
    step = dictionary.safe_step(D)

    def gap(z: Tensor) -> Tensor:
        return fixed.gap(x.detach(), D.detach(), z.detach())

    found = proximal_gradient(
        x.new_zeros(*x.shape[:-1], D.shape[1]),
        grad=dictionary.gradient(x, D),
        prox=lambda v, _: kind.prox(v, step),
        step=step,
        depth=max_iter,
        momentum=True,
        restart="sample",
        stop=lambda z: gap(z) <= tol,
    )
    # A sample that was right from the start took no step; it belongs to the graph all the same, with derivative 0.
    code = found.z + 0 * kind.prox(step * (x @ D), step)
    return Solved(code, gap(code).squeeze(-1), torch.as_tensor(found.steps).squeeze(-1))


def _last_steps(z: Tensor, x: Tensor, D: Tensor, lam: float | Tensor, penalty: Penalty, steps: int) -> Tensor:
    """The value of z, with the derivative of this many steps of FISTA from it. At an optimum the step size has none."""
    step = dictionary.safe_step(D.detach())
    kind = weighed(penalty, strength(lam, D), D)
    found = proximal_gradient(
        z.detach(),
        grad=dictionary.gradient(x, D),
        prox=lambda v, _: kind.prox(v, step),
        step=step,
        depth=steps,
        momentum=True,
        restart=None,
    )
    return z + (found.z - found.z.detach())
