"""The Lasso of many signals over one dictionary by an active set on its Gram matrix, one signal a loop, compiled by Numba.

With G = D^T D and c = D^T (x - D z) the problem is  min 1/2 z G z - z D^T x + sum_j a_j abs(z_j) + b_j/2 z_j².  A round is a
pass of coordinate descent over all entries, by which atoms join the support, some passes over the support alone, and then
the exact optimum of the support at its signs (Lee, Battle, Raina and Ng 2006, feature-sign search): a Cholesky solve, and
where an entry would change its sign on the way it becomes 0 and leaves. The duality gap comes from c, all in float64.
"""

# mypy: ignore-errors
from __future__ import annotations

import math

import numba  # noqa: TID253 - this module is imported only when a kernel is first used
import numpy as np
import torch
from torch import Tensor

from .numba_tools import at, compiled, flat, launch
from .numba_triangle import backward, dot, forward

FIRST_PASSES = 20
LATER_PASSES = 10
FALL = 0.75  # enough for most signs to be right, so that few entries leave one by one
DEPENDENT = 1e-10  # an atom is dependent on others when this part of its square is left beside them


@compiled()
def _entry(u, a, curvature, nonnegative):
    """argmin_z  curvature/2 z² - u z + a abs(z)."""
    if u > a:
        return (u - a) / curvature
    if u < -a and not nonnegative:
        return (u + a) / curvature
    return 0.0


@compiled()
def _sweep(G, a, excess, b, nonnegative, z, c):
    """One pass over all entries at the weights a times `excess`; c = D^T x - G z is kept. How far the farthest moved."""
    n, farthest = z.size, 0.0
    for j in range(n):
        curvature = G[j, j] + at(b, j)
        if curvature <= 0.0:
            continue
        moved = _entry(c[j] + G[j, j] * z[j], excess * at(a, j), curvature, nonnegative) - z[j]
        if moved != 0.0:
            z[j] += moved
            farthest = max(farthest, abs(moved))
            row = G[j]
            for i in range(n):
                c[i] -= moved * row[i]
    return farthest


@compiled()
def _gap(a, b, nonnegative, z, c, size):
    """The duality gap from c = D^T r and size = ‖r‖²."""
    slope, mass, curved, other, s = 0.0, 0.0, 0.0, 0.0, 1.0
    for j in range(z.size):
        aj, bj = at(a, j), at(b, j)
        if z[j] != 0.0:
            slope += z[j] * c[j]
            mass += aj * abs(z[j])
            curved += bj * z[j] * z[j]
        reach = c[j] - bj * z[j]
        reach = reach if nonnegative else abs(reach)
        if reach > aj:
            s = min(s, aj / reach)
        excess = (c[j] if nonnegative else abs(c[j])) - aj
        if excess > 0.0:
            other += excess * excess / (2.0 * bj) if bj > 0.0 else math.inf
    gap = 0.5 * (1.0 - s) * (1.0 - s) * (max(size, 0.0) + curved) + mass - s * (slope - curved)
    return max(min(gap, mass - slope + 0.5 * curved + other), 0.0)


@compiled()
def _correlate(G, linear, square, z, c):
    """c = D^T r and ‖r‖² from the Gram matrix."""
    for j in range(z.size):
        c[j] = linear[j]
    for i in range(z.size):
        if z[i] != 0.0:
            row, entry = G[i], z[i]
            for j in range(z.size):
                c[j] -= entry * row[j]
    for i in range(z.size):
        square -= z[i] * (linear[i] + c[i])
    return square


@compiled()
def _within(G, a, b, nonnegative, z, c, place, k, S, g, most):
    """`most` passes over the support, in a matrix of its own."""
    for i in range(k):
        row, own = G[place[i]], S[i]
        g[i] = c[place[i]]
        for t in range(k):
            own[t] = row[place[t]]
    for _ in range(most):
        for i in range(k):
            j, own = place[i], S[i]
            moved = _entry(g[i] + own[i] * z[j], at(a, j), own[i] + at(b, j), nonnegative) - z[j]
            if moved != 0.0:
                z[j] += moved
                for t in range(k):
                    g[t] -= moved * own[t]


