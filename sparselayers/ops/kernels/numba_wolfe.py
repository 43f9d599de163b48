"""The nearest point of a simplex of atoms by Wolfe's active-set method, one query a loop, compiled by Numba.

With p_j = k_j - x the problem is  min 1/2 ‖sum y_j p_j‖² + locality/2 sum y_j ‖p_j‖² + ridge/2 ‖y‖²  over the simplex.
Seen from the query nothing depends on where the origin lies, and a query reads only the atoms that it may use.
Arithmetic is in float64 whatever the input, in units of the query's own distances.

The support S is affinely independent. It grows by the one atom that violates optimality most, and shrinks where its own
optimum leaves the simplex. A = P P^T + ridge I + unit 1 1^T on S (the last term is constant on the simplex) has a Cholesky
factor that is updated, not recomputed. An atom that depends on S affinely enters by a pivot along the null direction,
on which the objective is linear. Most atoms are looked at rarely: a pass over all of them picks candidates, and the
support grows among those until they are short of what a pass would find.
"""

# mypy: ignore-errors
from __future__ import annotations

import math

import numba  # noqa: TID253 - this module is imported only when a kernel is first used
import numpy as np
import torch
from torch import Tensor

from .numba_face import begin, combine, enter, normalise, room_for, settle
from .numba_tools import at, compiled, flat, launch, per_row
from .numba_triangle import dot

CANDIDATES = 32
SHORTFALL = (
    0.1  # a pass over all atoms is due when the candidates violate less than this part of what the last one found
)
SMALL, LARGE = 1e-200, 1e200  # between these, squared distances keep all their digits
HALVINGS = 4
COARSE = 1e-5  # a gap smaller than this, in the same units, asks for double precision
ROUNDING = 1e-15  # a violation smaller than this, in units of largest distance x residual, is noise


@compiled(counted=False)
def _distances(x, atoms, usable, masked, scale, q):
    """q_j = ‖scale (k_j - x)‖², inf where masked; the nearest or -1, and the largest, NaN if one is not finite."""
    n, d = atoms.shape
    near, far, sound = -1, 0.0, 0.0
    for j in range(n):
        q[j] = math.inf
        if masked and not usable[j]:
            continue
        k, total = atoms[j], 0.0
        for c in range(d):
            entry = (np.float64(k[c]) - x[c]) * scale
            total += entry * entry
        q[j] = total
        sound += total * 0.0
        far = max(far, total)
        near = j if near < 0 or total < q[near] else near
    return near, far + sound


@compiled(counted=False)
def _point(k, x, scale, p):
    """p = scale (k - x)."""
    for c in range(p.size):
        p[c] = (np.float64(k[c]) - x[c]) * scale


@compiled(counted=False)
def _survey(x, atoms, usable, masked, q):
    """The distances, in units of a power of two that keeps their squares in range; that unit, nearest, largest."""
    near, far = _distances(x, atoms, usable, masked, 1.0, q)
    if near < 0 or SMALL < far < LARGE:
        return 1.0, near, far
    n, d = atoms.shape
    largest = 0.0
    for j in range(n):
        for c in range(d if q[j] < math.inf or not masked or usable[j] else 0):
            largest = max(largest, abs(np.float64(atoms[j, c]) - x[c]))
    if largest == 0.0 or not largest < math.inf:
        return 1.0, near, far
    scale = math.ldexp(1.0, min(1000, -math.frexp(largest)[1]))
    near, far = _distances(x, atoms, usable, masked, scale, q)
    return scale, near, far


@compiled(counted=False)
def _price(x, atoms, scale, half, r, q, g):
    """g_j = scale <k_j - x, r> + half q_j, what the objective rises by towards atom j but for the ridge; inf where q is.

    In the precision of x and r.
    """
    for j in range(g.size):
        if q[j] == math.inf:
            g[j] = math.inf
            continue
        k, total = atoms[j], r[0] - r[0]  # 0 of its type
        for c in range(r.size):
            total += (k[c] - x[c]) * r[c]
        g[j] = total * scale + half * q[j]


@compiled(counted=False)
def _least(s, place, y, ridge, g):
    """The smallest of g, with the members' part of the ridge; their own g become inf, for they cannot enter."""
    least = math.inf
    for i in range(s):
        least = min(least, g[place[i]] + ridge * y[i])
        g[place[i]] = math.inf
    for j in range(g.size):
        least = min(least, g[j])
    return least


@compiled(counted=False)
def _mean(s, y, sizes, r, half, ridge):
    """<g, y>."""
    mean = dot(r, r, r.size)
    for i in range(s):
        mean += y[i] * (half * sizes[i] + ridge * y[i])
    return mean


@compiled(counted=False)
def _choose(g, mean, gap, noise, chosen):
    """The atoms that violate most, as many as CANDIDATES or so; at least those with no other violation near theirs."""
    share, count = SHORTFALL, g.size
    for _ in range(HALVINGS):
        most, count = mean - max(share * gap, noise), 0
        for j in range(g.size):
            chosen[count] = j
            count += g[j] < most
        if count <= CANDIDATES:
            break
        share = 0.5 + 0.5 * share
    return min(count, CANDIDATES)


@compiled(counted=False)
def _steepest(count, C, slopes, half, r, most):
    """The candidate towards which the objective rises least, if that is less than `most`; else -1."""
    best = -1
    for i in range(count):
        slope = dot(C[i], r, r.size) + half * slopes[i]
        if slope < most:
            best, most = i, slope
    return best


