"""The waterline with one weight a row, compiled by Numba: simplex, l1 ball, exclusive. CUDA twin: triton_rows.

A row is read from memory once and stays in the cache. Newton's method climbs first on the maxima of LANES strided
sub-rows, whose root is a lower bound, and then needs one or two passes over the row itself.
"""

# mypy: ignore-errors
from __future__ import annotations

import numba  # noqa: TID253 - this module is imported only when a kernel is first used
import numpy as np
import torch
from torch import Tensor

from .numba_tools import BLOCK, LANES, MOST_PASSES, at, bit_pattern, compiled, flat, highest, launch, peaks_of, per_row


@compiled()
def _area(v, lo, hi, top, tau, signed):
    """sum (u - top - tau)_+ over the row and how many entries stand out; NaN comes through.

    u <= top, so that u - top = -abs(u - top): written so, fast sums cannot turn it into u - (top + tau), which would lose
    the digits of tau.
    """
    area, members = 0.0, 0.0
    zero, one = v.dtype.type(0), v.dtype.type(1)
    while lo < hi:
        stop = min(hi, lo + np.uint64(BLOCK))
        part, count = zero, zero
        for j in range(lo, stop):
            d = -abs((abs(v[j]) if signed else v[j]) - top) - tau
            part += zero if d <= 0 else d
            count += one if d > 0 else zero
        area += part
        members += count
        lo = stop
    return v.dtype.type(area), v.dtype.type(members)


@compiled()
def _write(v, lo, hi, top, tau, signed, out):
    """out = (u - top - tau)_+ with the signs of v; how many entries stand out."""
    zero, one = v.dtype.type(0), v.dtype.type(1)
    count = zero
    for j in range(lo, hi):
        d = -abs((abs(v[j]) if signed else v[j]) - top) - tau
        count += one if d > 0 else zero
        kept = (-d if v[j] < 0 else d) if signed else d
        out[j] = zero if d <= 0 else kept
    return count


@compiled()
def _project(v, bits, n, shift, magnitude, a, b, c, signed, out, level, first, last):
    f, zero = v.dtype.type, v.dtype.type(0)
    lanes = np.empty(LANES + 1, bits.dtype)
    peaks = lanes.view(v.dtype)
    wide = np.uint64(LANES)
    for i in range(first, last):
        lo, hi = i * n, i * n + n
        a_i, b_i, c_i = f(at(a, i)), f(at(b, i)), f(at(c, i))
        if n > wide:
            lanes[LANES] = peaks_of(bits, lo, hi, shift, magnitude, signed, lanes)
        else:
            lanes[LANES] = highest(bits, lo, hi, shift, magnitude, signed)
        top = peaks[LANES]
        if top == -np.inf:
            top = zero
        need = b_i + c_i * top  # the right side, relative to the row's top
        tau = -need / (a_i + c_i)
        if n > wide:
            last_members = -f(1)
            for _ in range(LANES):
                area, members = _area(peaks, np.uint64(0), wide, top, tau, signed)
                if members == 0 or members == last_members:
                    break
                last_members = members
                tau += (a_i * area - (need + c_i * tau)) / (a_i * members + c_i)
        for passes in range(MOST_PASSES):
            area, members = _area(v, lo, hi, top, tau, signed)
            before = tau
            if members > 0 or area != area:
                tau += (a_i * area - (need + c_i * tau)) / (a_i * members + c_i)
            if signed and (tau <= -top or b_i == np.inf):  # inside the ball, or t = 0: nothing moves
                tau = -top
                for j in range(lo, hi):
                    out[j] = v[j]
                break
            if passes == 0 and n <= wide and members > 1:
                continue  # a short row has no lower bound from its lanes: its first level is not worth writing
            # A long step from far below leaves its rounding behind: one more pass takes it away.
            far = a_i * area > 4 * abs(need + c_i * tau)
            if passes == 0 and far and tau > before:
                continue
            if _write(v, lo, hi, top, tau, signed, out) == members or (passes > 0 and not tau > before):
                break
        level[i] = tau + top


@compiled(parallel=True)
def _project_parallel(v, bits, n, shift, magnitude, a, b, c, signed, out, level, rows, parts):
    for part in numba.prange(parts):
        first, last = np.uint64(part * rows // parts), np.uint64((part + 1) * rows // parts)
        _project(v, bits, n, shift, magnitude, a, b, c, signed, out, level, first, last)


@compiled()
def _project_back(out, g, n, a, c, level, signed, grad, first, last):
    f, zero, one = out.dtype.type, out.dtype.type(0), out.dtype.type(1)
    for i in range(first, last):
        lo, hi = i * n, i * n + n
        total, members = 0.0, 0.0
        start = lo
        while start < hi:
            stop = min(hi, start + np.uint64(BLOCK))
            part, count = zero, zero
            for j in range(start, stop):
                stands = out[j] != 0
                part += (-g[j] if out[j] < 0 else g[j]) if stands else zero
                count += one if stands else zero
            total += part
            members += count
            start = stop
        tau, a_i, c_i = level[i], at(a, i), at(c, i)
        if signed and tau <= 0 and (a_i == 0 or c_i == 0):  # inside the ball, or t = 0
            for j in range(lo, hi):
                grad[j] = g[j]
            continue
        share = f(a_i * total / (a_i * members + c_i) if members > 0 else 0.0) + (tau - tau)
        for j in range(lo, hi):
            grad[j] = g[j] - (-share if out[j] < 0 else share) if out[j] != 0 else zero


@compiled(parallel=True)
def _project_back_parallel(out, g, n, a, c, level, signed, grad, rows, parts):
    for part in numba.prange(parts):
        first, last = np.uint64(part * rows // parts), np.uint64((part + 1) * rows // parts)
        _project_back(out, g, n, a, c, level, signed, grad, first, last)


def project(v: Tensor, a, b, c, signed: bool) -> tuple[Tensor, Tensor]:
    """(out, tau) with a sum (u - tau)_+ = b + c tau and out = sign (u - tau)_+ row by row; u = abs(v) if signed, else v.

    Signed rows have tau >= 0, so that what already satisfies the constraint comes back bitwise. v is (m, n), contiguous;
    a, b, c are numbers or one a row.
    """
    out, level = torch.empty_like(v), v.new_empty(v.shape[0], 1)
    shift, magnitude = bit_pattern(v)
    data = (flat(v), flat(v.view(torch.int32 if v.dtype == torch.float32 else torch.int64)), np.uint64(v.shape[1]))
    strengths = (per_row(a), per_row(b), per_row(c))
    args = (*data, shift, magnitude, *strengths, signed, flat(out), flat(level))
    launch(_project, _project_parallel, args, v.shape[0], v.numel())
    return out, level


def project_backward(out: Tensor, g: Tensor, a, c, tau: Tensor, signed: bool) -> Tensor:
    """The vector-Jacobian product of `project` on the constant support of `out`."""
    grad = torch.empty_like(out)
    args = (flat(out), flat(g), np.uint64(out.shape[1]), per_row(a), per_row(c), flat(tau), signed, flat(grad))
    launch(_project_back, _project_back_parallel, args, out.shape[0], out.numel())
    return grad
