"""What coding needs to know of a dictionary D (n_features, n_atoms): checks, the gradient, a safe step, a random start."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..ops import checks
from ..ops.spectral import squared_norm


def check(x: Tensor, D: Tensor) -> None:
    """TypeError or ValueError unless D is (n_features, n_atoms) and x (..., n_features), of one floating dtype."""
    checks.floating(x, "x")
    checks.floating(D, "D")
    if D.ndim != 2 or 0 in D.shape:
        raise ValueError(f"D must be a matrix (n_features, n_atoms) with entries, got shape {tuple(D.shape)}")
    if x.ndim == 0 or x.shape[-1] != D.shape[0]:
        raise ValueError(
            f"x must be (..., {D.shape[0]}) for D of shape {tuple(D.shape)} (n_features, n_atoms), got {tuple(x.shape)}"
            + ("; transpose D" if x.ndim and x.shape[-1] == D.shape[1] else "")
        )
    if x.dtype != D.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"x and D must have one dtype, got {x.dtype} and {D.dtype}; use x.to(D.dtype)")


def safe_step(D: Tensor) -> Tensor:
    """1 / ‖D‖², through which the gradient flows; 1 for a dictionary that is zero."""
    bound = squared_norm(D)
    return 1 / torch.where(bound > 0, bound, 1)


def gradient(x: Tensor, D: Tensor) -> Callable[[Tensor], Tensor]:
    """z -> D^T (D z - x), by one Gram product where that is cheaper than two products (n_atoms < 2 n_features)."""
    n_features, n_atoms = D.shape
    if n_atoms < 2 * n_features:
        gram, correlation = D.mT @ D, x @ D
        return lambda z: z @ gram - correlation
    return lambda z: (z @ D.mT - x) @ D


def random_atoms(n_features: int, n_atoms: int, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    """Gaussian atoms of unit norm."""
    D = torch.randn(n_features, n_atoms, device=device, dtype=dtype)
    return D / torch.linalg.vector_norm(D, dim=0)
