"""One prox over many tensors, in place: small ones joined into one matrix, large ones by a kernel or in cache-sized chunks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.diagonal import Diagonal
from ..prox import Penalty
from .cuts import Block, Part, as_rows
from .metric import Rate, per_lr

SMALL = 2**16  # entries up to which joining is cheaper than a call of its own
CHUNK = 2**20  # entries worked at a time: four megabytes in float32 stay in cache; smaller ones pay Python's time

Number = float | Tensor


class Alike(NamedTuple):
    """Views of one shape, of which `lead` axes count the rows, with one strength; and each one's metric, or none at all."""

    views: list[Tensor]
    lead: int
    t: Number
    metrics: list[Diagonal]


@torch.no_grad()
def prox_(
    penalty: Penalty,
    blocks: Iterable[Block],
    tensors: Mapping[str, Tensor],
    rates: Mapping[str, Rate],
    lam: Number,
    skipped: Tensor | None = None,
) -> None:
    """Every block's rows <- penalty.prox(rows, t = lr lam) in the metric of its rate, in place.

    A part without a rate stays as it is. Where `skipped`, a 0-d boolean tensor, is True nothing changes.
    """
    # A model may have thousands of tensors: little is asked of each, and the rest of those that are alike.
    views: dict[tuple, list[Tensor]] = defaultdict(list)
    metrics: dict[tuple, list[Diagonal]] = defaultdict(list)
    for block in blocks:
        if len(block) > 1:
            _together(penalty, block, tensors, rates, lam, skipped)
            continue
        name, cut, lead, _ = block[0]
        if name in rates:
            rate, view = rates[name], cut(tensors[name])
            key = view.shape, lead, view.dtype, view.device, rate.lr, rate.metric is None
            views[key].append(view)
            if rate.metric is not None:
                metrics[key].append(rate.metric.over(cut(rate.metric.second)))
    joined: dict[tuple, list[Alike]] = defaultdict(list)
    for key, members in views.items():
        shape, lead, dtype, device, lr, plain = key
        alike = Alike(members, lead, lr * lam, metrics[key])
        if shape.numel() > SMALL:
            _large(penalty, alike, skipped)
        elif shape.numel():
            size = 1 if penalty.separable else math.prod(shape[lead:])
            joined[size, dtype, device, plain].append(alike)
    for (size, *_), several in joined.items():
        _join(penalty, several, size, skipped)


def _step(penalty: Penalty, rows: Tensor, t: Number, metric: Tensor | Diagonal | None, skipped: Tensor | None) -> None:
    """rows (m, n) <- penalty.prox(rows, t, metric)."""
    if penalty._prox_(rows, _unless(skipped, t), metric):
        return
    new = penalty.prox(rows, t, metric.whole() if isinstance(metric, Diagonal) else metric)
    rows.copy_(new if skipped is None else torch.where(skipped, rows, new))


def _unless(skipped: Tensor | None, t: Number) -> Number:
    """t, or 0 where the step is skipped: then nothing changes, bit for bit."""
    if skipped is None:
        return t
    wide = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device=skipped.device)
    return torch.where(skipped, 0, wide)


