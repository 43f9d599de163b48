"""Products with sparse weights by their support alone, compiled by Numba: what attention does with them on the CPU.

A support lists, row by row, where the weights are not zero and what they are there. Reading values and pulling gradients
back then take time in proportion to the support, not to the length.
"""

# mypy: ignore-errors
from __future__ import annotations

import math

import numba  # noqa: TID253 - this module is imported only when a kernel is first used
import numpy as np
import torch
from torch import Tensor

from .numba_tools import compiled, flat, launch


@compiled()
def _count(p, n, counts, first, last):
    for i in range(first, last):
        count = 0
        for j in range(i * n, i * n + n):
            count += p[j] != 0
        counts[i] = count


@compiled()
def _list(p, n, rows, start, place, weight, first, last):
    for i in range(first, last):
        at, offset = start[i], np.int64(i // rows) * np.int64(n) - np.int64(i * n)
        for j in range(i * n, i * n + n):
            if p[j] != 0:
                place[at] = np.int64(j) + offset
                weight[at] = p[j]
                at += 1


@compiled()
def _read(start, place, weight, value, width, out, first, last):
    for i in range(first, last):
        for c in range(width):
            out[i * width + c] = 0
        for e in range(start[i], start[i + np.uint64(1)]):
            source = np.uint64(place[e]) * width
            for c in range(width):
                out[i * width + c] += weight[e] * value[source + c]


@compiled()
def _pull(start, place, weight, g, value, wide, key, width, scale, root, grad_scores, grad_query, first, last):
    zero = g.dtype.type(0)
    for i in range(first, last):
        total, mass = zero, zero
        for e in range(start[i], start[i + np.uint64(1)]):
            source, dot = np.uint64(place[e]) * wide, zero
            for c in range(wide):
                dot += g[i * wide + c] * value[source + c]
            slope = math.sqrt(weight[e]) if root else g.dtype.type(1)
            grad_scores[e] = dot
            total += slope * dot
            mass += slope
        mean = total / mass if mass != 0 else zero
        for c in range(width):
            grad_query[i * width + c] = 0
        for e in range(start[i], start[i + np.uint64(1)]):
            slope = math.sqrt(weight[e]) if root else g.dtype.type(1)
            pulled = slope * (grad_scores[e] - mean) * scale
            grad_scores[e] = pulled
            source = np.uint64(place[e]) * width
            for c in range(width):
                grad_query[i * width + c] += pulled * key[source + c]


@compiled()
def _scatter(start, place, weight, rows, width, target, n_rows, first, last):
    """target[place] += weight * row, in the columns from `first` to `last`: no two threads share an entry."""
    for i in range(n_rows):
        for e in range(start[i], start[i + np.uint64(1)]):
            goal = np.uint64(place[e]) * width
            for c in range(first, last):
                target[goal + c] += weight[e] * rows[i * width + c]


@compiled(parallel=True)
def _count_parallel(p, n, counts, units, parts):
    for part in numba.prange(parts):
        _count(p, n, counts, np.uint64(part * units // parts), np.uint64((part + 1) * units // parts))


@compiled(parallel=True)
def _list_parallel(p, n, rows, start, place, weight, units, parts):
    for part in numba.prange(parts):
        first, last = np.uint64(part * units // parts), np.uint64((part + 1) * units // parts)
        _list(p, n, rows, start, place, weight, first, last)


@compiled(parallel=True)
def _read_parallel(start, place, weight, value, width, out, units, parts):
    for part in numba.prange(parts):
        first, last = np.uint64(part * units // parts), np.uint64((part + 1) * units // parts)
        _read(start, place, weight, value, width, out, first, last)


@compiled(parallel=True)
def _pull_parallel(start, place, weight, g, value, wide, key, width, scale, root, scores, query, units, parts):
    for part in numba.prange(parts):
        first, last = np.uint64(part * units // parts), np.uint64((part + 1) * units // parts)
        _pull(start, place, weight, g, value, wide, key, width, scale, root, scores, query, first, last)


@compiled(parallel=True)
def _scatter_parallel(start, place, weight, rows, width, target, n_rows, units, parts):
    for part in numba.prange(parts):
        first, last = np.uint64(part * units // parts), np.uint64((part + 1) * units // parts)
        _scatter(start, place, weight, rows, width, target, n_rows, first, last)


def support(weights: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """(start, place, weight) of weights (heads, rows, n), contiguous; None where more than `share` of them are not zero.

    Row i (of heads * rows) has the entries start[i] to start[i + 1]; place counts through keys (heads * n).
    """
    heads, rows, n = weights.shape
    counts = torch.empty(heads * rows, dtype=torch.int64, device=weights.device)
    launch(_count, _count_parallel, (flat(weights), np.uint64(n), flat(counts)), heads * rows, weights.numel())
    start = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    size = int(start[-1])
    if size > share * weights.numel():
        return None
    place, weight = torch.empty(size, dtype=torch.int64, device=weights.device), weights.new_empty(size)
    args = (flat(weights), np.uint64(n), np.uint64(rows), flat(start), flat(place), flat(weight))
    launch(_list, _list_parallel, args, heads * rows, weights.numel())
    return start, place, weight


def read(start: Tensor, place: Tensor, weight: Tensor, value: Tensor) -> Tensor:
    """Rows of weighted sums of value (heads * n, width)."""
    out = value.new_empty(start.numel() - 1, value.shape[-1])
    args = (flat(start), flat(place), flat(weight), flat(value), np.uint64(value.shape[-1]), flat(out))
    launch(_read, _read_parallel, args, out.shape[0], place.numel() * value.shape[-1])
    return out


def pull(
    start: Tensor, place: Tensor, weight: Tensor, g: Tensor, value: Tensor, key: Tensor, scale: float, root: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of the scores on the support, times scale, and of the queries, from g = dL / d(rows of `read`).

    The Jacobian of the mapping is diag(s) - s s^T / sum s, with s = sqrt(weight) if `root` (entmax-1.5), else 1 (sparsemax).
    """
    scores, query = torch.empty_like(weight), key.new_empty(g.shape[0], key.shape[-1])
    widths = np.uint64(value.shape[-1]), np.uint64(key.shape[-1])
    lists = (flat(start), flat(place), flat(weight))
    number = flat(weight).dtype.type(scale)
    args = (*lists, flat(g), flat(value), widths[0], flat(key), widths[1], number, root, flat(scores), flat(query))
    launch(_pull, _pull_parallel, args, g.shape[0], place.numel() * key.shape[-1])
    return scores, query


def scatter_(target: Tensor, start: Tensor, place: Tensor, weight: Tensor, rows: Tensor) -> None:
    """target[place] += weight * row: target is (heads * n, width), rows (heads * rows, width)."""
    n_rows, width = rows.shape
    args = (flat(start), flat(place), flat(weight), flat(rows), np.uint64(width), flat(target), np.uint64(n_rows))
    launch(_scatter, _scatter_parallel, args, width, place.numel() * width)
