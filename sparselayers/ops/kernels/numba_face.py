"""A support of atoms, and how its weights answer to a change: an inverse that is updated as members join and leave.

Of members p_1 .. p_s, with the matrix G = P P^T + ridge I, the symmetric matrix N is kept that a sum of 0 asks for:
w = N v solves  G w + mu 1 = v,  1^T w = 0.  So N 1 = 0, and Newton's step of the weights for a gradient g is -N g. For
another point p the affine combination w of members nearest to it is e_0 + N P (p - p_0), and p - w P is at right angles
to the members' affine hull. A member that joins adds one product of a vector with itself to N, and one that leaves
takes one away. Rows are filled up with zeros to a multiple of eight, so that loops over them need no remainder.
"""

# mypy: ignore-errors
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .numba_tools import compiled
from .numba_triangle import dot

DEPENDENT = 1e-11  # of its squared size: a point nearer than that to the members' affine hull depends on them
EIGHT = 8
STEPS = 5  # of Newton's, at most; one is enough where N is good


class Face(NamedTuple):
    """Room for a support: of each member its atom's place, weight y, squared size q and row of P; N; the residual r = y P.

    w, a, e are what the last question left: weights, slopes, the part of a point that the members do not explain.
    """

    place: np.ndarray
    y: np.ndarray
    q: np.ndarray
    P: np.ndarray
    N: np.ndarray
    r: np.ndarray
    w: np.ndarray
    a: np.ndarray
    e: np.ndarray


@compiled()
def room_for(members, d):
    """An empty face for so many members."""
    wide = (members + EIGHT) // EIGHT * EIGHT
    return Face(
        np.empty(wide, np.int64), np.empty(wide), np.empty(wide), np.empty((wide, d)), np.empty((wide, wide)),
        np.empty(d), np.zeros(wide), np.zeros(wide), np.empty(d),
    )  # fmt: skip


@compiled(counted=False)
def normalise(s, w):
    total = 0.0
    for i in range(s):
        total += w[i]
    total = 1.0 / total
    for i in range(s):
        w[i] *= total


@compiled(counted=False)
def combine(s, weights, P, r):
    """r = sum_i weights_i p_i."""
    d = r.size
    for c in range(d):
        r[c] = 0.0
    for i in range(0, s - s % 4, 4):
        p0, p1, p2, p3 = P[i], P[i + 1], P[i + 2], P[i + 3]
        w0, w1, w2, w3 = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        for c in range(d):
            r[c] += (w0 * p0[c] + w1 * p1[c]) + (w2 * p2[c] + w3 * p3[c])
    for i in range(s - s % 4, s):
        row, weight = P[i], weights[i]
        for c in range(d):
            r[c] += weight * row[c]


@compiled(counted=False)
def respond(s, N, a, w):
    """w = N a."""
    wide = (s + EIGHT - 1) // EIGHT * EIGHT
    for i in range(s, wide):
        a[i] = w[i] = 0.0
    for i in range(s):
        w[i] = dot(N[i], a, wide)


@compiled(counted=False)
def _add_square(s, N, w, factor):
    """N += factor w w^T."""
    wide = (s + EIGHT - 1) // EIGHT * EIGHT
    for i in range(s, wide):
        w[i] = 0.0
    for i in range(s):
        row, weight = N[i], factor * w[i]
        for c in range(wide):
            row[c] += weight * w[c]


@compiled(counted=False)
def explain(face, s, p, q, ridge):
    """w of the members nearest to p, e = p - w P, the square of its size with the ridge's part, and whether p depends."""
    _, _, sizes, P, N, _, w, a, e = face
    d, base = e.size, P[0]
    for c in range(d):
        e[c] = p[c] - base[c]
    for i in range(s):
        a[i] = dot(P[i], e, d)
    a[0] -= ridge
    respond(s, N, a, w)
    w[0] += 1.0
    normalise(s, w)
    square, whole = 0.0, q
    for i in range(s):
        square += w[i] * w[i]
        whole += w[i] * w[i] * sizes[i]
    combine(s, w, P, e)
    for c in range(d):
        e[c] = p[c] - e[c]
    rest = dot(e, e, d) + ridge * (1.0 + square)
    return rest, not rest > DEPENDENT * (whole + ridge)


