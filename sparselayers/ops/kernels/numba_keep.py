"""Prox steps in place that keep what is large, compiled by Numba: L0 and MCP of entries, or of the norms of rows."""

# mypy: ignore-errors
from __future__ import annotations

import numba  # noqa: TID253 - this module is imported only when a kernel is first used
import numpy as np
from torch import Tensor

from ..diagonal import Diagonal
from .numba_metric import diagonal, fill
from .numba_tools import at, compiled, flat, launch, per_row
from .numba_weights import norm_over, row_length, soft


@compiled()
def _entries(v, n, gamma, product, t, first, last):
    """soft(v, t) / (1 - t / gamma) up to gamma and v beyond; for t >= gamma  v above sqrt(product t), 0 below."""
    f, zero = v.dtype.type, v.dtype.type(0)
    for i in range(first, last):
        lo, hi, pull = i * n, i * n + n, at(t, i)
        if pull == 0:
            continue
        if pull < gamma:
            bound, slope, end = f(pull), f(1 / (1 - pull / gamma)), f(gamma)
            for j in range(lo, hi):
                between = soft(v[j], bound) * slope
                v[j] = v[j] if abs(v[j]) >= end else between
        else:
            bound = f(np.sqrt(product * pull))
            for j in range(lo, hi):
                v[j] = zero if abs(v[j]) <= bound else v[j]


@compiled(parallel=True)
def _entries_parallel(v, n, gamma, product, t, rows, parts):
    for part in numba.prange(parts):
        first, last = np.uint64(part * rows // parts), np.uint64((part + 1) * rows // parts)
        _entries(v, n, gamma, product, t, first, last)


@compiled()
def _entries_in_metric(v, n, gamma, product, t, metric, root, scale, shift, least, first, last):
    """The same with t / d for t."""
    f, zero, one = v.dtype.type, v.dtype.type(0), v.dtype.type(1)
    d, end, product = np.empty(n, v.dtype), f(gamma), f(product)
    for i in range(first, last):
        lo, pull = i * n, f(at(t, i))
        if pull == 0:
            continue
        fill(metric, lo, n, root, scale, shift, least, d)
        for j in range(n):
            x, each = v[lo + j], pull / d[j]
            jumped = zero if abs(x) <= np.sqrt(product * each) else x
            between = soft(x, each) / (one - (each / end if each < end else zero))
            between = x if abs(x) >= end else between
            v[lo + j] = between if each < end else jumped


@compiled(parallel=True)
def _entries_in_metric_parallel(v, n, gamma, product, t, metric, root, scale, shift, least, rows, parts):
    for part in numba.prange(parts):
        first, last = np.uint64(part * rows // parts), np.uint64((part + 1) * rows // parts)
        _entries_in_metric(v, n, gamma, product, t, metric, root, scale, shift, least, first, last)


@compiled()
def _rows(v, n, gamma, product, t, weighted, metric, root, scale, shift, least, first, last):
    """The same of ‖v‖, or of ‖sqrt(d) v‖, the directions kept."""
    f, zero, one, none = v.dtype.type, v.dtype.type(0), v.dtype.type(1), np.uint64(0)
    d = np.empty(n if weighted else none, v.dtype)
    for i in range(first, last):
        lo, hi, pull = i * n, i * n + n, at(t, i)
        if pull == 0:
            continue
        if weighted:
            fill(metric, lo, n, root, scale, shift, least, d)
            for j in range(n):
                d[j] = np.sqrt(d[j]) * v[lo + j]
            length = norm_over(d, none, n, zero)
        else:
            length = norm_over(v, lo, hi, zero)
        keep = one
        if pull >= gamma:
            keep = zero if length <= f(np.sqrt(product * pull)) else one
        elif length < f(gamma):
            keep = f((length - pull) / (length * (1 - pull / gamma))) if length > f(pull) else zero
        if length != length:
            keep = length
        if keep == 0 or keep != keep:
            for j in range(lo, hi):
                v[j] = keep
        elif keep != 1:
            for j in range(lo, hi):
                v[j] = v[j] * keep


@compiled(parallel=True)
def _rows_parallel(v, n, gamma, product, t, weighted, metric, root, scale, shift, least, rows, parts):
    for part in numba.prange(parts):
        first, last = np.uint64(part * rows // parts), np.uint64((part + 1) * rows // parts)
        _rows(v, n, gamma, product, t, weighted, metric, root, scale, shift, least, first, last)


def keep(v: Tensor, t, gamma: float | None, metric: Tensor | Diagonal | None, by_row: bool) -> None:
    """v <- the prox of t MCP, or of t L0 where gamma is None, of each entry or of each row's norm; v (m, n), contiguous."""
    n = v.shape[1] if by_row else row_length(v, t, 0)
    bend, product = (0.0, 2.0) if gamma is None else (gamma, gamma)
    args = (flat(v), np.uint64(n), bend, product, per_row(t))
    held = diagonal(v if metric is None else metric, flat(v).dtype.type)
    if by_row:
        launch(_rows, _rows_parallel, (*args, metric is not None, *held), v.shape[0], v.numel())
    elif metric is None:
        launch(_entries, _entries_parallel, args, v.numel() // n, v.numel())
    else:
        launch(_entries_in_metric, _entries_in_metric_parallel, (*args, *held), v.numel() // n, v.numel())
