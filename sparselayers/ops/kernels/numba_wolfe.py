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

from .numba_face import append, combine, dot, remove, target
from .numba_tools import at, compiled, flat, launch, per_row

CANDIDATES = 32
SHORTFALL = (
    0.1  # a pass over all atoms is due when the candidates violate less than this part of what the last one found
)
ROUNDING = 1e-15  # a violation smaller than this, in units of largest distance x residual, is noise


@compiled()
def _survey(x, atoms, usable, masked, q):
    """q_j = ‖k_j - x‖² in units of a power of two (inf where masked); unit (0 if all are x, NaN), nearest, largest q."""
    n, d = atoms.shape
    largest, sound, near = 0.0, 0.0, -1
    for j in range(n):
        q[j] = math.inf
        if masked and not usable[j]:
            continue
        k, near = atoms[j], j if near < 0 else near
        for c in range(d):
            entry = abs(np.float64(k[c]) - x[c])
            sound += entry * 0.0
            largest = max(largest, entry)
    if near < 0 or largest == 0.0 or sound != 0.0:
        return math.nan if sound != 0.0 else 0.0, near, 0.0
    scale = math.ldexp(1.0, -math.frexp(largest)[1])
    far = 0.0
    for j in range(n):
        if masked and not usable[j]:
            continue
        k, total = atoms[j], 0.0
        for c in range(d):
            entry = (np.float64(k[c]) - x[c]) * scale
            total += entry * entry
        q[j] = total
        far = max(far, total)
        near = j if total < q[near] else near
    return scale, near, far


@compiled()
def _price(x, atoms, scale, r, q, half, g):
    """g_j = <p_j, r> + half q_j, what the objective rises by towards atom j, but for the ridge; inf where q is."""
    n, d = atoms.shape
    for j in range(n):
        if q[j] == math.inf:
            g[j] = math.inf
            continue
        k, total = atoms[j], 0.0
        for c in range(d):
            total += (np.float64(k[c]) - x[c]) * r[c]
        g[j] = total * scale + half * q[j]


@compiled()
def _gap(s, place, y, ridge, g):
    """<g, y> - min g, and <g, y>, with the support's part of the ridge; the support's own g become inf."""
    mean, least = 0.0, math.inf
    for i in range(s):
        g[place[i]] += ridge * y[i]
        mean += y[i] * g[place[i]]
    for j in range(g.size):
        least = min(least, g[j])
    for i in range(s):
        g[place[i]] = math.inf
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
def _descend(s, L, P, z, place, y, qs, half, ridge, t, e, r, moves, most):
    """From y to the optimum of the face that it ends on, dropping members on the way; the support's size, and moves."""
    while True:
        target(s, L, P, z, qs, half, ridge, t, e, r)
        step, out = 1.0, -1
        for i in range(s):
            if t[i] <= 0.0 and y[i] <= step * (y[i] - t[i]):
                step, out = y[i] / (y[i] - t[i]) if t[i] < y[i] else 0.0, i
        for i in range(s):
            y[i] = y[i] + step * (t[i] - y[i]) if out >= 0 else t[i]
        if out < 0:
            return s, moves
        remove(out, s, L, P, z, place, y, qs)
        s -= 1
        if moves >= most:
            combine(s, P, y, r)
            return s, moves
        moves += 1


@compiled()
def _query(x, atoms, usable, masked, half, ridge, tol, most, out, work, L, P, C, z, place, chosen, state):
    """Fill `out`, the weights of one query (0 before); its gap and the number of atoms that joined or left."""
    q, g = work[0], work[1]
    y, qs, t, e = state[0], state[1], state[2], state[3]
    d = x.size
    r = state[4, :d]
    scale, near, far = _survey(x, atoms, usable, masked, q)
    if near < 0:
        return 0.0, 0
    if scale != scale:
        for j in range(q.size):
            out[j] = 0.0 if masked and not usable[j] else math.nan
        return math.nan, 0
    if scale == 0.0:
        out[near] = 1.0
        return 0.0, 0
    ridge = ridge * scale * scale
    for c in range(d):
        P[0, c] = (np.float64(atoms[near, c]) - x[c]) * scale
        r[c] = P[0, c]
    place[0], y[0], qs[0], s, moves, unit, gap = near, 1.0, q[near], 1, 0, 0.0, math.inf
    while True:
        _price(x, atoms, scale, r, q, half, g)
        gap, mean = _gap(s, place, y, ridge, g)
        noise = ROUNDING * (math.sqrt(far * dot(r, r, d)) + (half + 0.1) * far)
        if gap <= max(tol * far, noise) or moves >= most or s + 1 >= L.shape[0]:
            break
        count = _choose(g, mean - max(SHORTFALL * gap, noise), chosen)
        if count == 0:
            break
        for i in range(count):
            for c in range(d):
                C[i, c] = (np.float64(atoms[chosen[i], c]) - x[c]) * scale
        if (
            unit == 0.0
        ):  # of the size of the first two, so that the last term of A neither drowns the rest nor is drowned
            unit = q[near] + q[chosen[0]]
            L[0, 0] = math.sqrt(q[near] + ridge + unit)
            z[0, 0], z[1, 0] = 1.0 / L[0, 0], -half * q[near] / L[0, 0]
        entered = False
        while moves < most and s + 1 < L.shape[0]:
            best, least = -1, mean - max(SHORTFALL * gap, noise)
            for i in range(count):
                slope = dot(C[i], r, d) + half * q[chosen[i]]
                if slope < least:
                    best, least = i, slope
            if best < 0:
                break
            moves += 1
            j = chosen[best]
            s = append(j, C[best], 0.0, q[j], unit, half, ridge, s, L, P, z, place, y, qs)
            s, moves = _descend(s, L, P, z, place, y, qs, half, ridge, t, e, r, moves, most)
            mean = 0.0
            for i in range(s):
                mean += y[i] * (dot(P[i], r, d) + half * qs[i] + ridge * y[i])
            # It is in now, or its violation was rounding: either way it is no candidate until the next pass.
            count -= 1
            chosen[best] = chosen[count]
            for c in range(d):
                C[best, c] = C[count, c]
            for i in range(s):
                entered = entered or place[i] == j
        if not entered:
            break
    for i in range(s):
        out[place[i]] = y[i]
        y[i] = out[place[i]]
    if out.itemsize < 8:  # the gap of the weights as they are after rounding
        combine(s, P, y, r)
        _price(x, atoms, scale, r, q, half, g)
        gap, mean = _gap(s, place, y, ridge, g)
    return max(gap, 0.0) / far, min(moves, most)


@compiled()
def _wolfe(x, atoms, owner, usable, half, ridge, tol, most, room, out, gap, count, first, last):
    n, d = atoms.shape[1], atoms.shape[2]
    work, state = np.empty((2, n)), np.empty((5, max(room + 2, d)))
    L, P, C, z = (
        np.empty((room + 2, room + 2)),
        np.empty((room + 2, d)),
        np.empty((CANDIDATES, d)),
        np.empty((2, room + 2)),
    )
    place, chosen, masked = np.empty(room + 2, np.int64), np.empty(CANDIDATES, np.int64), usable.shape[0] > 0
    query = np.empty(d)
    for i in range(np.int64(first), np.int64(last)):
        for c in range(d):
            query[c] = x[i, c]
        own = usable[i if masked else 0 : i + 1].reshape(-1)
        gap[i], count[i] = _query(
            query, atoms[owner[i]], own, masked, at(half, i), at(ridge, i), tol, most,
            out[i], work, L, P, C, z, place, chosen, state,
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
