"""Least squares over weights of sum 1 and either sign: the affine counterpart of the simplex, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import checks
from ..ops.norm import strength, upcast


def affine_least_squares(x: Tensor, atoms: Tensor, ridge: float | Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Explain each point by an affine combination of atoms: weights of sum 1 and either sign.

    argmin_{sum y = 1}  1/2 ‖x - sum_j y_j k_j‖² + ridge/2 ‖y‖²  =  1/n + C (C^T C + ridge I)^{-1} (x - m)

    with m the mean of the atoms and C the atoms less m: the columns of C sum to 0, so that no constraint is left, and the
    system is of size min(n, d). Weights do not change when x and atoms are shifted or rotated together; ridge is absolute.

    Args:
        x: (..., d).
        atoms: (..., n, d); the leading axes broadcast against those of x. (n, d) or (..., 1, n, d) is one set of atoms for
            many points, with one factorisation.
        ridge: > 0: a number, or a tensor that broadcasts to (..., 1), one a point. May need grad.
        mask: boolean, broadcasts to (..., n), True = may be used. What stands in an atom matters to those alone who may
            use it, be it NaN. A mask that differs between points makes one system a point.

    Returns: y (..., n). A point without any atom gets 0, with gradient 0.

    Raises: TypeError for dtypes; ValueError for shapes and for a number ridge that is not positive.

    Source: Roweis and Saul 2000 (the reconstruction weights of locally linear embedding); Hoerl and Kennard 1970.

    When not to use: for zeros, or weights that are shares: `simplex_least_squares` keeps y >= 0.

    >>> import torch, sparselayers.functional as F
    >>> atoms = torch.tensor([[0.0], [2.0]])
    >>> F.affine_least_squares(torch.tensor([3.0]), atoms, ridge=0.5)
    tensor([-0.3000,  1.3000])
    """
    checks.floating(x, "x")
    checks.floating(atoms, "atoms")
    if x.ndim < 1 or atoms.ndim < 2 or x.shape[-1] != atoms.shape[-1]:
        raise ValueError(
            f"x must be (..., d) and atoms (..., n, d) with one d, got {tuple(x.shape)} and {tuple(atoms.shape)}"
        )
    if x.dtype != atoms.dtype:
        raise TypeError(f"x and atoms must have one dtype, got {x.dtype} and {atoms.dtype}; use x.to(atoms.dtype)")
    checks.number(ridge, "ridge", low=0.0, open_low=True)
    checks.per_row(ridge, x, "ridge")
    n, d = atoms.shape[-2:]
    batch = checks.broadcast(x=x.shape[:-1], atoms=atoms.shape[:-2])
    checks.boolean_mask(mask, x.new_empty(()).expand(*batch, n), "weights")
    if isinstance(ridge, Tensor) and ridge.ndim and checks.broadcast(ridge=ridge.shape[:-1], points=batch) != batch:
        raise ValueError(f"ridge of shape {tuple(ridge.shape)} has more points than x and atoms, {tuple(batch)}")
    if n == 0:
        return x.new_zeros(*batch, 0)
    dtype, x, atoms = x.dtype, upcast(x), upcast(atoms)
    ridge = strength(ridge, x)
    x, last = x.expand(*batch, d), slice(-2, -1)
    mask_rows = () if mask is None else mask.shape[last]
    if batch and all(size == 1 for size in (*atoms.shape[-3:-2], *mask_rows, *ridge.shape[last])):
        atoms = atoms if atoms.ndim == 2 else atoms.squeeze(-3)
        mask = mask if mask is None or mask.ndim == 1 else mask.squeeze(-2)
        return _rows(x, atoms, mask, ridge if ridge.ndim < 2 else ridge.squeeze(-2)).to(dtype)
    return _rows(x.unsqueeze(-2), atoms, mask, ridge).squeeze(-2).to(dtype)


def _rows(x: Tensor, atoms: Tensor, mask: Tensor | None, ridge: Tensor) -> Tensor:
    """Points x (..., m, d) of one set of atoms (..., n, d), mask (..., n), ridge (..., 1) -> weights (..., m, n)."""
    n, d = atoms.shape[-2:]
    usable = torch.ones(n, 1, dtype=torch.bool, device=x.device) if mask is None else mask.unsqueeze(-1)
    count = usable.sum(-2, keepdim=True).clamp_min(1)
    atoms = torch.where(usable, atoms, 0)
    mean = atoms.sum(-2, keepdim=True) / count
    columns = torch.where(usable, atoms - mean, 0)
    right, even = (x - mean).mT, (usable / count).to(x.dtype)
    ridge = ridge.unsqueeze(-1) if ridge.ndim else ridge
    if n <= d:
        gram = columns @ columns.mT
        # Along 1 the system would divide rounding by the ridge; what is asked for has nothing there.
        size = gram.detach().diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        found = _solved(gram + size * even * usable.mT, ridge, columns @ right)
    else:
        found = columns @ _solved(columns.mT @ columns, ridge, right)
    return torch.where(usable, even + found, 0).mT


def _solved(gram: Tensor, ridge: Tensor, right: Tensor) -> Tensor:
    system = gram + ridge * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve(right, torch.linalg.cholesky_ex(system)[0])
