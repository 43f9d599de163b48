"""Cylinders that overlap: the nearest point with ‖u_g‖ <= tau_g for every group g, by its multipliers.

Groups are sets of blocks; only the squared norms a_k of the blocks matter. The multipliers lam >= 0 maximise the concave

    h(lam) = -1/2 sum_k a_k / d_k - 1/2 sum_g lam_g tau_g²,    d = offset + member^T lam,

and the point is u = v / d, block by block. offset = 1: the projection of v. offset = 0: the support function at v.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .eager import may_branch

RIDGE = 1e-9  # of a matrix with unit diagonal: groups that say the same thing twice make it singular
LENGTHS = (1.0, 0.5, 0.1)  # of a Newton step; the best is taken
SLACK = 1e-8  # how far from its cylinder, relatively, a group counts as inside or outside
EQUAL = 4e-15  # heights that differ by less, relatively, are one: the last two Newton steps do the rest


def multipliers(a: Tensor, member: Tensor, tau: Tensor, offset: float, max_iter: int) -> Tensor:
    """lam (..., G) for squared norms a (..., K), member (G, K) of zeros and ones, tau (..., G) > 0.

    Found without derivatives; then two Newton steps on the active groups in plain operations, which make value, first and
    second derivative right.
    """
    found, active = _search(a.detach(), member, tau.detach(), offset, max_iter)
    lam = found
    for _ in range(2):
        _, length, curvature = _state(lam, a, member, offset)
        lam = lam + _newton(curvature, _by_length(length, tau), active)
    # Where more groups press than blocks can tell apart, the steps may leave for multipliers below 0: they give the
    # derivative there, and the search the value.
    strayed = (lam.detach() < 0).any(-1, keepdim=True)
    return torch.where(strayed, found + (lam - lam.detach()), lam)


def stretch(lam: Tensor, member: Tensor, offset: float) -> Tensor:
    """d (..., K); 1 in the place of 0, where no group is active and v is 0."""
    d = offset + lam @ member
    return torch.where(d == 0, 1, d)


def _search(a: Tensor, member: Tensor, tau: Tensor, offset: float, max_iter: int) -> tuple[Tensor, Tensor]:
    """Ascent of h: of Newton steps of several lengths, a multiplicative and a gradient step the best, row by row.

    Returns the multipliers, and which groups are active.
    """
    overlap = member.sum(0).amax()
    lam = torch.relu((a @ member.mT).sqrt() / tau - offset) / overlap
    for _ in range(max_iter):
        _, length, _ = _state(lam, a, member, offset)
        dropped = torch.where(length < (1 - SLACK) * tau, 0, lam)
        # lam length / tau never lowers h: it minimises a majorant whose weights are the present ones.
        steps = [*_steps(dropped, a, member, tau, offset), *_steps(lam, a, member, tau, offset)]
        tries = torch.stack([dropped, *(step.clamp_min(0) for step in steps), lam * length / tau, lam])
        height = torch.nan_to_num(_height(tries, a, member, tau, offset), nan=-torch.inf)
        top = height.amax(0)
        # The first of those that are as good as the best: to stay, without what is slack, comes first.
        rank = torch.arange(len(tries), 0, -1, device=a.device).view(-1, *[1] * top.ndim)
        chosen = torch.where(height >= top - EQUAL * top.abs(), rank, 0).argmax(0, keepdim=True).unsqueeze(-1)
        new = torch.take_along_dim(tries, chosen.expand(1, *lam.shape), 0).squeeze(0)
        stays = may_branch(a) and torch.equal(new, lam)
        lam = new
        if stays:
            break
    _, length, _ = _state(lam, a, member, offset)
    return lam, (lam > 0) | (length > (1 + SLACK) * tau)


def _steps(lam: Tensor, a: Tensor, member: Tensor, tau: Tensor, offset: float) -> list[Tensor]:
    """Newton steps from lam on two forms of the equations, of several lengths, and a gradient step."""
    _, length, curvature = _state(lam, a, member, offset)
    # Active groups press against their cylinder; the others wait at 0 until they are violated.
    active = (lam > 0) | (length > (1 + SLACK) * tau)
    gradient = (length.square() - tau.square()) / 2
    ways = (_newton(curvature, _by_length(length, tau), active), _newton(curvature, gradient, active))
    slope = torch.diagonal(curvature, dim1=-2, dim2=-1)
    gentle = torch.where(active & (slope > 0), gradient / torch.where(slope > 0, slope, 1), 0) / member.sum(0).amax()
    # To the first group that comes to 0, as the next one it may leave alone.
    ends = [
        torch.where(way < 0, -lam / torch.where(way < 0, way, 1), 1).amin(-1, keepdim=True).clamp(0, 1) for way in ways
    ]
    return [
        *(lam + scale * way for way in ways for scale in LENGTHS),
        *(lam + end * way for way, end in zip(ways, ends, strict=True)),
        lam + gentle,
    ]


def _state(lam: Tensor, a: Tensor, member: Tensor, offset: float) -> tuple[Tensor, Tensor, Tensor]:
    """d, the lengths ‖u_g‖ and the curvature -h'' at lam."""
    d = stretch(lam, member, offset)
    square = (a / d.square()) @ member.mT
    length = torch.where(square > 0, torch.where(square > 0, square, 1).sqrt(), 0)
    return d, length, (member * (a / d**3).unsqueeze(-2)) @ member.mT


def _by_length(length: Tensor, tau: Tensor) -> Tensor:
    """The right side of Newton on 1 / ‖u_g‖ = 1 / tau_g, which is linear in lam where groups do not overlap."""
    return length.square() * (length / tau - 1)


def _newton(curvature: Tensor, right: Tensor, active: Tensor) -> Tensor:
    """curvature^-1 right among the active groups, 0 for the others."""
    pair = active.unsqueeze(-1) & active.unsqueeze(-2)
    diagonal = torch.diagonal(curvature, dim1=-2, dim2=-1)
    usable = active & (diagonal > 0)
    scale = torch.where(usable, torch.where(usable, diagonal, 1).rsqrt(), 1)
    eye = torch.eye(curvature.shape[-1], dtype=curvature.dtype, device=curvature.device)
    normed = torch.where(pair, curvature * scale.unsqueeze(-1) * scale.unsqueeze(-2), 0)
    normed = normed + torch.where(usable.unsqueeze(-1), RIDGE * eye, eye)
    # Without the check for singular matrices, which would wait for a GPU; with the ridge there is none.
    solved, _ = torch.linalg.solve_ex(normed, torch.where(usable, scale * right, 0).unsqueeze(-1))
    return torch.where(usable, scale * solved.squeeze(-1), 0)


def _height(lam: Tensor, a: Tensor, member: Tensor, tau: Tensor, offset: float) -> Tensor:
    d = offset + lam @ member
    cost = torch.where(a > 0, a / d, 0)
    return -(cost.sum(-1) + (lam * tau.square()).sum(-1)) / 2
