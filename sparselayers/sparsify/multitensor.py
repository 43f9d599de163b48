"""One prox over many tensors, in place: small ones joined into one matrix, large ones by a kernel or in cache-sized chunks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from ..ops.diagonal import Diagonal
from ..prox import Penalty
from .groups import Block, Part

SMALL = 2**16  # entries up to which joining is cheaper than a call of its own
CHUNK = 2**20  # entries worked at a time: four megabytes in float32 stay in cache; smaller ones pay Python's time

Metric = float | Tensor | Diagonal


class Weighted(NamedTuple):
    """Views of parameters whose rows belong together, the strength t, and None or a metric for each view.

    A metric is one number d for all entries of its view, or a `Diagonal` whose `second` is cut as the view is.
    """

    parts: Block
    views: tuple[Tensor, ...]
    t: float | Tensor
    metric: tuple[Metric, ...] | None = None


@torch.no_grad()
def prox_(penalty: Penalty, blocks: list[Weighted], skipped: Tensor | None = None) -> None:
    """Apply penalty.prox to every block, in place; where `skipped` (a 0-d boolean tensor) is True nothing changes."""
    joined: dict[tuple, list[Weighted]] = defaultdict(list)
    for block in blocks:
        first = block.views[0]
        alike = block.metric is None or isinstance(block.metric[0], Diagonal)
        if len(block.views) > 1 or not alike:
            _rows(penalty, block, skipped)
        elif first.numel() > SMALL:
            _large(penalty, block, skipped)
        elif first.numel():
            size = 1 if penalty.separable else math.prod(first.shape[block.parts[0].lead :])
            joined[size, first.dtype, first.device, block.metric is None].append(block)
    for (size, *_), members in joined.items():
        _join(penalty, members, size, skipped)


def _step(
    penalty: Penalty, rows: Tensor, t: float | Tensor, metric: Tensor | Diagonal | None, skipped: Tensor | None
) -> None:
    """rows (m, n) <- penalty.prox(rows, t, metric)."""
    if penalty._prox_(rows, _unless(skipped, t), metric):
        return
    new = penalty.prox(rows, t, metric.whole() if isinstance(metric, Diagonal) else metric)
    rows.copy_(new if skipped is None else torch.where(skipped, rows, new))


def _unless(skipped: Tensor | None, t: float | Tensor) -> float | Tensor:
    """t, or 0 where the step is skipped: then nothing changes, bit for bit."""
    if skipped is None:
        return t
    wide = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device=skipped.device)
    return torch.where(skipped, 0, wide)


def _join(penalty: Penalty, blocks: list[Weighted], size: int, skipped: Tensor | None) -> None:
    views = [block.views[0] for block in blocks]
    # Flattening and cutting up in one call each: split() and view() in Python cost more than the prox.
    matrix = _flatten_dense_tensors(views).view(-1, size)
    strengths = [block.t for block in blocks]
    t: float | Tensor = strengths[0]
    if any(isinstance(t, Tensor) for t in strengths) or len(set(strengths)) > 1:
        counts = torch.tensor([view.numel() // size for view in views], device=matrix.device)
        wide = torch.promote_types(matrix.dtype, torch.float32)  # a strength of 1e-8 is 0 in float16
        each = torch.stack([torch.as_tensor(t, dtype=wide, device=matrix.device).reshape(()) for t in strengths])
        t = each.repeat_interleave(counts, output_size=matrix.shape[0]).unsqueeze(-1)
    metric = None
    if blocks[0].metric is not None:
        whole = [d.whole() for block in blocks for d in block.metric or () if isinstance(d, Diagonal)]
        metric = _flatten_dense_tensors(whole).view(-1, size)
    _step(penalty, matrix, t, metric, skipped)
    if matrix.data_ptr() == views[0].data_ptr():  # a single one needs no joining: it is the view itself
        return
    torch._foreach_copy_(views, _unflatten_dense_tensors(matrix.view(-1), views))


def _large(penalty: Penalty, block: Weighted, skipped: Tensor | None) -> None:
    part, view, t = block.parts[0], block.views[0], block.t
    metric = block.metric[0] if block.metric and isinstance(block.metric[0], Diagonal) else None
    if view.is_contiguous():
        rows = view.view(view.shape[0], -1) if penalty.separable else part.rows(view)
        over = None if metric is None else metric.over(metric.second.reshape(rows.shape))
        if penalty._prox_(rows, _unless(skipped, t), over):
            return
    # A GPU has no cache to stay in, and every chunk costs it a launch.
    size = max(1, CHUNK // view[0].numel()) if view.device.type == "cpu" else view.shape[0]
    chunks = view.split(size)
    seconds: Sequence[Tensor | None] = [None] * len(chunks) if metric is None else metric.second.split(size)
    for chunk, second in zip(chunks, seconds, strict=True):
        rows = part.rows(chunk)
        over = None if metric is None or second is None else metric.over(part.rows(second))
        _step(penalty, rows, t, over, skipped)
        if rows.data_ptr() != chunk.data_ptr():  # a copy, where the rows do not lie as such in memory
            chunk.copy_(rows.view(chunk.shape))


def _rows(penalty: Penalty, block: Weighted, skipped: Tensor | None) -> None:
    flat = [part.rows(view) for part, view in zip(block.parts, block.views, strict=True)]
    matrix = torch.cat(flat, dim=1)
    metric = None
    if block.metric is not None:
        columns = zip(block.parts, flat, block.metric, strict=True)
        metric = torch.cat([spread(part, rows, d) for part, rows, d in columns], dim=1)
    _step(penalty, matrix, block.t, metric, skipped)
    for view, rows in zip(block.views, matrix.split([rows.shape[1] for rows in flat], dim=1), strict=True):
        view.copy_(rows.reshape(view.shape))


def spread(part: Part, rows: Tensor, d: Metric) -> Tensor:
    """The metric of one view as a matrix that joins its rows."""
    if isinstance(d, Diagonal):
        return part.rows(d.whole())
    return rows.new_ones(rows.shape) * d
