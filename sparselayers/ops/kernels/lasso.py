"""The Lasso by a kernel, or None where plain torch operations must do it."""

from __future__ import annotations

import torch
from torch import Tensor

from .switch import serve

MOST_ATOMS = 2048  # the Gram matrix and two of its size a thread lie in memory


def lasso_codes(
    x: Tensor, D: Tensor, a: Tensor, b: Tensor | None, nonnegative: bool, unit: Tensor, tol: float, most: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """argmin_z  1/2 ‖x - D z‖² + sum a abs(z) + b/2 z²  of x (B, n_features): codes (B, n_atoms) times unit, gaps, passes.

    a, b: (), (n_atoms,), (B, 1) or (B, n_atoms); unit: (B, 1).
    """
    if serve(x) != "numba" or serve(D) != "numba" or D.shape[1] > MOST_ATOMS:
        return None
    from . import numba_lasso

    a, b = (torch.atleast_2d(q.double()).contiguous() for q in (a, torch.zeros_like(a) if b is None else b))
    return numba_lasso.lasso(x.contiguous(), D, a, b, nonnegative, unit.double().reshape(-1), tol, most)
