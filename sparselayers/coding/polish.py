"""The exact optimum at the support and signs that a code has, for many samples at once."""

from __future__ import annotations

import torch
from torch import Tensor

from .certificate import Weights, widest

ENTRIES = 2**26  # of the gathered atoms and their Gram matrices that lie in memory at a time


def improved(
    x: Tensor, D: Tensor, z: Tensor, y: Tensor, gap: Tensor, weights: Weights, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """z, the point y it goes on from, and gap (B, 1), with the polished codes of some rows where their gap is smaller."""
    x, weights = x[rows], weights.take(rows)
    found = polished(x, D, widest(z[rows]), weights).to(z.dtype)
    reached = weights.gap(x, D, widest(found))
    better = reached < gap[rows]
    return (
        z.index_copy(0, rows, torch.where(better, found, z[rows])),
        y.index_copy(0, rows, torch.where(better, found, y[rows])),
        gap.index_copy(0, rows, torch.where(better, reached, gap[rows])),
    )


def polished(x: Tensor, D: Tensor, z: Tensor, weights: Weights) -> Tensor:
    r"""z_S = (D_S^T D_S + b)^-1 (D_S^T x - a sign(z_S))  on the support S of z, 0 where that has the other sign.

    The optimum, if z has its support and signs; anything else otherwise, so look at the certificate before you take it.

    Args: rows x (B, n_features), z (B, n_atoms), in the precision to compute in.
    """
    room = max(1, int((z != 0).sum(-1).max()))
    size = max(1, ENTRIES // (room * (room + D.shape[0])))
    return torch.cat(
        [_chunk(x[rows], D, z[rows], weights.take(rows), room) for rows in torch.arange(len(z)).split(size)]
    )


def _chunk(x: Tensor, D: Tensor, z: Tensor, weights: Weights, room: int) -> Tensor:
    where = z.abs().topk(room, -1).indices
    sign = z.gather(-1, where).sign()
    member = sign != 0
    atoms = D.mT[where] * member.unsqueeze(-1)
    ridge = (~member).to(z.dtype)
    if weights.b is not None:
        ridge = ridge + weights.b.expand_as(z).gather(-1, where) * member
    right = (atoms @ x.unsqueeze(-1)).squeeze(-1) - weights.a.expand_as(z).gather(-1, where) * sign
    factor = torch.linalg.cholesky_ex(atoms @ atoms.mT + torch.diag_embed(ridge))[0]
    found = torch.cholesky_solve((right * member).unsqueeze(-1), factor).squeeze(-1)
    return torch.zeros_like(z).scatter(-1, where, torch.where(found * sign > 0, found, 0))
