"""Prox steps in place on rows of weights in a diagonal metric, compiled by Numba: sparse group, with l1 and group l2.

Divisions and roots are what these loops cost: there is one root an entry to make the metric, and one division a pass.
"""

# mypy: ignore-errors
from __future__ import annotations

import numba  # noqa: TID253 - this module is imported only when a kernel is first used
import numpy as np
import torch
from torch import Tensor

from ..diagonal import Diagonal
from .numba_tools import BLOCK, MOST_PASSES, at, compiled, flat, launch, per_row
from .numba_weights import LEAST_SQUARE, MOST_SQUARE, norm_over, row_length, soft

SAMPLE = 512  # entries from which the root is guessed


@compiled()
def fill(metric, lo, n, root, scale, shift, least, d):
    """The row's metric: as it stands, or max(scale sqrt(.) + shift, least); finite, so that nothing divides inf by inf."""
    most = d.dtype.type(1e30 if d.itemsize == 4 else 1e200)
    if root:
        for j in range(n):
            size = scale * np.sqrt(metric[lo + j]) + shift
            size = size if not size < least else least
            d[j] = size if not size > most else most
    else:
        for j in range(n):
            d[j] = metric[lo + j] if not metric[lo + j] > most else most


@compiled()
def _lengths(v, lo, d, n):
    """‖v‖ and ‖d v‖ of the n entries from lo on."""
    f, zero, none = v.dtype.type, v.dtype.type(0), np.uint64(0)
    plain, weighted, start = 0.0, 0.0, none
    while start < n:
        stop = min(n, start + np.uint64(BLOCK))
        a, b = zero, zero
        for j in range(start, stop):
            u = v[lo + j]
            a += u * u
            b += (u * d[j]) * (u * d[j])
        plain += a
        weighted += b
        start = stop
    if LEAST_SQUARE < plain < MOST_SQUARE and LEAST_SQUARE < weighted < MOST_SQUARE:
        return f(np.sqrt(plain)), f(np.sqrt(weighted))
    w = np.empty(n, v.dtype)
    for j in range(n):
        w[j] = v[lo + j] * d[j]
    return norm_over(v, lo, lo + n, zero), norm_over(w, none, n, zero)


@compiled()
def _step(v, lo, d, n, unit, share, s):
    """From s towards the root of F(s) = 1 / ‖unit v / (s + share / d)‖ - 1; and whether by Halley's step, or Newton's.

    F is concave and nearly linear: Newton from anywhere ends below the root. Near it Halley gives three times the digits.
    """
    zero = v.dtype.type(0)
    square, slope, bend, start = 0.0, 0.0, 0.0, np.uint64(0)
    while start < n:
        stop = min(n, start + np.uint64(BLOCK))
        a, b, c = zero, zero, zero
        for j in range(start, stop):
            inverse = d[j] / (d[j] * s + share)
            p = (v[lo + j] * unit) * inverse
            p = p * p
            a += p
            p = p * inverse
            b += p
            c += p * inverse
        square += a
        slope += b
        bend += c
        start = stop
    move = (np.sqrt(square) - 1.0) * square / slope
    curve = 1.5 * (1.0 - np.sqrt(square)) * (1.0 - square * bend / (slope * slope))
    near = abs(curve) < 0.1
    return (move / (1.0 - curve) if near else move), near


@compiled()
def _pull(v, lo, d, n, pull, length, weighted, square, cubic):
    """v <- v s / (s + pull / d), with s the root of ‖v / (s + pull / d)‖ = 1; length = ‖v‖, weighted = ‖d v‖ > pull."""
    f, one, few = v.dtype.type, v.dtype.type(1), np.uint64(SAMPLE)
    # In units of ‖v‖: squares of the row's own scale may be beyond the floats.
    unit, share = one / length, pull / length
    s = one - pull / weighted  # the root in a constant metric; in any other it is above the root
    if n > 2 * few:
        move, _ = _step(v, lo, d, few, one / _lengths(v, lo, d, few)[0], share, s)
        guess = s + f(move)
        s = guess if guess > f(0.1) * s else s
    for _ in range(MOST_PASSES):
        move, near = _step(v, lo, d, n, unit, share, s)
        before = s
        s = max(s + f(move), f(0.1) * s)
        if abs(s - before) <= (cubic if near else square) * s or s != s:
            break
    for j in range(n):
        v[lo + j] = v[lo + j] * ((s * d[j]) / (s * d[j] + share))


@compiled()
def _shrink(v, metric, n, root, scale, shift, least, entry, group, square, cubic, first, last):
    """v = soft(v, entry / d); then 0 where ‖d v‖ <= group, else v s / (s + group / d) with ‖v / (s + group / d)‖ = 1."""
    f, zero = v.dtype.type, v.dtype.type(0)
    d = np.empty(n, v.dtype)
    for i in range(first, last):
        lo, bound, pull = i * n, f(at(entry, i)), f(at(group, i))
        if bound == 0 and pull == 0:
            continue
        fill(metric, lo, n, root, scale, shift, least, d)
        if bound != 0:
            for j in range(n):
                v[lo + j] = soft(v[lo + j], bound / d[j])
        if pull == 0:
            continue
        length, weighted = _lengths(v, lo, d, n)
        if weighted <= pull:
            for j in range(n):
                v[lo + j] = zero
        else:
            _pull(v, lo, d, n, pull, length, weighted, square, cubic)


@compiled(parallel=True)
def _shrink_parallel(v, metric, n, root, scale, shift, least, entry, group, square, cubic, rows, parts):
    for part in numba.prange(parts):
        first, last = np.uint64(part * rows // parts), np.uint64((part + 1) * rows // parts)
        _shrink(v, metric, n, root, scale, shift, least, entry, group, square, cubic, first, last)


def diagonal(metric: Tensor | Diagonal, f) -> tuple:
    """What `fill` makes the metric from, for rows of type f."""
    if isinstance(metric, Diagonal):
        return flat(metric.second), True, f(metric.scale), f(metric.shift), f(metric.least)
    return flat(metric), False, f(1), f(0), f(0)


def shrink(v: Tensor, entry, group, metric: Tensor | Diagonal) -> None:
    """v <- argmin_x 1/2 sum d (x - v)² + entry ‖x‖_1 + group ‖x‖_2 row by row; v and metric (m, n), contiguous."""
    n, f, eps = row_length(v, entry, group), flat(v).dtype.type, torch.finfo(v.dtype).eps
    held, *shape = diagonal(metric, f)
    # A step of Newton's doubles the digits, one of Halley's makes them three times as many.
    small = f(0.1 * eps**0.5), f(2 * eps ** (1 / 3))
    args = (flat(v), held, np.uint64(n), *shape, per_row(entry), per_row(group), *small)
    launch(_shrink, _shrink_parallel, args, v.numel() // n, v.numel())
