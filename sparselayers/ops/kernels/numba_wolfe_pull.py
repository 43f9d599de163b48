"""The pull-back through the nearest point of a simplex: one small solve a query, on its support, compiled by Numba.

For a gradient v of the weights y, with N of the support (see numba_face): w = N v, P = sum w_i p_i and r = sum y_i p_i.
Then (1 + locality) P is the gradient of x, -w_i (r + locality p_i) - y_i P that of atom i, -w ‖p‖² / 2 that of the locality
and -w y that of the ridge. Only atoms of the support are touched.
"""

# mypy: ignore-errors
from __future__ import annotations

import math

import numba  # noqa: TID253 - this module is imported only when a kernel is first used
import numpy as np
import torch
from torch import Tensor

from .numba_face import combine, rebuild, respond, room_for
from .numba_tools import at, compiled, flat, launch, per_row
from .numba_triangle import dot


@compiled(counted=False)
def _gather(y, x, atoms, face):
    """The support of one query's weights; its size, -1 if they are NaN."""
    place, weights, sizes, P, _, _, _, _, _ = face
    s = 0
    for j in range(y.size):
        if y[j] > 0:
            k, p, total = atoms[j], P[s], 0.0
            for c in range(p.size):
                p[c] = np.float64(k[c]) - np.float64(x[c])
                total += p[c] * p[c]
            place[s], weights[s], sizes[s] = j, y[j], total
            s += 1
        elif y[j] != y[j]:
            return -1
    return s


@compiled(counted=False)
def _solve(face, s, v, ridge, pull, spare):
    """pull = sum w_i p_i of w = N v, refined once and left in `spare`."""
    place, _, _, P, N, _, w, a, _ = face
    rebuild(face, s, ridge)
    for i in range(s):
        a[i], spare[i] = v[place[i]], 0.0
    for _ in range(2):
        respond(s, N, a, w)
        mean = 0.0
        for i in range(s):
            mean += w[i] / s
        for i in range(s):
            spare[i] += w[i] - mean
        combine(s, spare, P, pull)
        for i in range(s):
            a[i] = v[place[i]] - dot(P[i], pull, pull.size) - ridge * spare[i]


@compiled(counted=False)
def _share(face, s, near, w, pull, gx, gk):
    """What one query gives to the gradients of its point, of its atoms, and of locality and ridge."""
    place, y, sizes, P, _, r, _, _, _ = face
    combine(s, y, P, r)
    for c in range(r.size):
        gx[c] = (1.0 + near) * pull[c]
    far = along = 0.0
    for k in range(s):
        row, p, change, weight = gk[place[k]], P[k], w[k], y[k]
        far += change * sizes[k]
        along += change * weight
        for c in range(r.size):
            row[c] -= change * (r[c] + near * p[c]) + weight * pull[c]
    return -0.5 * far, -along


@compiled()
def _pull(y, v, x, atoms, owner, locality, ridge, gx, gk, gl, gr, first, last):
    n, d = atoms.shape[1], atoms.shape[2]
    widest = 1
    for i in range(np.int64(first), np.int64(last)):
        size = 0
        for j in range(n):
            size += y[i, j] > 0
        widest = max(widest, size)
    face, pull, spare = room_for(widest, d), np.empty(d), np.empty(widest)
    for i in range(np.int64(first), np.int64(last)):
        grads, near = gk[0, owner[i]], at(locality, i)
        s = _gather(y[i], x[i], atoms[owner[i]], face)
        if s < 0:  # what such a query says of an atom is NaN, too
            for c in range(d):
                gx[i, c] = math.nan
            gl[i] = gr[i] = math.nan
            for j in range(n):
                for c in range(d if y[i, j] != y[i, j] else 0):
                    grads[j, c] = math.nan
            continue
        if s < 2:
            continue
        _solve(face, s, v[i], at(ridge, i), pull, spare)
        gl[i], gr[i] = _share(face, s, near, spare, pull, gx[i], grads)


@compiled(parallel=True)
def _pull_parallel(y, v, x, atoms, owner, locality, ridge, gx, gk, gl, gr, units, parts):
    for part in numba.prange(parts):
        first, last = part * units // parts, (part + 1) * units // parts
        _pull(y, v, x, atoms, owner, locality, ridge, gx, gk[part : part + 1], gl, gr, first, last)


def pull_gradients(
    y: Tensor,
    v: Tensor,
    x: Tensor,
    atoms: Tensor,
    owner: Tensor,
    locality: float | Tensor,
    ridge: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (m, d), of atoms (sets, n, d), of locality and ridge (m,), from a gradient v of the weights y (m, n)."""
    m = y.shape[0]
    # Threads have sums of their own, which together take no more memory than the weights do.
    parts = max(1, min(torch.get_num_threads(), m, y.numel() // max(1, atoms.numel())))
    gx, gk = torch.zeros_like(x), atoms.new_zeros(parts, *atoms.shape)
    gl, gr = y.new_zeros(m), y.new_zeros(m)
    args = (
        *(q.detach().numpy() for q in (y, v, x, atoms)), flat(owner), per_row(locality), per_row(ridge),
        *(q.numpy() for q in (gx, gk, gl, gr)),
    )  # fmt: skip
    launch(_pull, _pull_parallel, args, m, y.numel() * x.shape[1], parts)
    return gx, gk.sum(0) if parts > 1 else gk[0], gl, gr
