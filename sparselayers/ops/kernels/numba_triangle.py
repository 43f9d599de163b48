"""The dot product, and solves with a lower triangular factor, for the Numba kernels."""

# mypy: ignore-errors
from __future__ import annotations

from .numba_tools import compiled


@compiled(counted=False)
def dot(a, b, size):
    total = 0.0
    for c in range(size):
        total += a[c] * b[c]
    return total


@compiled(counted=False)
def forward(L, s, b):
    """b <- L^-1 b."""
    for i in range(s):
        row = L[i]
        b[i] = (b[i] - dot(row, b, i)) / row[i]


@compiled(counted=False)
def backward(L, s, b):
    """b <- L^-T b."""
    for i in range(s - 1, -1, -1):
        row = L[i]
        b[i] /= row[i]
        for k in range(i):
            b[k] -= row[k] * b[i]
