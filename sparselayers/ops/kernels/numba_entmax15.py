"""Entmax with alpha = 1.5 on rows, compiled by Numba. CUDA twin: triton_rows."""

# mypy: ignore-errors
from __future__ import annotations

import math

import numba  # noqa: TID253 - this module is imported only when a kernel is first used
import numpy as np
import torch
from torch import Tensor

from .numba_tools import BLOCK, LANES, MOST_PASSES, bit_pattern, compiled, flat, highest, launch, peaks_of


@compiled()
def _moments(v, lo, hi, top, tau):
    """Sum, sum of squares and number of the ((v - top) / 2 - tau)_+ of the row; NaN comes through.

    -abs(v - top) for v - top: see numba_rows.
    """
    area, square, members = 0.0, 0.0, 0.0
    zero, half, one = v.dtype.type(0), v.dtype.type(0.5), v.dtype.type(1)
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
    f = v.dtype.type
    return f(area), f(square), f(members)


@compiled()
def _write_squares(v, lo, hi, top, tau, out):
    """out = ((v - top) / 2 - tau)_+²; how many entries stand out."""
    zero, half, one = v.dtype.type(0), v.dtype.type(0.5), v.dtype.type(1)
    count = zero
    for j in range(lo, hi):
        d = -half * abs(v[j] - top) - tau
        count += one if d > 0 else zero
        out[j] = zero if d <= 0 else d * d
    return count


@compiled()
def _entmax15(v, bits, n, shift, magnitude, out, first, last):
    f = v.dtype.type
    lanes = np.empty(LANES + 1, bits.dtype)
    peaks = lanes.view(v.dtype)
    wide = np.uint64(LANES)
    for i in range(first, last):
        lo, hi = i * n, i * n + n
        tau = -f(1)  # relative to the top, where that entry alone would be the answer
        if n > wide:
            lanes[LANES] = peaks_of(bits, lo, hi, shift, magnitude, False, lanes)
            top = peaks[LANES] if peaks[LANES] != -np.inf else f(0)
            for _ in range(LANES):
                area, square, _members = _moments(peaks, np.uint64(0), wide, top, tau)
                length = math.sqrt(square)
                step = length * (length - f(1)) / area if area > 0 else f(0)
                tau += step
                if not step > 1e-3:
                    break
        else:
            lanes[LANES] = highest(bits, lo, hi, shift, magnitude, False)
            top = peaks[LANES] if peaks[LANES] != -np.inf else f(0)
        before = -f(1)
        for passes in range(MOST_PASSES):
            area, square, members = _moments(v, lo, hi, top, tau)
            if members == 0 and area == area:  # nothing left in this row
                _write_squares(v, lo, hi, top, tau, out)
                break
            length = math.sqrt(square)
            step = length * (length - f(1)) / area
            # On a support found before, the closed form is tried; where it leaves the support as it was it is the root.
            if members == before or passes == 0 or not step > 0.0:
                mean = area / members
                spread = (f(1) - square + area * mean) / members
                closed = f(tau + mean - math.sqrt(max(spread, f(0))))
                same = _write_squares(v, lo, hi, top, closed, out) == members
                if same or (passes > 0 and not step > 0.0) or closed != closed:
                    break
            before = members
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
            part, roots = zero, zero
            for j in range(start, stop):
                root = math.sqrt(p[j])
                part += root * g[j] if p[j] != 0 else zero
                roots += root
            weighted += part
            total += roots
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
    launch(_entmax15, _entmax15_parallel, (flat(z), bits, np.uint64(z.shape[1]), *bit_pattern(z), flat(out)), z)
    return out


def entmax15_backward(p: Tensor, g: Tensor) -> Tensor:
    """The vector-Jacobian product of `entmax15` at its result p."""
    grad = torch.empty_like(p)
    launch(_entmax15_back, _entmax15_back_parallel, (flat(p), flat(g), np.uint64(p.shape[1]), flat(grad)), p)
    return grad