@compiled(counted=False)
def append(face, s, j, p, weight, q, rest):
    """Atom j is member s, after `explain` has said `rest` of it."""
    place, y, sizes, P, N, r, w, _, _ = face
    member, row = P[s], N[s]
    for c in range(r.size):
        member[c] = p[c]
    for c in range(row.size):
        row[c] = 0.0
    place[s], y[s], sizes[s], w[s] = j, weight, q, -1.0
    _add_square(s + 1, N, w, 1.0 / rest)
    return s + 1


@compiled(counted=False)
def begin(face, j, p, q):
    """Atom j is the only member."""
    place, y, sizes, P, N, r, _, _, _ = face
    member, row = P[0], N[0]
    for c in range(r.size):
        member[c] = r[c] = p[c]
    for c in range(row.size):
        row[c] = 0.0
    place[0], y[0], sizes[0] = j, 1.0, q
    return 1


@compiled(counted=False)
def remove(face, s, i):
    """Member i leaves, and the last one takes its place. The new size of the support."""
    place, y, sizes, P, N, r, w, _, _ = face
    last, own = s - 1, N[i, i]
    if own > 0.0:
        for c in range(s):
            w[c] = N[i, c]
        _add_square(s, N, w, -1.0 / own)
    place[i], y[i], sizes[i] = place[last], y[last], sizes[last]
    for c in range(r.size):
        P[i, c] = P[last, c]
    for c in range(s):
        N[i, c] = N[last, c]
    for c in range(last):
        N[c, i] = N[c, last]
    N[i, i] = N[last, last]
    for c in range(last):
        N[c, last] = 0.0
    return last


@compiled(counted=False)
def rebuild(face, s, ridge):
    """N of the members afresh. One that depends on those before it gets a row of zeros: its weight does not answer."""
    place, y, sizes, P, N, _, _, _, _ = face
    for c in range(N.shape[1]):
        N[0, c] = 0.0
    for k in range(1, s):
        rest, depends = explain(face, k, P[k], sizes[k], ridge)
        append(face, k, place[k], P[k], y[k], sizes[k], math.inf if depends else rest)


@compiled(counted=False)
def enter(face, s, j, p, q, half, ridge, moves, most):
    """Atom j, no member yet, takes weight as long as that gains; members that it empties leave. New size, and moves.

    The gain along the line on which the members give weight in the best way is a parabola, or, where p depends on them,
    linear: then the line ends only where a member is used up.
    """
    _, y, sizes, _, _, r, w, _, e = face
    d, weight = r.size, 0.0
    while s > 0:
        rest, depends = explain(face, s, p, q, ridge)
        slope = dot(e, r, d) + half * q + ridge * weight
        for i in range(s):
            slope -= w[i] * (half * sizes[i] + ridge * y[i])
        if weight == 0.0:
            if not slope < 0.0:
                return s, moves
            moves += 1
        step = math.inf
        if not depends:
            step = max(0.0, -slope / rest) if weight == 0.0 or moves < most else 0.0
        step, out = longest(s, y, w, step)
        for c in range(d):
            r[c] += step * e[c]
        weight += step
        if out < 0:
            return append(face, s, j, p, weight, q, rest), moves
        s, moves = remove(face, s, out), moves + 1
    return begin(face, j, p, q), moves


@compiled(counted=False)
def longest(s, y, w, step):
    """y -= step w, but no further than to where a weight is used up; the step, and that member or -1."""
    out = -1
    for i in range(s):
        if w[i] > 0.0 and w[i] * step > y[i]:
            step, out = y[i] / w[i], i
    for i in range(s):
        y[i] = max(0.0, y[i] - step * w[i])
    return step, out


@compiled(counted=False)
def settle(face, s, half, ridge, goal):
    """Newton's steps until the slopes of all members agree to `goal`; r afresh. The new size of the support."""
    _, y, sizes, P, N, r, w, a, _ = face
    before = math.inf
    for _ in range(STEPS):
        mean = worst = 0.0
        normalise(s, y)
        combine(s, y, P, r)
        for i in range(s):
            a[i] = dot(P[i], r, r.size) + half * sizes[i] + ridge * y[i]
            mean += y[i] * a[i]
        for i in range(s):
            a[i] -= mean
            worst = max(worst, abs(a[i]))
        if not worst > goal:
            break
        if worst > 0.1 * before:
            rebuild(face, s, ridge)
            before = math.inf
            continue
        before = worst
        respond(s, N, a, w)
        _, out = longest(s, y, w, 1.0)
        if out >= 0:
            s, before = remove(face, s, out), math.inf
    return s