@compiled()
def _factor(G, b, place, known, k, L):
    """The Cholesky factor of G + b on the support up to the first dependent atom, from row `known` on: how many rows."""
    for i in range(known, k):
        row, column = L[i], G[place[i]]
        for t in range(i):
            row[t] = column[place[t]]
        forward(L, i, row)
        whole = column[place[i]] + at(b, place[i])
        rest = whole - dot(row, row, i)
        if rest <= DEPENDENT * whole:
            return i
        row[i] = math.sqrt(rest)
    return k


@compiled()
def _leave(out, place, g, known, k, L):
    """Member `out` leaves the support; how many rows of the factor are known then. Rotations make it triangular again."""
    for i in range(out, k - 1):
        place[i], g[i] = place[i + 1], g[i + 1]
    if out >= known:
        return known
    for i in range(out, known - 1):
        for t in range(i + 2):
            L[i, t] = L[i + 1, t]
    for t in range(out, known - 1):
        cos, sin = L[t, t], L[t, t + 1]
        size = math.sqrt(cos * cos + sin * sin)
        cos, sin = cos / size, sin / size
        for i in range(t, known - 1):
            one, other = L[i, t], L[i, t + 1]
            L[i, t], L[i, t + 1] = cos * one + sin * other, cos * other - sin * one
    return known - 1


@compiled()
def _prune(z, place, g, known, k, L):
    """The support without the members that are 0: its size, and the rows of the factor that are known."""
    for i in range(k - 1, -1, -1):
        if z[place[i]] == 0.0:
            known = _leave(i, place, g, known, k, L)
            k -= 1
    return known, k


@compiled()
def _first_zero(a, nonnegative, z, place, k, move, step):
    """How much of the move, at most `step`, may be made until an entry becomes 0, and which one; -1 where none does."""
    out = -1
    for i in range(k):
        old = z[place[i]]
        if old * move[i] < 0.0 and (nonnegative or at(a, place[i]) > 0.0) and -old / move[i] <= step:
            step, out = -old / move[i], i
    return step, out


@compiled()
def _settle(G, a, b, nonnegative, z, place, known, k, L, g, y, target, passes, most):
    """From z to the optimum of the support that it ends on, dropping members on the way: `known`, its size, the passes."""
    while k > 0 and passes < most:
        passes += 1
        known = _factor(G, b, place, known, k, L)
        if known == k:
            for i in range(k):
                j = place[i]
                target[i] = math.copysign(at(a, j), z[j]) + at(b, j) * z[j]
                y[i] = g[i] - target[i]
            forward(L, k, y)
            backward(L, k, y)
            step, out = _first_zero(a, nonnegative, z, place, k, y, 1.0)
            for i in range(k):
                g[i] += step * (target[i] + at(b, place[i]) * y[i] - g[i])
        else:  # along (-u, 1) the residual stays, and the penalty is linear: go where it falls
            for i in range(k):
                y[i] = L[known, i] if i < known else 0.0
            backward(L, known, y)
            slope = math.copysign(at(a, place[known]), z[place[known]])
            for i in range(known):
                slope -= math.copysign(at(a, place[i]), z[place[i]]) * y[i]
            y[known] = -1.0 if slope > 0.0 else 1.0
            for i in range(known):
                y[i] *= -y[known]
            step, out = _first_zero(a, nonnegative, z, place, k, y, math.inf)
            if out < 0:  # without a penalty it stays where it is
                known = _leave(known, place, g, known, k, L)
                k -= 1
                continue
        for i in range(k):
            z[place[i]] += step * y[i]
        if out < 0:
            break
        z[place[out]] = 0.0
        known = _leave(out, place, g, known, k, L)
        k -= 1
    return known, k, passes