def _join(penalty: Penalty, several: list[Alike], size: int, skipped: Tensor | None) -> None:
    """One prox on rows of `size` entries."""
    matrix = _matrix([alike.views for alike in several], size)
    rows = [alike.views[0].numel() // size for alike in several]  # of one view
    counts = [n * len(alike.views) for n, alike in zip(rows, several, strict=True)]
    t = _each([alike.t for alike in several], counts, matrix)
    metric: Tensor | Diagonal | None = None
    if several[0].metrics:
        counts_each = [n for n, alike in zip(rows, several, strict=True) for _ in alike.views]
        numbers = zip(*(d[1:] for alike in several for d in alike.metrics), strict=True)
        scale, shift, least = (_each(each, counts_each, matrix) for each in numbers)
        second = _matrix([[d.second for d in alike.metrics] for alike in several], size)
        metric = Diagonal(second, scale, shift, least)
        if any(isinstance(x, Tensor) and x.ndim for x in (scale, shift, least)):
            metric = metric.whole()
    _step(penalty, matrix, t, metric, skipped)
    for alike, part in zip(several, matrix.split(counts), strict=True):
        views = alike.views
        torch._foreach_copy_(views, part.view(len(views), *views[0].shape).unbind())


def _matrix(views: list[list[Tensor]], size: int) -> Tensor:
    """A copy of all, in rows of `size` entries; those of one shape come together."""
    stacks = [torch.stack(alike).reshape(-1, size) for alike in views]
    return torch.cat(stacks) if len(stacks) > 1 else stacks[0]


def _each(numbers: Sequence[Number], rows: list[int], matrix: Tensor) -> Number:
    """The one number, where all are the same; else a column with that of each row."""
    if len(set(numbers)) == 1:
        return numbers[0]
    wide = torch.promote_types(matrix.dtype, torch.float32)  # a strength of 1e-8 is 0 in float16
    each = torch.stack([torch.as_tensor(x, dtype=wide, device=matrix.device).reshape(()) for x in numbers])
    repeats = torch.tensor(rows, device=matrix.device)
    return each.repeat_interleave(repeats, output_size=matrix.shape[0]).unsqueeze(-1)


def _large(penalty: Penalty, alike: Alike, skipped: Tensor | None) -> None:
    """One prox a view: each is large enough to be worth it."""
    for i, view in enumerate(alike.views):
        metric = alike.metrics[i] if alike.metrics else None
        if view.is_contiguous():
            rows = view.view(view.shape[0], -1) if penalty.separable else as_rows(view, alike.lead)
            over = None if metric is None else metric.over(metric.second.reshape(rows.shape))
            if penalty._prox_(rows, _unless(skipped, alike.t), over):
                continue
        # A GPU has no cache to stay in, and every chunk costs it a launch.
        size = max(1, CHUNK // view[0].numel()) if view.device.type == "cpu" else view.shape[0]
        chunks = view.split(size)
        seconds: Sequence[Tensor | None] = [None] * len(chunks) if metric is None else metric.second.split(size)
        for chunk, second in zip(chunks, seconds, strict=True):
            rows = as_rows(chunk, alike.lead)
            over = None if metric is None or second is None else metric.over(as_rows(second, alike.lead))
            _step(penalty, rows, alike.t, over, skipped)
            if rows.data_ptr() != chunk.data_ptr():  # a copy, where the rows do not lie as such in memory
                chunk.copy_(rows.view(chunk.shape))


def _together(
    penalty: Penalty,
    block: Block,
    tensors: Mapping[str, Tensor],
    rates: Mapping[str, Rate],
    lam: Number,
    skipped: Tensor | None,
) -> None:
    """Parts whose rows are one; where their lr differ they are one prox all the same, with t = lam in the metric D / lr."""
    live = [(part, rates[part.name]) for part in block if part.name in rates]
    one_lr = same_lr(live)
    if not one_lr:  # a part that does not move has no metric
        live = [(part, rate) for part, rate in live if isinstance(rate.lr, Tensor) or rate.lr != 0]
        one_lr = same_lr(live)
    if not live:
        return
    views = [part.cut(tensors[part.name]) for part, _ in live]
    flat = [part.rows(view) for (part, _), view in zip(live, views, strict=True)]
    metric = None
    if not one_lr or any(rate.metric is not None for _, rate in live):
        metric = torch.cat([_spread(part, x, rate, not one_lr) for (part, rate), x in zip(live, flat, strict=True)], 1)
    matrix = torch.cat(flat, 1)
    _step(penalty, matrix, live[0][1].lr * lam if one_lr else lam, metric, skipped)
    for (_, rate), view, rows in zip(live, views, matrix.split([rows.shape[1] for rows in flat], 1), strict=True):
        new = rows.reshape(view.shape)
        # An lr of 0 in a tensor is a huge metric, in which a prox stays only up to rounding.
        view.copy_(torch.where(rate.lr == 0, view, new) if isinstance(rate.lr, Tensor) else new)


def same_lr(live: list[tuple[Part, Rate]]) -> bool:
    """Is it one lr, as far as one may know without looking into tensors?"""
    lrs = [rate.lr for _, rate in live]
    return all(lr is lrs[0] or (not isinstance(lr, Tensor) and lr == lrs[0]) for lr in lrs)


def _spread(part: Part, rows: Tensor, rate: Rate, over_lr: bool) -> Tensor:
    """D, or D / lr, as a matrix that joins the rows."""
    d = per_lr(rate) if over_lr else 1.0 if rate.metric is None else rate.metric
    return part.rows(d.over(part.cut(d.second)).whole()) if isinstance(d, Diagonal) else rows.new_ones(rows.shape) * d
