"""Prox steps in place on rows of weights by a kernel: False where plain torch operations must do them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diagonal import Diagonal
from .switch import serve

Strength = float | Tensor
Metric = Tensor | Diagonal | None


def shrink_(rows: Tensor, entry: Strength, group: Strength, metric: Metric) -> bool:
    """rows <- argmin_x 1/2 sum d (x - v)² + entry ‖x‖_1 + group ‖x‖_2, (m, n), d = metric, (m, n), 1 if None."""
    if not _served(rows, metric):
        return False
    from . import numba_metric, numba_weights

    held = _contiguous(metric)
    if held is None:
        numba_weights.shrink(rows, entry, group)
    else:
        numba_metric.shrink(rows, entry, group, held)
    torch.autograd.graph.increment_version(rows)
    return True


def keep_(rows: Tensor, t: Strength, gamma: float | None, metric: Metric, by_row: bool) -> bool:
    """rows <- the prox of t MCP, of t L0 where gamma is None, entry by entry or of the rows' norms; (m, n), metric (m, n)."""
    if not _served(rows, metric):
        return False
    from . import numba_keep

    numba_keep.keep(rows, t, gamma, _contiguous(metric), by_row)
    torch.autograd.graph.increment_version(rows)
    return True


def compete_(rows: Tensor, t: Strength) -> bool:
    """rows <- argmin_x 1/2 ‖x - v‖² + t 1/2 ‖x‖_1², (m, n)."""
    if not _served(rows, None):
        return False
    from . import numba_weights

    numba_weights.compete(rows, t)
    torch.autograd.graph.increment_version(rows)
    return True


def _served(rows: Tensor, metric: Metric) -> bool:
    held = rows if metric is None else metric.second if isinstance(metric, Diagonal) else metric
    fits = held.dtype == rows.dtype and held.shape == rows.shape
    return fits and rows.is_contiguous() and not torch.is_grad_enabled() and serve(rows) == "numba"


def _contiguous(metric: Metric) -> Metric:
    if isinstance(metric, Diagonal):
        return metric.over(metric.second.contiguous())
    return None if metric is None else metric.contiguous()
