"""The pull-back through the Lasso: one small solve a signal, on the support of its code, compiled by Numba."""

# mypy: ignore-errors
from __future__ import annotations

import numba  # noqa: TID253 - this module is imported only when a kernel is first used
import numpy as np
import torch
from torch import Tensor

from .numba_lasso import _factor
from .numba_tools import compiled, flat, launch
from .numba_triangle import backward, forward


@compiled()
def _pull(z, g, G, b, v, dependent, first, last):
    """On the support of each row of z: v = (G + b)^-1 g; where its atoms depend on each other that is left to others."""
    n, widest = z.shape[1], 1
    for i in range(np.int64(first), np.int64(last)):
        size = 0
        for j in range(n):
            size += abs(z[i, j]) > 0
        widest = max(widest, size)
    L, right, place = np.empty((widest, widest)), np.empty(widest), np.empty(widest, np.int64)
    for i in range(np.int64(first), np.int64(last)):
        k = 0
        for j in range(n):
            if abs(z[i, j]) > 0:
                place[k], right[k] = j, g[i, j]
                k += 1
        if _factor(G, b[i if b.shape[0] > 1 else 0], place, 0, k, L) < k:
            dependent[i] = True
            continue
        forward(L, k, right)
        backward(L, k, right)
        for t in range(k):
            v[i, place[t]] = right[t]


@compiled(parallel=True)
def _pull_parallel(z, g, G, b, v, dependent, units, parts):
    for part in numba.prange(parts):
        _pull(z, g, G, b, v, dependent, part * units // parts, (part + 1) * units // parts)


def pull(z: Tensor, g: Tensor, D: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """v (B, n) from codes and their gradients (B, n), with b (B or 1, n or 1); and the rows (B,) that are not done."""
    atoms = D.double()
    v, dependent = torch.zeros_like(g), torch.zeros(g.shape[0], dtype=torch.bool, device=g.device)
    args = (z.numpy(), g.numpy(), (atoms.mT @ atoms).numpy(), b.numpy(), v.numpy(), flat(dependent))
    launch(_pull, _pull_parallel, args, g.shape[0], 16 * g.numel())
    return v, dependent
