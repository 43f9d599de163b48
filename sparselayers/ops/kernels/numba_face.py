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


@compiled()
def dot(a, b, size):
    total = 0.0
    for c in range(size):
        total += a[c] * b[c]
    return total


@compiled()
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


@compiled()
def respond(face, s):
    """w = N a."""
    wide = (s + EIGHT - 1) // EIGHT * EIGHT
    for i in range(s, wide):
        face.a[i] = face.w[i] = 0.0
    for i in range(s):
        face.w[i] = dot(face.N[i], face.a, wide)


@compiled()
def _add_square(face, s, factor):
    """N += factor w w^T."""
    wide = (s + EIGHT - 1) // EIGHT * EIGHT
    for i in range(s):
        row, weight = face.N[i], factor * face.w[i]
        for c in range(wide):
            row[c] += weight * face.w[c]


@compiled()
def explain(face, s, p, q, ridge):
    """w of the members nearest to p, e = p - w P, the square of its size with the ridge's part, and whether p depends."""
    d = p.size
    base = face.P[0]
    for c in range(d):
        face.e[c] = p[c] - base[c]
    for i in range(s):
        face.a[i] = dot(face.P[i], face.e, d)
    face.a[0] -= ridge
    respond(face, s)
    face.w[0] += 1.0
    total = 0.0
    for i in range(s):
        total += face.w[i]
    square, whole = 0.0, q
    for i in range(s):
        face.w[i] /= total
        weight = face.w[i] * face.w[i]
        square += weight
        whole += weight * face.q[i]
    combine(s, face.w, face.P, face.e)
    for c in range(d):
        face.e[c] = p[c] - face.e[c]
    rest = dot(face.e, face.e, d) + ridge * (1.0 + square)
    return rest, not rest > DEPENDENT * (whole + ridge)


@compiled()
def append(face, s, j, p, weight, q, rest):
    """Atom j is member s, after `explain` has said `rest` of it."""
    for c in range(p.size):
        face.P[s, c] = p[c]
    face.place[s], face.y[s], face.q[s] = j, weight, q
    for c in range(face.N.shape[1]):
        face.N[s, c] = 0.0
    face.w[s] = -1.0
    for i in range(s + 1, (s + EIGHT) // EIGHT * EIGHT):
        face.w[i] = 0.0
    _add_square(face, s + 1, 1.0 / rest)
    return s + 1


@compiled()
def begin(face, j, p, q):
    """Atom j is the only member."""
    for c in range(p.size):
        face.P[0, c] = face.r[c] = p[c]
    face.place[0], face.y[0], face.q[0] = j, 1.0, q
    for c in range(face.N.shape[1]):
        face.N[0, c] = 0.0
    return 1


@compiled()
def remove(face, s, i):
    """Member i leaves, and the last one takes its place. The new size of the support."""
    last = s - 1
    own = face.N[i, i]
    if own > 0.0:
        for c in range(s):
            face.w[c] = face.N[i, c]
        for c in range(s, (s + EIGHT - 1) // EIGHT * EIGHT):
            face.w[c] = 0.0
        _add_square(face, s, -1.0 / own)
    face.place[i], face.y[i], face.q[i] = face.place[last], face.y[last], face.q[last]
    for c in range(face.r.size):
        face.P[i, c] = face.P[last, c]
    for c in range(s):
        face.N[i, c] = face.N[last, c]
    for c in range(last):
        face.N[c, i] = face.N[c, last]
    face.N[i, i] = face.N[last, last]
    for c in range(last):
        face.N[c, last] = 0.0
    return last


@compiled()
def rebuild(face, s, ridge):
    """N of the members afresh. One that depends on those before it gets a row of zeros: its weight does not answer."""
    for c in range(face.N.shape[1]):
        face.N[0, c] = 0.0
    for k in range(1, s):
        rest, depends = explain(face, k, face.P[k], face.q[k], ridge)
        append(face, k, face.place[k], face.P[k], face.y[k], face.q[k], math.inf if depends else rest)


@compiled()
def enter(face, s, j, p, q, half, ridge, moves, most):
    """Atom j, no member yet, takes weight as long as that gains; members that it empties leave. New size, and moves.

    The gain along the line on which the members give weight in the best way is a parabola, or, where p depends on them,
    linear: then the line ends only where a member is used up.
    """
    d, weight = p.size, 0.0
    while s > 0:
        rest, depends = explain(face, s, p, q, ridge)
        slope = dot(face.e, face.r, d) + half * q + ridge * weight
        for i in range(s):
            slope -= face.w[i] * (half * face.q[i] + ridge * face.y[i])
        if weight == 0.0:
            if not slope < 0.0:
                return s, moves
            moves += 1
        step = math.inf
        if not depends:
            step = max(0.0, -slope / rest) if weight == 0.0 or moves < most else 0.0
        step, out = longest(face, s, step)
        for c in range(d):
            face.r[c] += step * face.e[c]
        weight += step
        if out < 0:
            return append(face, s, j, p, weight, q, rest), moves
        s, moves = remove(face, s, out), moves + 1
    return begin(face, j, p, q), moves


@compiled()
def longest(face, s, step):
    """y -= step w, but no further than to where a weight is used up; the step, and that member or -1."""
    out = -1
    for i in range(s):
        if face.w[i] > 0.0 and face.w[i] * step > face.y[i]:
            step, out = face.y[i] / face.w[i], i
    for i in range(s):
        face.y[i] = max(0.0, face.y[i] - step * face.w[i])
    return step, out


@compiled()
def settle(face, s, half, ridge, goal):
    """Newton's steps until the slopes of all members agree to `goal`; r afresh. The new size of the support."""
    before = math.inf
    for _ in range(STEPS):
        total, mean, worst = 0.0, 0.0, 0.0
        for i in range(s):
            total += face.y[i]
        for i in range(s):
            face.y[i] /= total
        combine(s, face.y, face.P, face.r)
        for i in range(s):
            face.a[i] = dot(face.P[i], face.r, face.r.size) + half * face.q[i] + ridge * face.y[i]
            mean += face.y[i] * face.a[i]
        for i in range(s):
            face.a[i] -= mean
            worst = max(worst, abs(face.a[i]))
        if not worst > goal:
            break
        if worst > 0.1 * before:
            rebuild(face, s, ridge)
            before = math.inf
            continue
        before = worst
        respond(face, s)
        _, out = longest(face, s, 1.0)
        if out >= 0:
            s, before = remove(face, s, out), math.inf
    return s
