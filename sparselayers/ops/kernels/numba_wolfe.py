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

from .numba_face import begin, combine, dot, enter, room_for, settle
from .numba_tools import at, compiled, flat, launch, per_row

CANDIDATES = 32
SHORTFALL = (
    0.1  # a pass over all atoms is due when the candidates violate less than this part of what the last one found
)
SMALL, LARGE = 1e-200, 1e200  # between these, squared distances keep all their digits
ROUNDING = 1e-15  # a violation smaller than this, in units of largest distance x residual, is noise


@compiled()
def _distances(x, atoms, usable, masked, scale, q):
    """q_j = ‖scale (k_j - x)‖², inf where masked; the nearest, -1 if there is none, and the largest, NaN if one is not finite."""
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


@compiled()
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


@compiled()
def _price(x, atoms, scale, half, ridge, s, face, q, g):
    """g_j = <p_j, r> + half q_j + ridge y_j, what the objective rises by towards atom j; <g, y> - min g, and <g, y>.

    g is inf where q is, and in the end for the members: they cannot enter.
    """
    n, d = atoms.shape
    least = math.inf
    for j in range(n):
        if q[j] == math.inf:
            g[j] = math.inf
            continue
        k, total = atoms[j], 0.0
        for c in range(d):
            total += (np.float64(k[c]) - x[c]) * face.r[c]
        g[j] = total * scale + half * q[j]
        least = min(least, g[j])
    mean = 0.0
    for i in range(s):
        g[face.place[i]] += ridge * face.y[i]
        mean += face.y[i] * g[face.place[i]]
    if ridge > 0.0:
        least = math.inf
        for j in range(n):
            least = min(least, g[j])
    for i in range(s):
        g[face.place[i]] = math.inf
    return mean - least, mean


@compiled()
def _choose(g, most, chosen):
    """The places of the smallest entries of g below `most`, at most CANDIDATES, and how many."""
    count = 0
    for j in range(g.size):
        if g[j] < most and (count < CANDIDATES or g[j] < g[chosen[count - 1]]):
            count += count < CANDIDATES
            i = count - 1
            while i > 0 and g[chosen[i - 1]] > g[j]:
                chosen[i] = chosen[i - 1]
                i -= 1
            chosen[i] = j
    return count


@compiled()
def _query(x, atoms, usable, masked, half, ridge, tol, most, out, q, g, C, chosen, face):
    """Fill `out`, the weights of one query (0 before); its gap and the number of atoms that joined or left."""
    d, room = x.size, face.y.size - 1
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
    for c in range(d):
        C[0, c] = (np.float64(atoms[near, c]) - x[c]) * scale
    s = begin(face, near, C[0], q[near])
    while True:
        gap, mean = _price(x, atoms, scale, half, ridge, s, face, q, g)
        noise = ROUNDING * (math.sqrt(far * dot(face.r, face.r, d)) + (half + 0.1) * far)
        if gap <= max(tol * far, noise) or moves >= most or s >= room:
            break
        count = _choose(g, mean - max(SHORTFALL * gap, noise), chosen)
        for i in range(count):
            for c in range(d):
                C[i, c] = (np.float64(atoms[chosen[i], c]) - x[c]) * scale
        before = moves
        while moves < most and s < room:
            best, least = -1, mean - max(SHORTFALL * gap, noise)
            for i in range(count):
                slope = dot(C[i], face.r, d) + half * q[chosen[i]]
                if slope < least:
                    best, least = i, slope
            if best < 0:
                break
            j = chosen[best]
            s, moves = enter(face, s, j, C[best], q[j], half, ridge, moves, most)
            mean = 0.0
            for i in range(s):
                mean += face.y[i] * (half * face.q[i] + ridge * face.y[i])
            mean += dot(face.r, face.r, d)
            # It is in now, or its violation was rounding: either way it is no candidate until the next pass.
            count -= 1
            chosen[best] = chosen[count]
            for c in range(d):
                C[best, c] = C[count, c]
        if moves == before:
            break
        s = settle(face, s, half, ridge, noise)
    for i in range(s):
        out[face.place[i]] = face.y[i]
        face.y[i] = out[face.place[i]]
    if out.itemsize < 8:  # the gap of the weights as they are after rounding
        total = 0.0
        for i in range(s):
            total += face.y[i]
        for i in range(s):
            face.y[i] /= total
        combine(s, face.y, face.P, face.r)
        gap, mean = _price(x, atoms, scale, half, ridge, s, face, q, g)
    return max(gap, 0.0) / far, min(moves, most)


@compiled()
def _wolfe(x, atoms, owner, usable, half, ridge, tol, most, room, out, gap, count, first, last):
    n, d = atoms.shape[1], atoms.shape[2]
    face, q, g, C, query = room_for(room, d), np.empty(n), np.empty(n), np.empty((CANDIDATES, d)), np.empty(d)
    chosen, masked = np.empty(CANDIDATES, np.int64), usable.shape[0] > 0
    for i in range(np.int64(first), np.int64(last)):
        for c in range(d):
            query[c] = x[i, c]
        own = usable[i if masked else 0 : i + 1].reshape(-1)
        gap[i], count[i] = _query(
            query, atoms[owner[i]], own, masked, at(half, i), at(ridge, i), tol, most, out[i], q, g, C, chosen, face
        )


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
