"""The level of the waterline with any weights, compiled by Numba. CUDA twin: triton_rows."""

# mypy: ignore-errors
from __future__ import annotations

import numba  # noqa: TID253 - this module is imported only when a kernel is first used
import numpy as np
import torch
from torch import Tensor

from .numba_tools import BLOCK, MOST_PASSES, at, compiled, flat, launch, per_row


@compiled()
def _sums(u, a, lo, hi, tau, per_entry):
    """sum a (u - tau)_+, the weights of what stands out, and its number; a is per entry, or 1 stands in its place."""
    area, mass, members = 0.0, 0.0, 0.0
    zero, one = u.dtype.type(0), u.dtype.type(1)
    while lo < hi:
        stop = min(hi, lo + np.uint64(BLOCK))
        part, weights, count = zero, zero, zero
        for j in range(lo, stop):
            weight = a[j] if per_entry else one
            d = u[j] - tau
            part += zero if d <= 0 else weight * d
            weights += weight if d > 0 else zero
            count += one if d > 0 else zero
        area += part
        mass += weights
        members += count
        lo = stop
    return area, mass, members


@compiled()
def _level(u, n, a, b, c, level, per_entry, first, last):
    f = u.dtype.type
    for i in range(first, last):
        a_i = 1.0 if per_entry else np.float64(at(a, i))
        b_i, c_i, tau = np.float64(at(b, i)), np.float64(at(c, i)), level[i]
        for passes in range(MOST_PASSES):
            area, mass, members = _sums(u, a, i * n, i * n + n, tau, per_entry)
            if members == 0 and area == area:
                break
            before = tau
            tau += f((a_i * area - (b_i + c_i * tau)) / (a_i * mass + c_i))
            if passes > 0 and not tau > before:
                break
        level[i] = tau


@compiled(parallel=True)
def _level_parallel(u, n, a, b, c, level, per_entry, rows, parts):
    for part in numba.prange(parts):
        first, last = np.uint64(part * rows // parts), np.uint64((part + 1) * rows // parts)
        _level(u, n, a, b, c, level, per_entry, first, last)


def level(u: Tensor, a, b, c, start: Tensor) -> Tensor:
    """tau (m, 1) with sum_i a_i (u_i - tau)_+ = b + c tau by Newton from `start` (m, 1), which is not above the root.

    u is (m, n), contiguous; a is (m, n), contiguous, or like b and c one a row or a number.
    """
    found = start.clone(memory_format=torch.contiguous_format)
    per_entry = isinstance(a, Tensor) and a.shape == u.shape and u.shape[1] > 1
    weights = flat(a) if per_entry else per_row(a).astype(flat(found).dtype)
    args = (flat(u), np.uint64(u.shape[1]), weights, per_row(b), per_row(c), flat(found), per_entry)
    launch(_level, _level_parallel, args, u.shape[0], u.numel())
    return found
