"""The optimum on the affine hull of a support of atoms, by a Cholesky factor that is updated as members join and leave.

On a support S with p_j = k_j - x, the matrix A = P P^T + ridge I + unit 1 1^T has the factor L, and z = L^-1 [1, -half q] is
carried along; the last term of A is constant where the weights sum to 1, and makes A regular where the members are
affinely independent.
"""

# mypy: ignore-errors
from __future__ import annotations

import math

from .numba_tools import compiled

DEPENDENT = 1e-11  # of an atom's squared size: less that the support does not explain counts as nothing


@compiled()
def dot(a, b, size):
    total = 0.0
    for c in range(size):
        total += a[c] * b[c]
    return total


@compiled()
def forward(L, s, b):
    """b <- L^-1 b."""
    for i in range(s):
        row = L[i]
        b[i] = (b[i] - dot(row, b, i)) / row[i]


@compiled()
def backward(L, s, b):
    """b <- L^-T b."""
    for i in range(s - 1, -1, -1):
        row = L[i]
        b[i] /= row[i]
        for k in range(i):
            b[k] -= row[k] * b[i]


@compiled()
def append(j, p, weight, q, unit, half, ridge, s, L, P, z, place, y, qs):
    """Atom j joins the support; it goes in by pivots while it depends on it affinely. The new size of the support."""
    d = P.shape[1]
    whole = q + ridge + unit
    while True:
        row = L[s]
        for i in range(s):
            row[i] = dot(P[i], p, d) + unit
        forward(L, s, row)
        rest = whole - dot(row, row, s)
        if rest > DEPENDENT * whole or s == 0:
            break
        # Along (1, -u) nothing but the linear term changes, and it falls: go on until a weight is used up.
        u = L[s + 1]
        for i in range(s):
            u[i] = row[i]
        backward(L, s, u)
        step, out = math.inf, 0
        for i in range(s):
            if u[i] > 1e-9 and y[i] < step * u[i]:
                step, out = y[i] / u[i], i
        for i in range(s):
            y[i] = max(0.0, y[i] - step * u[i])
        weight += step
        remove(out, s, L, P, z, place, y, qs)
        s -= 1
    L[s, s] = math.sqrt(rest)
    z[0, s] = (1.0 - dot(L[s], z[0], s)) / L[s, s]
    z[1, s] = (-half * q - dot(L[s], z[1], s)) / L[s, s]
    for c in range(d):
        P[s, c] = p[c]
    place[s], y[s], qs[s] = j, weight, q
    return s + 1


@compiled()
def remove(i, s, L, P, z, place, y, qs):
    """Member i leaves the support: rows move up, and rotations make L triangular again."""
    d = P.shape[1]
    for k in range(i, s - 1):
        for c in range(k + 2):
            L[k, c] = L[k + 1, c]
        for c in range(d):
            P[k, c] = P[k + 1, c]
        place[k], y[k], qs[k] = place[k + 1], y[k + 1], qs[k + 1]
    for k in range(i, s - 1):
        a, b = L[k, k], L[k, k + 1]
        size = math.sqrt(a * a + b * b)
        cos, sin = a / size, b / size
        for c in range(k, s - 1):
            a, b = L[c, k], L[c, k + 1]
            L[c, k], L[c, k + 1] = cos * a + sin * b, cos * b - sin * a
        for c in range(2):
            a, b = z[c, k], z[c, k + 1]
            z[c, k], z[c, k + 1] = cos * a + sin * b, cos * b - sin * a


@compiled()
def combine(s, P, weights, r):
    """r = sum_i weights_i p_i, after the weights have been divided by their sum."""
    total = 0.0
    for i in range(s):
        total += weights[i]
    for c in range(r.size):
        r[c] = 0.0
    for i in range(s):
        row, weight = P[i], weights[i] / total
        weights[i] = weight
        for c in range(r.size):
            r[c] += weight * row[c]


@compiled()
def target(s, L, P, z, qs, half, ridge, t, e, r):
    """t = the optimum on the affine hull of the support, refined once, and r of it."""
    level = (1.0 - dot(z[0], z[1], s)) / dot(z[0], z[0], s)
    for i in range(s):
        t[i] = z[1, i] + level * z[0, i]
    backward(L, s, t)
    combine(s, P, t, r)
    mean = 0.0
    for i in range(s):
        e[i] = -(dot(P[i], r, r.size) + half * qs[i] + ridge * t[i])
        mean += e[i] / s
    for i in range(s):
        e[i] -= mean
    forward(L, s, e)
    level = -dot(z[0], e, s) / dot(z[0], z[0], s)
    for i in range(s):
        e[i] += level * z[0, i]
    backward(L, s, e)
    for i in range(s):
        t[i] += e[i]
    combine(s, P, t, r)
