"""The converged Lasso: `solve` brings every sample's certificate under `tol`, each in its own time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.norm import strength, upcast
from ..prox import Penalty
from .certificate import Weights, duality_gap, weighed, widest
from .greedy import greedy
from .ista import per_atom
from .weighted import weighted_lasso


class Solved(NamedTuple):
    """The codes (..., n_atoms), and for each sample its certificate (...,) and the passes that it took (...,)."""

    code: Tensor
    gap: Tensor
    iterations: Tensor


def solve(x: Tensor, D: Tensor, lam: float | Tensor, penalty: Penalty, *, tol: float, max_iter: int) -> Solved:
    r"""argmin_z  1/2 ‖x - D z‖² + lam R(z)  for every sample, certified; without a graph, for checked arguments.

    Args:
        x: (..., n_features).
        D: (n_features, n_atoms).
        lam: a number, or a tensor () or (..., 1) one a sample, or (n_atoms,) one an atom.
        penalty: a convex one; L1, NonnegativeL1 and ElasticNet have a duality gap, others a fixed-point residual.
        tol: a sample is done when its certificate is at most this.
        max_iter: passes that a sample may take. Where they end first the certificate says so.
    """
    batch, dtype = x.shape[:-1], x.dtype
    rows, D = upcast(x.detach()).reshape(-1, x.shape[-1]), upcast(D.detach())
    lam = strength(lam.detach() if isinstance(lam, Tensor) else lam, widest(D[:1]))
    if lam.ndim > (1 if per_atom(lam) else 0):
        lam = lam.expand(*batch, lam.shape[-1]).reshape(-1, lam.shape[-1])
    kind = weighed(penalty, lam, D)
    if isinstance(kind, Weights):
        code, gap, iterations = weighted_lasso(rows, D, kind, tol, max_iter)
    else:
        code, iterations = greedy(rows, D, kind, tol, max_iter)
        gap = kind.gap(widest(rows), widest(D), widest(code)).squeeze(-1).to(code.dtype)
        code = torch.where(gap.isnan().unsqueeze(-1), torch.nan, code)
    if dtype != code.dtype:  # that of the rounded code
        code = code.to(dtype)
        gap = duality_gap(rows, D, code, lam, penalty)
    return Solved(code.view(*batch, D.shape[1]), gap.view(batch), iterations.view(batch))
