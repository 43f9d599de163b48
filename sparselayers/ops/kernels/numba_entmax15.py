"""Entmax with alpha = 1.5 on rows, compiled by Numba. CUDA twin: triton_rows."""

# mypy: ignore-errors
from __future__ import annotations

import math

import numba  # noqa: TID253 - this module is imported only when a kernel is first used
import numpy as np
import torch
from torch import Tensor

from .numba_tools import BLOCK, LANES, MOST_PASSES, bit_pattern, compiled, flat, highest, launch, peaks_of

NEAR, NEAR_SHORT = 0.02, 0.1  # a step below which the support is found in one or two passes more


@compiled()
def _moments(v, lo, hi, top, tau, one):
    """Sum, sum of squares and number of the ((v - top) / 2 - tau)_+ of the row, in the precision of `one`; NaN comes through.

    -abs(v - top) for v - top: see numba_rows.
    """
    area, square, members = 0.0, 0.0, 0.0
    zero, half = one - one, one / (one + one)
    while lo < hi:
        stop = min(hi, lo + np.uint64(BLOCK))
        part, squares, count = zero, zero, zero
        for j in range(lo, stop):
            d = -half * abs(v[j] - top) - tau
            above = zero if d <= 0 else d
            part += above
            squares += above * above
            count += one if d > 0 else zero
        area += part
        square += squares
        members += count
        lo = stop
    return area, square, members


@compiled()
def _write_squares(v, lo, hi, top, tau, out):
    """out = ((v - top) / 2 - tau)_+²; how many entries stand out."""
    count = 0.0
    for j in range(lo, hi):
        d = -0.5 * abs(v[j] - top) - tau
        count += 1.0 if d > 0 else 0.0
        out[j] = 0.0 if d <= 0 else d * d
    return count


@compiled()
def _entmax15(v, bits, n, shift, magnitude, out, first, last):
    f, one = v.dtype.type, v.dtype.type(1)
    lanes = np.empty(LANES + 1, bits.dtype)
    peaks = lanes.view(v.dtype)
    wide, origin = np.uint64(LANES), np.uint64(0)
    for i in range(first, last):
        lo, hi = i * n, i * n + n
        if n > wide:
            lanes[LANES] = peaks_of(bits, lo, hi, shift, magnitude, False, lanes)
        else:
            lanes[LANES] = highest(bits, lo, hi, shift, magnitude, False)
        top = peaks[LANES] if peaks[LANES] != -np.inf else f(0)
        low = -one  # relative to the top, where that entry alone would be the answer
        for _ in range(LANES):
            if n > wide:
                area, square, _members = _moments(peaks, origin, wide, top, low, one)
            else:
                area, square, _members = _moments(v, lo, hi, top, low, one)
            length = math.sqrt(square)
            step = f(length * (length - 1.0) / area) if area > 0 else f(0)
            low += step
            if not step > (NEAR if n > wide else NEAR_SHORT):
                break
        tau, wide_top = np.float64(low), np.float64(top)
        for passes in range(MOST_PASSES):
            area, square, members = _moments(v, lo, hi, wide_top, tau, 1.0)
            if members == 0 and area == area:  # nothing left in this row
                _write_squares(v, lo, hi, wide_top, tau, out)
                break
            length = math.sqrt(square)
            step = length * (length - 1.0) / area
            # On this support the closed form is the root, unless it leaves the support.
            mean = area / members
            spread = max((1.0 - square + area * mean) / members, 0.0)
            closed = tau + mean - math.sqrt(spread)
            same = _write_squares(v, lo, hi, wide_top, closed, out) == members
            if same or (passes > 0 and not step > 0.0) or closed != closed:
                break
            tau += step


@compiled(parallel=True)
def _entmax15_parallel(v, bits, n, shift, magnitude, out, rows, parts):
    for part in numba.prange(parts):
        first, last = np.uint64(part * rows // parts), np.uint64((part + 1) * rows // parts)
        _entmax15(v, bits, n, shift, magnitude, out, first, last)


@compiled()
def _entmax15_back(p, g, n, grad, first, last):
    f, zero = p.dtype.type, p.dtype.type(0)
    for i in range(first, last):
        lo, hi = i * n, i * n + n
        weighted, total = 0.0, 0.0
        start = lo
        while start < hi:
            stop = min(hi, start + np.uint64(BLOCK))
            for j in range(start, stop):
                root = np.float64(math.sqrt(p[j]))
                weighted += root * g[j] if p[j] != 0 else 0.0
                total += root
            start = stop
        mean = f(weighted / total) if total != 0 else zero
        for j in range(lo, hi):
            grad[j] = math.sqrt(p[j]) * (g[j] - mean) if p[j] != 0 else zero


@compiled(parallel=True)
def _entmax15_back_parallel(p, g, n, grad, rows, parts):
    for part in numba.prange(parts):
        first, last = np.uint64(part * rows // parts), np.uint64((part + 1) * rows // parts)
        _entmax15_back(p, g, n, grad, first, last)


def entmax15(z: Tensor) -> Tensor:
    """(z / 2 - tau)_+² with row sum 1; z is (m, n), contiguous."""
    out = torch.empty_like(z)
    bits = flat(z.view(torch.int32 if z.dtype == torch.float32 else torch.int64))
    args = (flat(z), bits, np.uint64(z.shape[1]), *bit_pattern(z), flat(out))
    launch(_entmax15, _entmax15_parallel, args, z.shape[0], z.numel())
    return out


def entmax15_backward(p: Tensor, g: Tensor) -> Tensor:
    """The vector-Jacobian product of `entmax15` at its result p."""
    grad = torch.empty_like(p)
    args = (flat(p), flat(g), np.uint64(p.shape[1]), flat(grad))
    launch(_entmax15_back, _entmax15_back_parallel, args, p.shape[0], p.numel())
    return grad
