"""Prox steps in place on rows of weights, compiled by Numba: sparse group (with l1 and group l2 as its ends) and exclusive.

A row is read from memory once and written once; whatever passes lie between find it in the cache.
"""

# mypy: ignore-errors
from __future__ import annotations

import math

import numba  # noqa: TID253 - this module is imported only when a kernel is first used
import numpy as np
from torch import Tensor

from .numba_tools import BLOCK, MOST_PASSES, at, compiled, flat, launch, per_row

LEAST_SQUARE, MOST_SQUARE = 1e-30, 1e30  # sums of squares outside are taken again, scaled by the largest entry


@numba.njit(nogil=True, inline="always")
def soft(x, bound):
    """x - clamp(x, -bound, bound), in comparisons that NaN passes through."""
    cut = x if x < bound else bound
    return x - (cut if cut > -bound else -bound)


@compiled()
def norm_over(v, lo, hi, bound):
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


def row_length(v: Tensor, entry, group) -> int:
    """That of v; of entry by entry it may be any: rows of one entry are slow."""
    alone = not isinstance(group, Tensor) and group == 0 and not (isinstance(entry, Tensor) and entry.numel() > 1)
    return max(v.shape[1], math.gcd(v.numel(), BLOCK)) if alone else v.shape[1]


@compiled()
def _shrink(v, n, entry, group, first, last):
    f, zero, one = v.dtype.type, v.dtype.type(0), v.dtype.type(1)
    for i in range(first, last):
        lo, hi = i * n, i * n + n
        bound, pull = f(at(entry, i)), f(at(group, i))
        keep = one
        if pull != 0:
            length = norm_over(v, lo, hi, bound)
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
def _copy_and_sum(v, lo, n, size):
    """size = abs(v[lo:lo + n]), and its sum."""
    total, start, zero = 0.0, np.uint64(0), v.dtype.type(0)
    while start < n:
        stop = min(n, start + np.uint64(BLOCK))
        part = zero
        for j in range(start, stop):
            size[j] = abs(v[lo + j])
            part += size[j]
        total += part
        start = stop
    return total


@compiled()
def _above(size, n, level):
    """sum (size - level)_+ and how many entries are not below it; NaN comes through."""
    zero, one = size.dtype.type(0), size.dtype.type(1)
    area, members, start = 0.0, 0.0, np.uint64(0)
    while start < n:
        stop = min(n, start + np.uint64(BLOCK))
        part, count = zero, zero
        for j in range(start, stop):
            d = size[j] - level
            part += zero if d <= 0 else d
            count += zero if d < 0 else one
        area += part
        members += count
        start = stop
    return area, members


@compiled(exact=True)
def _lower(v, lo, n, size, level, more):
    """v[lo:lo + n] <- sign (size - level - more)_+, in this order: the digits of `more` are not to be lost."""
    zero, members = v.dtype.type(0), 0
    for j in range(n):
        d = (size[j] - level) - more
        members += d > 0
        v[lo + j] = zero if d <= 0 else (-d if v[lo + j] < 0 else d)
    return members


@compiled()
def _compete(v, n, t, first, last):
    """The level is the root of sum (size - level)_+ = level / t, convex in it: Newton climbs to it from below.

    Where all entries stay is a start, and nearly the root for the small t of a prox step.
    """
    f, zero = v.dtype.type, v.dtype.type(0)
    size = np.empty(n, v.dtype)
    for i in range(first, last):
        lo, pull = i * n, at(t, i)
        if pull == 0:
            continue
        if pull == np.inf:
            for j in range(lo, lo + n):
                v[j] = v[j] if v[j] != v[j] else zero
            continue
        rise = 1.0 / max(pull, 1e-300)
        level = f(_copy_and_sum(v, lo, n, size) / (rise + n))
        for _ in range(MOST_PASSES):
            area, members = _above(size, n, level)
            more = (area - level * rise) / (rise + max(members, 1.0))
            higher = f(level + more)
            # A row is written where its support will hardly change any more, and once more if it does.
            settled = higher == level or higher != higher
            if (settled or more <= 1e-4 * level) and (_lower(v, lo, n, size, level, f(more)) == members or settled):
                break
            level = higher


@compiled(parallel=True)
def _compete_parallel(v, n, t, rows, parts):
    for part in numba.prange(parts):
        first, last = np.uint64(part * rows // parts), np.uint64((part + 1) * rows // parts)
        _compete(v, n, t, first, last)


def shrink(v: Tensor, entry, group) -> None:
    """v <- argmin_x 1/2 ‖x - v‖² + entry ‖x‖_1 + group ‖x‖_2 row by row; v (m, n), contiguous."""
    n, strengths = row_length(v, entry, group), (per_row(entry), per_row(group))
    launch(_shrink, _shrink_parallel, (flat(v), np.uint64(n), *strengths), v.numel() // n, v.numel())


def compete(v: Tensor, t) -> None:
    """v <- argmin_x 1/2 ‖x - v‖² + t 1/2 ‖x‖_1² row by row; v (m, n), contiguous."""
    launch(_compete, _compete_parallel, (flat(v), np.uint64(v.shape[1]), per_row(t)), v.shape[0], v.numel())