@compiled()
def _signal(G, linear, square, a, b, nonnegative, tol, most, z, c, place, member, S, L, g, y, target):
    """Fill z; the passes it took."""
    n, passes, excess, size = z.size, 0, 1.0, square
    for j in range(n):
        z[j], c[j], member[j] = 0.0, linear[j], False
        reach = c[j] if nonnegative else abs(c[j])
        excess = max(excess, reach / at(a, j)) if at(a, j) > 0.0 else excess
    while excess * FALL > 1.0 and passes < most:
        excess *= FALL
        passes += 1
        _sweep(G, a, excess, b, nonnegative, z, c)
        size = math.inf
    known, k, inner = 0, 0, FIRST_PASSES
    while passes < most and _gap(a, b, nonnegative, z, c, size) > tol * square:
        passes += 1
        if _sweep(G, a, 1.0, b, nonnegative, z, c) == 0.0 or passes == most:
            break
        known, k = _prune(z, place, g, known, k, L)
        for i in range(k):
            member[place[i]] = True
        for j in range(n):
            if z[j] != 0.0 and not member[j]:
                place[k] = j
                k += 1
        for i in range(k):
            member[place[i]] = False
        inner = min(inner, most - passes)
        _within(G, a, b, nonnegative, z, c, place, k, S, g, inner)
        known, k = _prune(z, place, g, known, k, L)
        known, k, passes = _settle(G, a, b, nonnegative, z, place, known, k, L, g, y, target, passes + inner, most)
        inner = LATER_PASSES
        size = _correlate(G, linear, square, z, c)
    return passes


@compiled()
def _lasso(x, atoms, G, a, b, nonnegative, unit, tol, most, out, gap, count, first, last):
    n, m = atoms.shape
    z, c, g, y, target, linear, r = (
        np.empty(n),
        np.empty(n),
        np.empty(n),
        np.empty(n),
        np.empty(n),
        np.empty(n),
        np.empty(m),
    )
    place, member, S, L = np.empty(n, np.int64), np.empty(n, np.bool_), np.empty((n, n)), np.empty((n, n))
    for i in range(np.int64(first), np.int64(last)):
        ai, bi, scale = a[i if a.shape[0] > 1 else 0], b[i if b.shape[0] > 1 else 0], unit[i]
        for t in range(m):
            r[t] = x[i, t]
        square, sound = 0.5 * dot(r, r, m), 0.0
        for j in range(n):
            linear[j] = dot(atoms[j], r, m)
            sound += 0.0 * linear[j] + 0.0 * at(ai, j)
        if sound != 0.0:  # NaN or infinite
            gap[i], count[i] = math.nan, 0
            for j in range(n):
                out[i, j] = math.nan
            continue
        count[i] = _signal(
            G, linear, 2.0 * square, ai, bi, nonnegative, tol, most, z, c, place, member, S, L, g, y, target
        )
        for j in range(n):
            out[i, j] = z[j] * scale
            z[j] = out[i, j] / scale
            if z[j] != 0.0:
                for t in range(m):
                    r[t] -= z[j] * atoms[j, t]
        for j in range(n):
            c[j] = dot(atoms[j], r, m)
        excess = _gap(ai, bi, nonnegative, z, c, dot(r, r, m))
        gap[i] = excess / square if excess > 0.0 else 0.0


@compiled(parallel=True)
def _lasso_parallel(x, atoms, G, a, b, nonnegative, unit, tol, most, out, gap, count, units, parts):
    for part in numba.prange(parts):
        first, last = part * units // parts, (part + 1) * units // parts
        _lasso(x, atoms, G, a, b, nonnegative, unit, tol, most, out, gap, count, first, last)


def lasso(
    x: Tensor, D: Tensor, a: Tensor, b: Tensor, nonnegative: bool, unit: Tensor, tol: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes times unit (B, n), their gaps (B,) and passes (B,) of x (B, m); a and b are (B or 1, n or 1), unit (B,)."""
    atoms = D.mT.double().contiguous()
    out, gap, count = (x.new_empty(x.shape[0], n) for n in (D.shape[1], 1, 1))
    args = (
        x.numpy(), atoms.numpy(), (atoms @ atoms.mT).numpy(), a.numpy(), b.numpy(), nonnegative, unit.numpy(),
        0.5 * tol if x.dtype == torch.float64 else 0.25 * tol,  # rounding the codes may cost the other half
        most, out.numpy(), flat(gap), flat(count),
    )  # fmt: skip
    launch(_lasso, _lasso_parallel, args, x.shape[0], 16 * out.numel())
    return out, gap.squeeze(-1), count.squeeze(-1).long()
