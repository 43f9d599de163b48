"""Prox steps in place on rows of weights, compiled by Numba: sparse group (with l1 and group l2 as its ends) and exclusive.

A row is read from memory once and written once; whatever passes lie between find it in the cache.
"""

# mypy: ignore-errors
from __future__ import annotations

import math

import numba  # noqa: TID253 - this module is imported only when a kernel is first used
import numpy as np
import torch
from torch import Tensor

from ..diagonal import Diagonal
from .numba_rows import _project
from .numba_tools import BLOCK, MOST_PASSES, at, bit_pattern, compiled, flat, launch, per_row

LEAST_SQUARE, MOST_SQUARE = 1e-30, 1e30  # sums of squares outside are taken again, scaled by the largest entry


@numba.njit(nogil=True, inline="always")
def soft(x, bound):
    """x - clamp(x, -bound, bound), in comparisons that NaN passes through."""
    cut = x if x < bound else bound
    return x - (cut if cut > -bound else -bound)


@compiled()
def _norm(v, lo, hi, bound):
    """‖soft(v, bound)‖_2 of v[lo:hi], of any scale."""
    f, zero = v.dtype.type, v.dtype.type(0)
    total, start = 0.0, lo
    while start < hi:
        stop = min(hi, start + np.uint64(BLOCK))
        part = zero
        for j in range(start, stop):
            d = abs(v[j]) - bound
            d = zero if d <= 0 else d
            part += d * d
        total += part
        start = stop
    if LEAST_SQUARE < total < MOST_SQUARE:
        return f(np.sqrt(total))
    largest = zero
    for j in range(lo, hi):
        d = abs(v[j]) - bound
        largest = d if d > largest or d != d else largest
    if largest == 0 or largest != largest:
        return largest
    # The compiler may multiply by 1 / unit, which for a subnormal unit is infinite.
    unit = max(largest, f(1.2e-38 if v.itemsize == 4 else 2.3e-308))
    total = 0.0
    for j in range(lo, hi):
        d = (abs(v[j]) - bound) / unit
        total += 0.0 if d <= 0 else d * d
    return f(unit * np.sqrt(total))


@compiled()
def _shrink(v, n, entry, group, first, last):
    f, zero, one = v.dtype.type, v.dtype.type(0), v.dtype.type(1)
    for i in range(first, last):
        lo, hi = i * n, i * n + n
        bound, pull = f(at(entry, i)), f(at(group, i))
        keep = one
        if pull != 0:
            length = _norm(v, lo, hi, bound)
            keep = one - pull / length
            keep = zero if keep <= 0 or length == 0 else keep
        elif bound == 0:
            continue
        if bound == 0:
            for j in range(lo, hi):
                v[j] = v[j] * keep
        elif keep == 0:
            for j in range(lo, hi):
                v[j] = zero
        else:
            for j in range(lo, hi):
                v[j] = soft(v[j], bound) * keep


