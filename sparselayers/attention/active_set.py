"""Wolfe's active-set method for many queries at once, in plain torch operations: what polishes a descent's answer.

Every pass solves for the optimum on each query's support. Where that lies inside the simplex it is taken and the atom
that violates optimality most joins; where not, the query goes as far as it can and the blocking atom leaves. A support
that depends affinely has no such optimum: a proximal term too small to matter elsewhere then sends the weights far along
the null direction, until an atom leaves. Where nothing is gained along it (an atom that is there twice) and no place is
free, they go along it all the same. No pass looks at a value, so that all of this can be traced and transformed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.eager import may_branch
from .least_squares import LeastSquares

PROXIMAL = 1e-12  # of the mean squared size of a support's atoms
ROUNDING = 1e-15  # a violation smaller than this, in units of largest distance x residual, is noise
SLIGHT = 1e-6  # a part of a null direction that is rounding
LOOK_EVERY = 5


def polish(problem: LeastSquares, y: Tensor, room: int, tol: float, passes: int) -> tuple[Tensor, Tensor]:
    """Improve feasible y (..., m, n) in float64 until gap <= tol; the new y, and the passes that each query took (..., m, 1).

    room: atoms that a support may hold; of y the largest are kept, which is feasible, and one place is left free. That is
    done, too, to a y that is good enough but has more atoms than an independent support, if it stays good enough. Where
    that ends worse than it began, y itself comes back.
    """
    start = problem.gap(y)
    x, atoms, usable = problem.x, problem.atoms, problem.usable
    n, d = atoms.shape[-2:]
    ridged = isinstance(problem.ridge, Tensor) or problem.ridge > 0
    crowded = room > d + 1 and not ridged  # so many members are dependent
    wide = ((y > 0).sum(-1, keepdim=True) >= room) & crowded
    half = torch.as_tensor(problem.locality, dtype=y.dtype, device=y.device) / 2
    ridge = torch.as_tensor(problem.ridge, dtype=y.dtype, device=y.device)
    distance = problem.distances()
    far = torch.where(usable, distance, 0).amax(-1, keepdim=True)
    weight, place = y.topk(room, dim=-1)
    if room < n:
        weight = torch.cat([weight[..., :-1], torch.zeros_like(weight[..., -1:])], -1)
    total = weight.sum(-1, keepdim=True)
    weight = weight / torch.where(total > 0, total, 1)
    member = weight > 0
    rows = atoms.unsqueeze(-3).expand(*y.shape[:-1], n, d)
    points = rows.gather(-2, place.unsqueeze(-1).expand(*place.shape, d)) - x.unsqueeze(-2)
    done = ~((start > tol) | wide)
    taken = torch.zeros_like(done, dtype=torch.long)
    slots = torch.arange(room, device=y.device)
    for k in range(passes):
        if k % LOOK_EVERY == 0 and may_branch(done) and bool(done.all()):
            break
        target, along = _optimum(points, weight, member, half, ridge)
        stuck = member.all(-1, keepdim=True) & crowded & ~(member & (target <= 0)).any(-1, keepdim=True)
        target = torch.where(stuck, weight + along, target)
        blocks = member & torch.where(stuck, along < 0, target <= 0)
        ratio = torch.where(blocks, weight / torch.where(weight > target, weight - target, 1), torch.inf)
        step, out = ratio.min(-1, keepdim=True)
        blocked = blocks.any(-1, keepdim=True)
        moved = torch.where(blocked, weight + step.clamp_max(1) * (target - weight), target).clamp_min(0)
        leaves = blocked & (slots == out)
        moved = torch.where(leaves, 0, moved)
        moved = torch.where(done, weight, moved / moved.sum(-1, keepdim=True))
        member = member & (~leaves | done)

        r = (moved.unsqueeze(-2) @ points).squeeze(-2)
        g = r @ atoms.mT - (r * x).sum(-1, keepdim=True) + half * distance
        within = torch.zeros_like(y).scatter_add(-1, place, torch.where(member, moved, 0))
        g = g + ridge * within
        mean = (moved * torch.where(member, g.gather(-1, place), 0)).sum(-1, keepdim=True)
        least = torch.where(usable, g, torch.inf).amin(-1, keepdim=True)
        best = torch.where(usable & (within == 0), g, torch.inf).argmin(-1, keepdim=True)
        noise = ROUNDING * ((far * r.square().sum(-1, keepdim=True)).sqrt() + (half + 0.1) * far)
        weight = moved
        taken = taken + ~done
        # Not `mean - least <= ...`: a query that is NaN is done, too.
        good = ~(mean - least > torch.maximum(tol * far, noise))
        done = done | (good & ~(member.all(-1, keepdim=True) & crowded))
        free = (~member).to(y.dtype).argmax(-1, keepdim=True)
        joins = (slots == free) & ~member & ~blocked & ~done
        place = torch.where(joins, best, place)
        entering = rows.gather(-2, best.unsqueeze(-1).expand(*best.shape, d)) - x.unsqueeze(-2)
        points = torch.where(joins.unsqueeze(-1), entering, points)
        weight, member = torch.where(joins, 0, weight), member | joins
    found = torch.zeros_like(y).scatter_add(-1, place, torch.where(member, weight, 0))
    end = problem.gap(found)
    return torch.where((taken > 0) & ((end < start) | (wide & (end <= tol))), found, y), taken


def nearest_atom(problem: LeastSquares) -> Tensor:
    """All weight on the nearest atom that the query may use: the coldest start."""
    distance = torch.where(problem.usable, problem.distances(), torch.inf)
    near = distance.argmin(-1, keepdim=True) == torch.arange(distance.shape[-1], device=distance.device)
    return torch.where(problem.usable & near, 1 + 0 * problem.linear, 0)


def _optimum(points: Tensor, weight: Tensor, member: Tensor, half: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor]:
    """The optimum on the affine hull of the members, near the weight they have where it is not the only one.

    And a change of dependent members' weights that changes nothing else, further than one of them can go; a member without
    weight, which is the one that has just joined, gains some.
    """
    inside = member.to(points.dtype)
    points = points * inside.unsqueeze(-1)
    square = points.square().sum(-1)
    size = square.sum(-1, keepdim=True) / inside.sum(-1, keepdim=True).clamp_min(1)
    size = torch.where(size > 0, size, 1)
    # The last term is constant where the weights sum to 1; it makes an affinely independent support regular.
    matrix = points @ points.mT + size.unsqueeze(-1) * inside.unsqueeze(-1) * inside.unsqueeze(-2)
    pull = PROXIMAL * size
    matrix = matrix + torch.diag_embed(torch.where(member, ridge + pull, 1))
    # The inverse of the matrix makes a null direction of nearly anything.
    anything = torch.arange(1, weight.shape[-1] + 1, device=weight.device, dtype=weight.dtype).cos()
    sides = torch.stack([inside, (pull * weight - half * square) * inside, anything * inside], -1)
    level, target, along = torch.cholesky_solve(sides, torch.linalg.cholesky_ex(matrix)[0]).unbind(-1)
    total = level.sum(-1, keepdim=True)
    target = target + level * ((1 - target.sum(-1, keepdim=True)) / total)
    along = along - level * (along.sum(-1, keepdim=True) / total)
    along = along / along.abs().amax(-1, keepdim=True)
    along = torch.where(along.abs() > SLIGHT, 2 * weight.shape[-1] * along, 0)
    along = torch.where((along * (weight == 0)).sum(-1, keepdim=True) < 0, -along, along)
    found = (torch.where(q.isfinite().all(-1, keepdim=True), q, 0) for q in (target - weight, along))
    step, along = (q * inside for q in found)
    return weight * inside + step, along
