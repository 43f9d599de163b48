"""Steepest descent on the Lasso objective by the subgradient of least norm, to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import checks
from ..ops.norm import strength, upcast
from ..ops.shrink import soft_threshold
from ..prox import L1
from . import dictionary
from .ista import check_strength


def subgradient_descent(x: Tensor, D: Tensor, lam: float | Tensor, *, depth: int) -> Tensor:
    r"""Code x in the dictionary D by `depth` steps of steepest descent from zero, each with an exact line search.

    argmin_z  1/2 ‖x - D z‖² + lam ‖z‖_1,  by  z <- z - alpha g,  g the subgradient of least norm: with r = D^T (D z - x)
    g_i = r_i + lam sign(z_i) where z_i != 0,  soft(r_i, lam) where z_i = 0,  and alpha the minimum along -g.

    An arbitrary subgradient need not be a direction of descent; that of least norm is the steepest one. Along it the objective
    is a piecewise quadratic, and alpha often ends on a kink: there an entry becomes exactly zero.

    Args:
        x: (..., n_features).
        D: (n_features, n_atoms).
        lam: strength >= 0: a number, or a tensor () or (..., 1) one a sample, or (n_atoms,) one an atom. May need grad.
        depth: number of steps, at least 1.

    Returns: the code z (..., n_atoms). The objective never increases; lam >= max abs(D^T x) gives exactly zero.

    Raises: TypeError for dtypes, ValueError for shapes and hyperparameters, with the remedy.

    Source: Wolfe, Math. Program. Stud. 1975 (steepest descent by the least subgradient).

    When not to use: to solve a problem: no rate is known, and `fista` needs fewer steps. It is here for comparison.

    >>> import torch, sparselayers.functional as F
    >>> F.subgradient_descent(torch.tensor([1.0, -0.2]), torch.eye(2), 0.5, depth=1)
    tensor([0.5000, 0.0000])
    """
    dictionary.check(x, D)
    checks.count(depth, "depth")
    checks.number(lam, "lam", low=0.0)
    check_strength(lam, D.shape[1], L1())
    dtype, x, D = x.dtype, upcast(x), upcast(D)
    lam = strength(lam, D)
    gradient = dictionary.gradient(x, D)
    z = x.new_zeros(*x.shape[:-1], D.shape[1])
    for _ in range(depth):
        z = _descend(z, least_subgradient(z, gradient(z), lam), D, lam)
    return z.to(dtype)


def least_subgradient(z: Tensor, slope: Tensor, lam: Tensor) -> Tensor:
    """Of f + lam ‖.‖_1 at z, the subgradient of least norm, given the gradient of f."""
    return torch.where(z == 0, soft_threshold(slope, lam.expand_as(slope)), slope + lam * z.detach().sign())


def _descend(z: Tensor, g: Tensor, D: Tensor, lam: Tensor) -> Tensor:
    """z - alpha g at the least point of the objective along -g.

    Its slope is -‖g‖² + alpha ‖D g‖², with a jump of 2 lam abs(g_i) where z_i passes through 0, at alpha_i = z_i / g_i. It
    vanishes, or jumps over 0, at  min_k max(alpha_k, (‖g‖² - the jumps up to alpha_k) / ‖D g‖²)  over the alpha_k in order,
    with alpha_0 = 0.
    """
    crosses = (z * g).detach() > 0
    kinks = torch.where(crosses, z / torch.where(crosses, g, 1), torch.inf)
    order = kinks.detach().argsort(-1)
    jumps = torch.where(crosses, 2 * lam * g.abs(), 0).gather(-1, order)
    passed = torch.nn.functional.pad(jumps.cumsum(-1), (1, 0))
    places = torch.nn.functional.pad(kinks.gather(-1, order), (1, 0))
    curvature = (g @ D.mT).square().sum(-1, keepdim=True)
    curvature = torch.where(curvature == 0, torch.finfo(g.dtype).tiny, curvature)
    smooth = (g.square().sum(-1, keepdim=True) - passed) / curvature
    alpha = torch.maximum(places, smooth).amin(-1, keepdim=True)
    return torch.where(kinks.detach() == alpha.detach(), 0, z - alpha * g)
