"""One prox over many tensors, in place: small ones joined into one matrix, large ones worked in cache-sized chunks."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from ..prox import Penalty

SMALL = 2**16  # entries up to which joining is cheaper than a call of its own
CHUNK = 2**19  # entries worked at a time: two megabytes in float32 stay in cache; smaller ones pay Python's time


class Weighted(NamedTuple):
    """Views (n_groups, ...) of parameters whose rows belong together, the strength t, and a metric for each view or None."""

    views: tuple[Tensor, ...]
    t: float | Tensor
    metric: tuple[float | Tensor, ...] | None = None


@torch.no_grad()
def prox_(penalty: Penalty, blocks: list[Weighted], skipped: Tensor | None = None) -> None:
    """Apply penalty.prox to every block, in place; where `skipped` (a 0-d boolean tensor) is True nothing changes."""
    joined: dict[tuple, list[Weighted]] = defaultdict(list)
    for block in blocks:
        first = block.views[0]
        if len(block.views) > 1 or block.metric is not None:
            _rows(penalty, block, skipped)
        elif first.numel() > SMALL:
            _chunks(penalty, first, block.t, skipped)
        elif first.numel():
            size = 1 if penalty.separable else first.numel() // first.shape[0]
            joined[size, first.dtype, first.device].append(block)
    for (size, _, _), members in joined.items():
        _join(penalty, members, size, skipped)


def _join(penalty: Penalty, blocks: list[Weighted], size: int, skipped: Tensor | None) -> None:
    views = [block.views[0] for block in blocks]
    # Flattening and cutting up in one call each: split() and view() in Python cost more than the prox.
    matrix = _flatten_dense_tensors(views).view(-1, size)
    strengths = [block.t for block in blocks]
    t: float | Tensor = strengths[0]
    if any(isinstance(t, Tensor) for t in strengths) or len(set(strengths)) > 1:
        counts = torch.tensor([view.numel() // size for view in views], device=matrix.device)
        each = torch.stack([torch.as_tensor(t, dtype=matrix.dtype, device=matrix.device) for t in strengths])
        t = each.repeat_interleave(counts, output_size=matrix.shape[0]).unsqueeze(-1)
    new = _guarded(penalty.prox(matrix, t), matrix, skipped)
    torch._foreach_copy_(views, _unflatten_dense_tensors(new.view(-1), views))


def _chunks(penalty: Penalty, view: Tensor, t: float | Tensor, skipped: Tensor | None) -> None:
    if penalty.separable:
        view = view.detach().view(-1) if view.is_contiguous() else view
    rows = max(1, CHUNK // max(1, view[0].numel()))
    for chunk in view.split(rows):
        old = chunk if penalty.separable else chunk.flatten(1)
        chunk.copy_(_guarded(penalty.prox(old, t), old, skipped).view(chunk.shape))


def _rows(penalty: Penalty, block: Weighted, skipped: Tensor | None) -> None:
    flat = [view.flatten(1) for view in block.views]
    matrix = torch.cat(flat, dim=1)
    metric = None
    if block.metric is not None:
        columns = [part.new_ones(1, part.shape[1]) * d for part, d in zip(flat, block.metric, strict=True)]
        metric = torch.cat(columns, dim=1)
    new = _guarded(penalty.prox(matrix, block.t, metric), matrix, skipped)
    for view, part in zip(block.views, new.split([part.shape[1] for part in flat], dim=1), strict=True):
        view.copy_(part.reshape(view.shape))


def _guarded(new: Tensor, old: Tensor, skipped: Tensor | None) -> Tensor:
    return new if skipped is None else torch.where(skipped, old, new)
