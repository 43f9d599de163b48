"""The value that a code is meant to make small."""

from __future__ import annotations

from torch import Tensor

from ..prox import Penalty
from .ista import per_atom


def objective(x: Tensor, D: Tensor, z: Tensor, lam: float | Tensor, penalty: Penalty) -> Tensor:
    """1/2 ‖x - D z‖² + lam R(z) per sample: z (..., n_atoms) -> (...,). lam is a number, (), (..., 1) or (n_atoms,)."""
    misfit = (x - z @ D.mT).square().sum(-1) / 2
    if per_atom(lam):
        return misfit + (lam * penalty.value(z.unsqueeze(-1))).sum(-1)
    return misfit + (lam.squeeze(-1) if isinstance(lam, Tensor) and lam.ndim else lam) * penalty.value(z)
