"""The ridge code: dense, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import checks
from ..ops.norm import strength, upcast
from ..prox import Ridge
from . import dictionary
from .ista import check_strength, per_atom


def ridge(x: Tensor, D: Tensor, lam: float | Tensor) -> Tensor:
    r"""Code x in the dictionary D with a squared penalty, exactly.

    argmin_z  1/2 ‖x - D z‖² + lam 1/2 ‖z‖²  =  (D^T D + lam I)^{-1} D^T x  =  D^T (D D^T + lam I)^{-1} x

    Args:
        x: (..., n_features).
        D: (n_features, n_atoms).
        lam: > 0: a number, or a tensor () or (..., 1) one a sample, or (n_atoms,) one an atom. May need grad.

    Returns: z (..., n_atoms), by one solve in the smaller of the two dimensions.

    Raises: TypeError for dtypes; ValueError for shapes and for a number lam that is not positive.

    Source: Hoerl and Kennard 1970.

    When not to use: for sparse codes: nothing here is exactly zero.

    >>> import torch, sparselayers.functional as F
    >>> F.ridge(torch.tensor([1.0, 2.0]), torch.eye(2), 1.0)
    tensor([0.5000, 1.0000])
    """
    dictionary.check(x, D)
    checks.number(lam, "lam", low=0.0, open_low=True)
    check_strength(lam, D.shape[1], Ridge())
    n_features, n_atoms = D.shape
    dtype, x, D = D.dtype, upcast(x), upcast(D)
    lam = strength(lam, D)
    if per_atom(lam) or n_atoms <= n_features:
        return _solve(D.mT @ D, lam.expand(*lam.shape[:-1], n_atoms), x @ D).to(dtype)
    return (_solve(D @ D.mT, lam.expand(*lam.shape[:-1], n_features), x) @ D).to(dtype)


def _solve(gram: Tensor, diagonal: Tensor, right: Tensor) -> Tensor:
    """(gram + diag)^-1 right, row by row; one factorisation where the diagonal is the same for all rows."""
    system = gram + torch.diag_embed(diagonal)
    if system.ndim == 2:
        flat = right.reshape(-1, right.shape[-1])
        return torch.linalg.solve(system, flat.mT).mT.reshape(right.shape)
    return torch.linalg.solve(system, right.unsqueeze(-1)).squeeze(-1)
