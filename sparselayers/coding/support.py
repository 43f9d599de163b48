"""The linear equations on the support of each code: H v = g with H = D_S^T D_S + diag(b) there, v = 0 elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.eager import may_wait
from ..ops.kernels.lasso import pulled_codes
from .certificate import widest

SLIGHT = 1e-9  # of the mean squared size of a support's atoms: far below what counts, far above rounding
REFINEMENTS = 2  # each reduces what `Inverse` is short of by the same factor again
AT_ONCE = 2**23  # entries of atoms that are gathered at a time


class Inverse:
    """Nearly H^{-1} on the support of each code, and 0 off it; on a support of dependent atoms nearly the pseudoinverse.

    With A = H + slight I it is A^{-1} H A^{-1}, which vanishes where H does. H is used as the product of the atoms that
    it is made of, so that rounding cannot leave its range.
    """

    def __init__(self, z: Tensor, D: Tensor, b: Tensor | None) -> None:
        member = z.abs() > 0  # not of a code that is NaN
        if may_wait(z):
            room = max(1, int(member.sum(-1).max())) if z.numel() else 1
        else:
            room = min(D.shape) if b is None else D.shape[1]
        kept, self.place = torch.where(member, z.abs(), 0).topk(room, dim=-1)
        atoms, inside = widest(D), (kept > 0).to(widest(D).dtype)
        self.inside = inside
        self.rows = atoms.mT[self.place] * inside.unsqueeze(-1)
        self.ridge = None if b is None else widest(b).expand(z.shape).gather(-1, self.place) * inside
        gram = self.rows @ self.rows.mT
        if self.ridge is not None:
            gram = gram + torch.diag_embed(self.ridge)
        size = torch.diagonal(gram, dim1=-2, dim2=-1).sum(-1, keepdim=True) / inside.sum(-1, keepdim=True).clamp_min(1)
        size = torch.where(size > 0, size, 1)
        self.factor = torch.linalg.cholesky_ex(gram + torch.diag_embed(size * (1 - inside + SLIGHT)))[0]

    def __call__(self, g: Tensor) -> Tensor:
        small = self._smoothed(widest(g).gather(-1, self.place) * self.inside)
        image = (self.rows @ (self.rows.mT @ small.unsqueeze(-1))).squeeze(-1)
        image = image if self.ridge is None else image + self.ridge * small
        found = self._smoothed(image) * self.inside
        return torch.zeros_like(g).scatter(-1, self.place, found.to(g.dtype))

    def _smoothed(self, small: Tensor) -> Tensor:
        return torch.cholesky_solve(small.unsqueeze(-1), self.factor).squeeze(-1)


def inverted(g: Tensor, z: Tensor, D: Tensor, b: Tensor | None) -> Tensor:
    """H^{-1} g on the support of each code, 0 elsewhere: by a kernel, or a few samples at a time, where that can be."""
    if not may_wait(g):
        return _refined(g, z, D, b)
    shape, n_atoms = z.shape, D.shape[1]
    ridge = None if b is None else b.expand(shape).reshape(-1, n_atoms)
    g, z = g.reshape(-1, n_atoms), z.reshape(-1, n_atoms)
    served = pulled_codes(g, z, D, ridge)
    if served is None:
        return _in_parts(g, z, D, ridge).view(shape)
    v, dependent = served
    if dependent.any():
        v[dependent] = _in_parts(g[dependent], z[dependent], D, None if ridge is None else ridge[dependent])
    return v.view(shape)


def _in_parts(g: Tensor, z: Tensor, D: Tensor, b: Tensor | None) -> Tensor:
    """`_refined` for rows, so many at a time that the atoms that are gathered find room."""
    if not g.shape[0]:
        return torch.zeros_like(g)
    room = max(1, int((z.abs() > 0).sum(-1).max()))
    size = max(1, AT_ONCE // (room * (room + D.shape[0])))
    parts = zip(g.split(size), z.split(size), [None] * g.shape[0] if b is None else b.split(size), strict=False)
    return torch.cat([_refined(part, codes, D, ridge) for part, codes, ridge in parts])


def _refined(g: Tensor, z: Tensor, D: Tensor, b: Tensor | None) -> Tensor:
    inverse = Inverse(z, D, b)
    v = inverse(g)
    for _ in range(REFINEMENTS):
        image = (v @ D.mT) @ D
        v = v + inverse(g - (image if b is None else image + b * v))
    return v
