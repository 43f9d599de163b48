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


def pulled_codes(g: Tensor, z: Tensor, D: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """v = (D_S^T D_S + b)^-1 g on the support of each code z (B, n_atoms), 0 elsewhere, but for some rows (B,); or None.

    Those rows, where the atoms of the support are dependent, are 0 and True. b: (B, n_atoms).
    """
    if serve(g) != "numba" or serve(D) != "numba" or D.shape[1] > MOST_ATOMS:
        return None
    from . import numba_lasso_pull

    b = torch.zeros(1, 1, dtype=torch.float64) if b is None else b.double().contiguous()
    return numba_lasso_pull.pull(z.detach().contiguous(), g.detach().contiguous(), D.detach(), b)
