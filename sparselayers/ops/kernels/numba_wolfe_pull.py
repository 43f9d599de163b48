"""The pull-back through the nearest point of a simplex: one small solve a query, on its support, compiled by Numba."""

# mypy: ignore-errors
from __future__ import annotations

import math

import numba  # noqa: TID253 - this module is imported only when a kernel is first used
import numpy as np
import torch
from torch import Tensor

from .numba_face import DEPENDENT, backward, dot, forward
from .numba_tools import at, compiled, flat, launch, per_row


@compiled()
def _pull(y, v, x, atoms, owner, ridge, w, first, last):
    """On the support of each row of y: w = B v - B 1 (1 B v) / (1 B 1) with B A^-1; dependent atoms keep 0."""
    n, d = atoms.shape[1], atoms.shape[2]
    widest = 0
    for i in range(np.int64(first), np.int64(last)):
        size = 0
        for j in range(n):
            size += y[i, j] > 0
        widest = max(widest, size)
    L, P, z = np.empty((widest, widest)), np.empty((widest, d)), np.empty((2, widest))
    place, square = np.empty(widest, np.int64), np.empty(n)
    for i in range(np.int64(first), np.int64(last)):
        keys, s, unit, ridged = atoms[owner[i]], 0, 0.0, at(ridge, i)
        for j in range(n):
            square[j] = 0.0
            for c in range(d if y[i, j] > 0 else 0):
                difference = np.float64(keys[j, c]) - np.float64(x[i, c])
                square[j] += difference * difference
            unit = max(unit, square[j])
        for j in range(n):
            if not y[i, j] > 0:
                continue
            for c in range(d):
                P[s, c] = np.float64(keys[j, c]) - np.float64(x[i, c])
            row, whole = L[s], square[j] + ridged + unit
            for k in range(s):
                row[k] = dot(P[k], P[s], d) + unit
            forward(L, s, row)
            rest = whole - dot(row, row, s)
            if rest > DEPENDENT * whole:
                row[s] = math.sqrt(rest)
                z[0, s] = (1.0 - dot(row, z[0], s)) / row[s]
                z[1, s] = (v[i, j] - dot(row, z[1], s)) / row[s]
                place[s] = j
                s += 1
        if s > 1:
            level = -dot(z[0], z[1], s) / dot(z[0], z[0], s)
            for k in range(s):
                z[1, k] += level * z[0, k]
            backward(L, s, z[1])
            for k in range(s):
                w[i, place[k]] = z[1, k]


@compiled(parallel=True)
def _pull_parallel(y, v, x, atoms, owner, ridge, w, units, parts):
    for part in numba.prange(parts):
        _pull(y, v, x, atoms, owner, ridge, w, part * units // parts, (part + 1) * units // parts)


def pull_weights(y: Tensor, v: Tensor, x: Tensor, atoms: Tensor, owner: Tensor, ridge: float | Tensor) -> Tensor:
    """w (m, n) from weights y and a gradient v of them (m, n): one solve a query, on its support."""
    w = torch.zeros_like(y)
    args = (*(q.detach().numpy() for q in (y, v, x, atoms)), flat(owner), per_row(ridge), w.numpy())
    launch(_pull, _pull_parallel, args, y.shape[0], y.numel() * x.shape[1])
    return w
