"""Do steps with the analytic weight converge? How fast they do on supports drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import checks
from ..ops.norm import strength, upcast


def analytic_rate(
    D: Tensor,
    n_active: int,
    *,
    step: float | Tensor = 1.0,
    draws: int = 100,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The rate at which steps with the analytic weight approach a code, once its support is found, on drawn supports.

    rate = spectral radius of I - step W_S^T D_S,  W = F.analytic_weight(D),  S of n_active atoms drawn at random

    On S the error of a step without shrinkage is (I - step W_S^T D_S) times the error before it. Below 1 it vanishes,
    rate^depth in `depth` steps; above 1 it grows, and `LISTA` as "alista" or "hyper" diverges on codes with that support.

    Args:
        D: (n_features, n_atoms).
        n_active: atoms in a support, from 1 to n_atoms.
        step: step size.
        draws: how many supports.
        generator: on the device of D; None is one with the seed 0.

    Returns: (draws,), without a graph; `analytic_rate(D, n_active).max() < 1` is what one wants to see. It is a sample, no
        bound: a support that was not drawn can be worse. Nor does it say that the support will be found, which is
        harder the more atoms are active.

    Raises: TypeError for an integer D; ValueError for shapes and counts.

    Source: Liu, Chen, Wang and Yin (ALISTA), ICLR 2019, whose proof contracts on the support; the eigenvalues of
        W_S^T D_S are those of the Gram matrix of the atoms of S, whitened and of unit norm.

    When not to use: for "lista" and "cp" that were trained: their matrices are others.

    >>> import torch, sparselayers.functional as F
    >>> D = torch.tensor([[1.0, 0.0, 0.6], [0.0, 1.0, 0.8]])
    >>> bool(F.analytic_rate(D, 1).max() < 1e-6), round(float(F.analytic_rate(D, 2).max()), 3)
    (True, 0.686)
    """
    checks.floating(D, "D")
    if D.ndim != 2:
        raise ValueError(f"D must be a matrix (n_features, n_atoms), got shape {tuple(D.shape)}")
    checks.count(n_active, "n_active")
    if n_active > D.shape[1]:
        raise ValueError(
            f"n_active must be at most {D.shape[1]}, the atoms of D of shape {tuple(D.shape)}, got {n_active}"
        )
    checks.count(draws, "draws")
    checks.number(step, "step", low=0.0, open_low=True)
    wide = upcast(D.detach())
    _, values, vectors = torch.linalg.svd(wide, full_matrices=False)
    rank = values > values[0] * max(D.shape) * torch.finfo(wide.dtype).eps
    whitened = torch.where(rank[:, None], vectors, 0)
    length = torch.linalg.vector_norm(whitened, dim=0)
    whitened = whitened / torch.where(length > 0, length, 1)
    generator = torch.Generator(D.device).manual_seed(0) if generator is None else generator
    order = torch.rand(draws, D.shape[1], generator=generator, device=D.device).argsort(-1)
    chosen = whitened[:, order[:, :n_active]].transpose(0, 1)
    eigenvalues = torch.linalg.eigvalsh(chosen.mT @ chosen)
    return (1 - strength(step, wide) * eigenvalues).abs().amax(-1).to(D.dtype)