@compiled(parallel=True)
def _shrink_parallel(v, n, entry, group, rows, parts):
    for part in numba.prange(parts):
        first, last = np.uint64(part * rows // parts), np.uint64((part + 1) * rows // parts)
        _shrink(v, n, entry, group, first, last)


@compiled()
def _fill(metric, lo, n, root, scale, shift, least, d):
    """The row's metric: as it stands, or max(scale sqrt(.) + shift, least)."""
    if root:
        for j in range(n):
            size = scale * np.sqrt(metric[lo + j]) + shift
            d[j] = size if not size < least else least
    else:
        for j in range(n):
            d[j] = metric[lo + j]


@compiled()
def _lengths(u, d, w, n):
    """‖u‖ and ‖d u‖; w is written over."""
    f, zero, none = u.dtype.type, u.dtype.type(0), np.uint64(0)
    plain, weighted, start = 0.0, 0.0, none
    while start < n:
        stop = min(n, start + np.uint64(BLOCK))
        a, b = zero, zero
        for j in range(start, stop):
            a += u[j] * u[j]
            b += (u[j] * d[j]) * (u[j] * d[j])
        plain += a
        weighted += b
        start = stop
    if LEAST_SQUARE < plain < MOST_SQUARE and LEAST_SQUARE < weighted < MOST_SQUARE:
        return f(np.sqrt(plain)), f(np.sqrt(weighted))
    for j in range(n):
        w[j] = u[j] * d[j]
    return _norm(u, none, n, zero), _norm(w, none, n, zero)


@compiled()
def _pull_in_metric(u, d, n, pull, length, w, q, rounding):
    """u <- u s / (s + pull / d) with s the root of ‖u / (s + pull / d)‖ = 1, length = ‖u‖; d, w, q are written over."""
    f, zero, one, none = u.dtype.type, u.dtype.type(0), u.dtype.type(1), np.uint64(0)
    # In units of ‖u‖: squares of the row's own scale may be beyond the floats.
    unit, mean, square, start = one / length, 0.0, 0.0, none
    share = pull * unit
    while start < n:
        stop = min(n, start + np.uint64(BLOCK))
        a, b = zero, zero
        for j in range(start, stop):
            w[j] = share / d[j]
            d[j] = u[j] * unit
            part = (d[j] * d[j]) * w[j]
            a += part
            b += part * w[j]
        mean += a
        square += b
        start = stop
    # 1 / ‖u / (s + w)‖ - 1 is concave: Newton from anywhere ends below the root, and climbs from there. 1 - mean lies below
    # it too, and the next term of the series, in the variance of w, brings the start closer.
    low = max(one - f(mean), zero)
    spread = square - mean * mean
    s = min(low + f(1.5 * spread), one) if 0.0 < spread < 1.0 else low  # w may be infinite
    for _ in range(MOST_PASSES):
        square, slope, start = 0.0, 0.0, none
        while start < n:
            stop = min(n, start + np.uint64(BLOCK))
            a, b = zero, zero
            for j in range(start, stop):
                inverse = one / (s + w[j])
                q[j] = inverse
                p = d[j] * inverse
                p = p * p
                a += p
                b += p * inverse
            square += a
            slope += b
            start = stop
        before = s
        s = max(s + f((np.sqrt(square) - 1.0) * square / slope), low)
        if abs(s - before) <= rounding * s or s != s:
            break
    # Of 1 / (s + w) at the last s but one, the first two terms of the series are all digits: a division is dear.
    moved = s - before
    for j in range(n):
        inverse = q[j] - q[j] * (moved * q[j])
        # The first form leaves u as it is where the pull is nothing, the second keeps its digits where it is much.
        u[j] = u[j] - u[j] * (w[j] * inverse) if w[j] < s else u[j] * (s * inverse)


@compiled()
def _shrink_in_metric(v, metric, n, root, scale, shift, least, entry, group, rounding, first, last):
    """0 where ‖d u‖ <= group, u = soft(v, entry / d); else u s / (s + group / d) with ‖u / (s + group / d)‖ = 1."""
    f, zero = v.dtype.type, v.dtype.type(0)
    u, w, d, q = np.empty(n, v.dtype), np.empty(n, v.dtype), np.empty(n, v.dtype), np.empty(n, v.dtype)
    for i in range(first, last):
        lo = i * n
        bound, pull = f(at(entry, i)), f(at(group, i))
        if bound == 0 and pull == 0:
            continue
        _fill(metric, lo, n, root, scale, shift, least, d)
        if pull == 0:
            for j in range(n):
                v[lo + j] = soft(v[lo + j], bound / d[j])
            continue
        if bound == 0:
            for j in range(n):
                u[j] = v[lo + j]
        else:
            for j in range(n):
                u[j] = soft(v[lo + j], bound / d[j])
        length, weighted = _lengths(u, d, w, n)
        if weighted <= pull:
            for j in range(n):
                v[lo + j] = zero
            continue
        _pull_in_metric(u, d, n, pull, length, w, q, rounding)
        for j in range(n):
            v[lo + j] = u[j]


@compiled(parallel=True)
def _shrink_in_metric_parallel(v, metric, n, root, scale, shift, least, entry, group, rounding, rows, parts):
    for part in numba.prange(parts):
        first, last = np.uint64(part * rows // parts), np.uint64((part + 1) * rows // parts)
        _shrink_in_metric(v, metric, n, root, scale, shift, least, entry, group, rounding, first, last)


@compiled()
def _compete(v, magnitudes, n, shift, magnitude, t, first, last):
    row = np.empty(n, v.dtype)
    bits = row.view(magnitudes.dtype)
    strength, level = np.empty(1, np.float64), np.empty(1, v.dtype)
    none, one, zero = np.uint64(0), np.uint64(1), np.zeros(1, np.float64)
    ones = np.ones(1, np.float64)
    for i in range(first, last):
        strength[0] = at(t, i)
        if strength[0] == 0:
            continue
        out = v[i * n : i * n + n]
        row[:] = out
        _project(row, bits, n, shift, magnitude, strength, zero, ones, True, out, level, none, one)


@compiled(parallel=True)
def _compete_parallel(v, magnitudes, n, shift, magnitude, t, rows, parts):
    for part in numba.prange(parts):
        first, last = np.uint64(part * rows // parts), np.uint64((part + 1) * rows // parts)
        _compete(v, magnitudes, n, shift, magnitude, t, first, last)


def shrink(v: Tensor, entry, group, metric: Tensor | Diagonal | None) -> None:
    """v <- argmin_x 1/2 sum d (x - v)² + entry ‖x‖_1 + group ‖x‖_2 row by row; v and metric (m, n), contiguous."""
    n, strengths = v.shape[1], (per_row(entry), per_row(group))
    if strengths[0].size == 1 and not isinstance(group, Tensor) and group == 0:
        n = max(n, math.gcd(v.numel(), BLOCK))  # entry by entry it may be any length: rows of one entry are slow
    rows, n = v.numel() // n, np.uint64(n)
    if metric is None:
        launch(_shrink, _shrink_parallel, (flat(v), n, *strengths), rows, v.numel())
        return
    f, root = flat(v).dtype.type, isinstance(metric, Diagonal)
    second, scale, shift, least = metric if root else (metric, 1.0, 0.0, 0.0)
    shape = (f(scale), f(shift), f(least))
    args = (
        flat(v),
        flat(second),
        n,
        root,
        *shape,
        *strengths,
        f(0.1 * torch.finfo(v.dtype).eps ** 0.5),
    )  # Newton doubles the digits
    launch(_shrink_in_metric, _shrink_in_metric_parallel, args, rows, v.numel())


def compete(v: Tensor, t) -> None:
    """v <- argmin_x 1/2 ‖x - v‖² + t 1/2 ‖x‖_1² row by row; v (m, n), contiguous."""
    shift, magnitude = bit_pattern(v)
    args = (flat(v), np.full(1, magnitude), np.uint64(v.shape[1]), shift, magnitude, per_row(t))
    launch(_compete, _compete_parallel, args, v.shape[0], v.numel())
