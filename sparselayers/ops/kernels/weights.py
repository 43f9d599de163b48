"""Prox steps in place on rows of weights by a kernel: False where plain torch operations must do them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diagonal import Diagonal
from .switch import serve

Strength = float | Tensor


def shrink_(rows: Tensor, entry: Strength, group: Strength, metric: Tensor | Diagonal | None) -> bool:
    """rows <- argmin_x 1/2 sum d (x - v)² + entry ‖x‖_1 + group ‖x‖_2, (m, n), d = metric, (m, n), 1 if None."""
    if not _served(rows):
        return False
    from . import numba_metric, numba_weights

    if metric is None:
        numba_weights.shrink(rows, entry, group)
    else:
        held = metric.second if isinstance(metric, Diagonal) else metric
        if held.dtype != rows.dtype or held.shape != rows.shape:
            return False
        metric = metric.over(held.contiguous()) if isinstance(metric, Diagonal) else held.contiguous()
        numba_metric.shrink(rows, entry, group, metric)
    torch.autograd.graph.increment_version(rows)
    return True


def compete_(rows: Tensor, t: Strength) -> bool:
    """rows <- argmin_x 1/2 ‖x - v‖² + t 1/2 ‖x‖_1², (m, n)."""
    if not _served(rows):
        return False
    from . import numba_weights

    numba_weights.compete(rows, t)
    torch.autograd.graph.increment_version(rows)
    return True


def _served(rows: Tensor) -> bool:
    return rows.is_contiguous() and not torch.is_grad_enabled() and serve(rows) == "numba"
