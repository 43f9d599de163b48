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

from .numba_face import combine, dot, rebuild, respond, room_for
from .numba_tools import at, compiled, flat, launch, per_row


@compiled()
def _gather(y, x, atoms, face):
    """The support of one query's weights; its size, -1 if they are NaN."""
    s = 0
    for j in range(y.size):
        if y[j] > 0:
            total = 0.0
            for c in range(x.size):
                face.P[s, c] = np.float64(atoms[j, c]) - np.float64(x[c])
                total += face.P[s, c] * face.P[s, c]
            face.place[s], face.y[s], face.q[s] = j, y[j], total
            s += 1
        elif y[j] != y[j]:
            return -1
    return s


@compiled()
def _solve(face, s, v, ridge, pull, spare):
    """pull = sum w_i p_i of w = N v, refined once and left in `spare`."""
    d = face.r.size
    rebuild(face, s, ridge)
    for i in range(s):
        face.a[i], spare[i] = v[face.place[i]], 0.0
    for _ in range(2):
        respond(face, s)
        mean = 0.0
        for i in range(s):
            mean += face.w[i] / s
        for i in range(s):
            spare[i] += face.w[i] - mean
        combine(s, spare, face.P, pull)
        for i in range(s):
            face.a[i] = v[face.place[i]] - dot(face.P[i], pull, d) - ridge * spare[i]


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
        combine(s, face.y, face.P, face.r)
        for c in range(d):
            gx[i, c] = (1.0 + near) * pull[c]
        far = along = 0.0
        for k in range(s):
            row, own, w, weight = grads[face.place[k]], face.P[k], spare[k], face.y[k]
            far += w * face.q[k]
            along += w * weight
            for c in range(d):
                row[c] -= w * (face.r[c] + near * own[c]) + weight * pull[c]
        gl[i], gr[i] = -0.5 * far, -along


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
    """Gradients of x (m, d), of atoms (sets, n, d), of locality and ridge (m,), from weights y and a gradient v of them (m, n)."""
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
