"""For each group, the strength at which the prox step about to be taken makes it zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..ops.diagonal import Diagonal
from ..ops.norm import upcast
from ..prox import Penalty
from .groups import Block, Part
from .metric import Rate, per_lr
from .multitensor import same_lr
from .sharded import whole

Cut = tuple[Part, Tensor, Rate]
ENTRIES, ROWS = 2**17, 2**12  # of a separable penalty, of another: of twice as many groups every second is looked at


@torch.no_grad()
def shrinks(penalty: Penalty, size: int) -> bool:
    """Does the prox move what it does not make zero? That of l0 does not. ValueError where no strength makes zeros."""
    v = torch.full((1, size), 1e-3)  # so small that penalties with a scale of their own are as steep as at 0
    try:
        lam = float(penalty.lam_max(v))
    except ValueError as error:
        raise ValueError(
            f"{penalty!r} has no lam_max, a strength that makes a group zero, so lam cannot be set by a density; "
            "give lam as a number, or take a penalty such as L1(), GroupL2() or GroupL0()"
        ) from error
    return not torch.equal(penalty.prox(v, lam / 2), v)


@torch.no_grad()
def vanishing(
    penalty: Penalty, blocks: Sequence[Block], parameters: Mapping[str, Tensor], rates: Mapping[str, Rate]
) -> Tensor:
    """The smallest lam with prox_{lr lam R}(v_g) = 0, group by group: (n,). Entries are the groups of a separable penalty.

    Of many groups an evenly spaced part. Parameters without a rate take none; a sharded model is gathered.
    """
    tensors = {name: whole(parameters[name].detach()) for name in rates}
    gathered = {name: _whole(rate) for name, rate in rates.items()}
    live = [[(part, gathered[part.name]) for part in block if part.name in rates] for block in blocks]
    cut = [[(part, part.cut(tensors[part.name]), rate) for part, rate in block] for block in live if block]
    every = max(1, sum(_count(penalty, block) for block in cut) // (ENTRIES if penalty.separable else ROWS))
    if penalty.separable:
        found = [_of_entries(penalty, *each, every) for block in cut for each in block]
    else:
        found = [_of_rows(penalty, block, every) for block in cut]
    found = found or [torch.empty(0)]
    return torch.cat([f.to(found[0].device, torch.promote_types(f.dtype, found[0].dtype)) for f in found])


def _whole(rate: Rate) -> Rate:
    return rate if rate.metric is None else rate._replace(metric=rate.metric.over(whole(rate.metric.second)))


def _count(penalty: Penalty, block: list[Cut]) -> int:
    if penalty.separable:
        return sum(view.numel() for _, view, _ in block)
    part, view, _ = block[0]
    return math.prod(view.shape[: part.lead])


def _of_entries(penalty: Penalty, part: Part, view: Tensor, rate: Rate, every: int) -> Tensor:
    v = upcast(_some(view, view, every))
    if rate.metric is None:
        return penalty.lam_max((v / rate.lr).unsqueeze(-1), rate.lr)
    d = rate.metric.over(_some(part.cut(rate.metric.second), view, every)).whole()
    return penalty.lam_max((v * d / rate.lr).unsqueeze(-1), rate.lr / d)


def _some(x: Tensor, view: Tensor, every: int) -> Tensor:
    """Every so many entries of x, cut as `view`, in the order in which that lies in memory: none is copied first."""
    axes = sorted(range(view.ndim), key=view.stride, reverse=True)
    while every > 1 and math.gcd(every, view.shape[axes[-1]]) > 1:  # else it would meet few of the columns
        every += 1
    return x.permute(axes).reshape(-1)[::every]


def _of_rows(penalty: Penalty, block: list[Cut], every: int) -> Tensor:
    one_lr = same_lr([(part, rate) for part, _, rate in block])
    if not one_lr:  # as in the prox: t = lam in the metric D / lr, and a part that does not move has none
        block = [each for each in block if isinstance(each[2].lr, Tensor) or each[2].lr != 0]
    rows = [upcast(part.rows(view[::every])) for part, view, _ in block]
    v = rows[0] if len(rows) == 1 else torch.cat(rows, 1)
    t = block[0][2].lr if one_lr else 1.0
    if one_lr and all(rate.metric is None for *_, rate in block):
        return penalty.lam_max(v / t, t)
    d = torch.cat([_metric(part, x, rate, one_lr, every) for (part, _, rate), x in zip(block, rows, strict=True)], 1)
    # A convex R vanishes where D v / t lies in lam times its subdifferential at 0; GroupL0 is the same in any scale of v.
    return penalty.lam_max((d if penalty.convex else d.sqrt()) * v / t, t)


def _metric(part: Part, rows: Tensor, rate: Rate, one_lr: bool, every: int) -> Tensor:
    """D, or D / lr, of the rows looked at."""
    d = (1.0 if rate.metric is None else rate.metric) if one_lr else per_lr(rate)
    if isinstance(d, Diagonal):
        return part.rows(d.over(part.cut(d.second)[::every]).whole())
    return rows.new_ones(rows.shape) * d
