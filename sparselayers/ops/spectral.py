"""Spectral facts about a dictionary: ‖D‖², mutual coherence, the analytic weight."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .norm import upcast

EXACT_UP_TO = 512  # an eigenvalue problem of this size costs less than one pass of a layer that large
POWER_STEPS = 100
POWER_MARGIN = 1.05


def squared_norm(D: Tensor) -> Tensor:
    r"""‖D‖_2², the Lipschitz constant of z -> D^T (D z - x), differentiably: 1 / squared_norm(D) is a safe step.

    Up to 512 rows or columns it is exact: the largest eigenvalue of the smaller Gram matrix. Beyond that it is a power
    iteration of 100 steps raised by 5 %: a value that errs on the safe side, whose gradient is that of the leading
    singular vector held fixed (right to first order, not to second).

    Args:
        D: (..., n_features, n_atoms).

    Returns: (...,), in at least 32 bits; NaN for a D that holds NaN or inf.

    >>> import torch
    >>> from sparselayers.ops.spectral import squared_norm
    >>> squared_norm(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    tensor(9.)
    """
    wide = upcast(D if D.shape[-2] <= D.shape[-1] else D.mT)
    largest = wide.detach().abs().amax((-2, -1))
    finite = largest.isfinite()  # an eigenvalue solver raises on NaN and inf; here they come out as NaN
    scale = torch.where(finite & (largest > 0), largest, 1)
    wide = torch.where(finite[..., None, None], wide / scale[..., None, None], 0)
    bound = _largest_eigenvalue(wide) * scale.square()
    return torch.where(finite, bound, torch.nan)


def _largest_eigenvalue(wide: Tensor) -> Tensor:
    """Of wide wide^T."""
    if wide.shape[-2] <= EXACT_UP_TO:
        return torch.linalg.eigvalsh(wide @ wide.mT)[..., -1]
    fixed = wide.detach()
    u = torch.arange(wide.shape[-2], device=wide.device, dtype=wide.dtype).square().cos().unsqueeze(-1)
    for _ in range(POWER_STEPS):
        u = fixed @ (fixed.mT @ u)
        u = u / torch.linalg.vector_norm(u, dim=-2, keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)
    return POWER_MARGIN * (wide.mT @ u).square().sum((-2, -1))


def coherence(D: Tensor, W: Tensor | None = None) -> Tensor:
    r"""Mutual coherence max_{i != j} abs(w_i^T d_j), with W = D (of unit atoms) by default.

    Args:
        D: (n_features, n_atoms), at least two atoms.
        W: the same shape.

    >>> import torch
    >>> from sparselayers.ops.spectral import coherence
    >>> coherence(torch.tensor([[1.0, 0.6], [0.0, 0.8]]))
    tensor(0.6000)
    """
    products = ((D if W is None else W).mT @ D).abs()
    return (products - torch.diag(products.diagonal())).amax()


def analytic_weight(D: Tensor) -> Tensor:
    r"""The ALISTA weight: each column has w_i^T d_i = 1 and the least sum of squared products with all atoms.

    w_i = argmin ‖w^T D‖² subject to w^T d_i = 1  =  (D D^T)^+ d_i / (d_i^T (D D^T)^+ d_i)

    Args:
        D: (n_features, n_atoms), no zero atom.

    Returns: W, the shape of D. With it in the place of D in D^T, and step 1, homotopy layers suit sparse codes of
        incoherent dictionaries.

    Raises: TypeError for an integer D; ValueError unless D is a matrix.

    Source: Liu, Chen, Wang and Yin (ALISTA), ICLR 2019, eq. 16, in closed form.

    When not to use: for dense codes, where step 1 can diverge (W^T D has eigenvalues past 2 at 64 x 256).

    >>> import torch, sparselayers.functional as F
    >>> D = torch.tensor([[1.0, 0.0, 0.6], [0.0, 1.0, 0.8]])
    >>> (F.analytic_weight(D) * D).sum(0)
    tensor([1., 1., 1.])
    """
    checks.floating(D, "D")
    if D.ndim != 2:
        raise ValueError(f"D must be a matrix (n_features, n_atoms), got shape {tuple(D.shape)}")
    dual = _dual(D)
    return (dual / (upcast(D) * dual).sum(0)).to(D.dtype)


def leverage(D: Tensor) -> Tensor:
    """d_i^T (D D^T)^+ d_i of each atom, (n_atoms,): with the analytic weight W, D^+ r = leverage * W^T r."""
    return (upcast(D) * _dual(D)).sum(0).to(D.dtype)


def _dual(D: Tensor) -> Tensor:
    """(D D^T)^+ D = (D^+)^T, in at least 32 bits."""
    return torch.linalg.pinv(upcast(D)).mT