@compiled(counted=False)
def _query(x, given, atoms, usable, masked, half, ridge, tol, most, out, q, g, C, squares, rough, kept, chosen, face):
    """Fill `out`, the weights of one query (0 before); its gap and the number of atoms that joined or left."""
    place, y, sizes, P, _, r, _, _, _ = face
    d, room = x.size, y.size - 1
    scale, near, far = _survey(x, atoms, usable, masked, q)
    if near < 0:
        return 0.0, 0
    if far != far:
        for j in range(q.size):
            out[j] = 0.0 if masked and not usable[j] else math.nan
        return math.nan, 0
    if far == 0.0:
        out[near] = 1.0
        return 0.0, 0
    ridge, moves, gap = ridge * scale * scale, 0, math.inf
    _point(atoms[near], x, scale, C[0])
    s = begin(face, near, C[0], q[near])
    # Passes over single precision atoms are made in single precision, too, but for the last ones.
    coarse = out.itemsize < 8 and 1e-50 < far < 1e50
    while True:
        length = math.sqrt(dot(r, r, d))
        noise = ROUNDING * (math.sqrt(far) * length + (half + 0.1) * far)
        if coarse:
            for c in range(d):
                rough[c] = r[c] / length
            _price(given, atoms, scale * length, half, rough, q, g)
        else:
            if out.itemsize < 8:  # the gap is that of the weights as they come back
                for i in range(s):
                    kept[i] = y[i]
                    y[i] = kept[i]
                normalise(s, y)
                combine(s, y, P, r)
            _price(x, atoms, scale, half, r, q, g)
        mean = _mean(s, y, sizes, r, half, ridge)
        gap = mean - _least(s, place, y, ridge, g)
        if coarse and gap <= max(tol * far, COARSE * math.sqrt(far) * length):
            coarse = False
            continue
        if gap <= max(tol * far, noise) or moves >= most or s >= room:
            if coarse:
                coarse = False
                continue
            break
        count, before, least = _choose(g, mean, gap, noise, chosen), moves, max(SHORTFALL * gap, noise)
        for i in range(count):
            _point(atoms[chosen[i]], x, scale, C[i])
            squares[i] = q[chosen[i]]
        while moves < most and s < room:
            best = _steepest(count, C, squares, half, r, mean - least)
            if best < 0:
                break
            s, moves = enter(face, s, chosen[best], C[best], squares[best], half, ridge, moves, most)
            mean = _mean(s, y, sizes, r, half, ridge)
            # It is in now, or its violation was rounding: either way it is no candidate until the next pass.
            count -= 1
            chosen[best], squares[best] = chosen[count], squares[count]
            last, free = C[count], C[best]
            for c in range(d):
                free[c] = last[c]
        if moves == before:
            if not coarse:
                break
            coarse = False
        s = settle(face, s, half, ridge, noise)
    for i in range(s):
        out[place[i]] = kept[i] if out.itemsize < 8 else y[i]
    return max(gap, 0.0) / far, min(moves, most)


@compiled()
def _wolfe(x, atoms, owner, usable, half, ridge, tol, most, room, out, gap, count, first, last):
    n, d = atoms.shape[1], atoms.shape[2]
    face, q, g, query = room_for(room, d), np.empty(n), np.empty(n), np.empty(d)
    C, squares = np.empty((CANDIDATES, d)), np.empty(CANDIDATES)
    rough, kept = np.empty(d, out.dtype), np.empty(face.y.size, out.dtype)
    chosen, masked = np.empty(n + 1, np.int64), usable.shape[0] > 0
    for i in range(np.int64(first), np.int64(last)):
        for c in range(d):
            query[c] = x[i, c]
        own = usable[i if masked else 0 : i + 1].reshape(-1)
        gap[i], count[i] = _query(
            query, x[i], atoms[owner[i]], own, masked, at(half, i), at(ridge, i), tol, most,
            out[i], q, g, C, squares, rough, kept, chosen, face,
        )  # fmt: skip


@compiled(parallel=True)
def _wolfe_parallel(x, atoms, owner, usable, half, ridge, tol, most, room, out, gap, count, units, parts):
    for part in numba.prange(parts):
        first, last = part * units // parts, (part + 1) * units // parts
        _wolfe(x, atoms, owner, usable, half, ridge, tol, most, room, out, gap, count, first, last)


def nearest_points(
    x: Tensor,
    atoms: Tensor,
    owner: Tensor,
    usable: Tensor | None,
    locality: float | Tensor,
    ridge: float | Tensor,
    tol: float,
    most: int,
    room: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (m, n), gap (m,), moves (m,) of queries x (m, d), each with the set atoms[owner] of (sets, n, d).

    usable: (m, n) or None; locality, ridge: numbers or (m,); most: moves a query may take; room: atoms that a support may hold.
    """
    m, n = x.shape[0], atoms.shape[1]
    out, gap, count = x.new_zeros(m, n), torch.empty(m, dtype=torch.float64), torch.empty(m, dtype=torch.int64)
    rows = np.empty((0, n), np.bool_) if usable is None else usable.numpy()
    goal = tol if x.dtype == torch.float64 else tol / 2  # rounding the weights may cost the other half
    args = (
        x.detach().numpy(), atoms.detach().numpy(), flat(owner), rows, per_row(locality) / 2, per_row(ridge), goal, most, room,
        out.numpy(), flat(gap), flat(count),
    )  # fmt: skip
    launch(_wolfe, _wolfe_parallel, args, m, m * n * x.shape[1])
    return out, gap.to(x.dtype), count
