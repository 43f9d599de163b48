"""The nearest point of a simplex of atoms by a kernel, and its pull-back: None where plain torch operations must do it."""

from __future__ import annotations

import torch
from torch import Tensor

from .switch import serve

Strength = float | Tensor

MOST_WITH_RIDGE = 256  # a ridge has supports of any size, and the factor of one is a square


def nearest_points(
    x: Tensor, atoms: Tensor, mask: Tensor | None, locality: Strength, ridge: Strength, tol: float, most: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Queries x (..., m, d), atoms (..., n, d), mask (..., m, n) -> weights (..., m, n), gap and moves (..., m, 1); or None."""
    n, d = atoms.shape[-2:]
    ridged = isinstance(ridge, Tensor) or ridge > 0
    if serve(x) != "numba" or serve(atoms) != "numba" or (ridged and n > MOST_WITH_RIDGE):
        return None
    from . import numba_wolfe

    batch = x.shape[:-1]
    weights, gap, moves = numba_wolfe.nearest_points(
        *_flat(x, atoms),
        None if mask is None else mask.expand(*batch, n).reshape(-1, n).contiguous(),
        _a_query(locality, batch),
        _a_query(ridge, batch),
        tol,
        most,
        n if ridged else min(n, d + 1),
    )
    return weights.view(*batch, n), gap.view(*batch, 1), moves.view(*batch, 1)


def pulled_gradients(
    y: Tensor, v: Tensor, x: Tensor, atoms: Tensor, locality: Strength, ridge: Strength
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Gradients of x and atoms, and of locality and ridge a query (..., m, 1), from a gradient v of the weights y; or None."""
    if serve(v) != "numba" or serve(y) != "numba" or serve(atoms) != "numba":
        return None
    from . import numba_wolfe_pull

    n, batch = y.shape[-1], x.shape[:-1]
    gx, gk, gl, gr = numba_wolfe_pull.pull_gradients(
        y.reshape(-1, n).contiguous(),
        v.reshape(-1, n).contiguous(),
        *_flat(x, atoms),
        _a_query(locality, batch),
        _a_query(ridge, batch),
    )
    return gx.view(x.shape), gk.view(atoms.shape), gl.view(*batch, 1), gr.view(*batch, 1)


def _flat(x: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (m, d), sets of atoms (sets, n, d), and the set of each query."""
    n, d = atoms.shape[-2:]
    owner = torch.arange(atoms.numel() // (n * d)).view(*atoms.shape[:-2], 1).expand(x.shape[:-1])
    return x.detach().reshape(-1, d).contiguous(), atoms.detach().reshape(-1, n, d).contiguous(), owner.reshape(-1)


def _a_query(strength: Strength, batch: torch.Size) -> Strength:
    if not isinstance(strength, Tensor) or strength.numel() == 1:
        return strength
    return strength.expand(*batch, 1).reshape(-1)
