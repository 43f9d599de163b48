"""One prox over many tensors, in place: small ones joined into one matrix, large ones worked in cache-sized chunks."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from ..prox import Penalty
from .groups import Block, Part

SMALL = 2**16  # entries up to which joining is cheaper than a call of its own
CHUNK = 2**20  # entries worked at a time: four megabytes in float32 stay in cache; smaller ones pay Python's time


class Weighted(NamedTuple):
    """Views of parameters whose rows belong together, the strength t, and a metric for each view or None."""

    parts: Block
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
            _chunks(penalty, block.parts[0], first, block.t, skipped)
        elif first.numel():
            size = 1 if penalty.separable else math.prod(first.shape[block.parts[0].lead :])
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
        wide = torch.promote_types(matrix.dtype, torch.float32)  # a strength of 1e-8 is 0 in float16
        each = torch.stack([torch.as_tensor(t, dtype=wide, device=matrix.device).reshape(()) for t in strengths])
        t = each.repeat_interleave(counts, output_size=matrix.shape[0]).unsqueeze(-1)
    new = _guarded(penalty.prox(matrix, t), matrix, skipped)
    torch._foreach_copy_(views, _unflatten_dense_tensors(new.view(-1), views))


def _chunks(penalty: Penalty, part: Part, view: Tensor, t: float | Tensor, skipped: Tensor | None) -> None:
    if penalty.separable and view.is_contiguous():
        view = view.view(-1)
    # A GPU has no cache to stay in, and every chunk costs it a launch.
    rows = max(1, CHUNK // view[0].numel()) if view.device.type == "cpu" else view.shape[0]
    for chunk in view.split(rows):
        old = chunk if penalty.separable else part.rows(chunk)
        chunk.copy_(_guarded(penalty.prox(old, t), old, skipped).view(chunk.shape))


def _rows(penalty: Penalty, block: Weighted, skipped: Tensor | None) -> None:
    flat = [part.rows(view) for part, view in zip(block.parts, block.views, strict=True)]
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
