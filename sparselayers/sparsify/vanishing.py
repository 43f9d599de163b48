"""For each group, the strength at which the prox step about to be taken makes it zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..ops.diagonal import Diagonal
from ..ops.norm import upcast
from ..prox import Penalty
from .groups import Block
from .hook import weigh
from .metric import Rate
from .multitensor import Weighted, spread
from .sharded import whole

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
    weighted = [block for block in (weigh(block, tensors, gathered, 1.0) for block in blocks) if block is not None]
    every = max(1, sum(_count(penalty, block) for block in weighted) // (ENTRIES if penalty.separable else ROWS))
    find = _of_entries if penalty.separable else _of_rows
    found = [find(penalty, block, every) for block in weighted] or [torch.empty(0)]
    return torch.cat([f.to(found[0].device, torch.promote_types(f.dtype, found[0].dtype)) for f in found])


def _whole(rate: Rate) -> Rate:
    return rate if rate.metric is None else rate._replace(metric=rate.metric.over(whole(rate.metric.second)))


def _count(penalty: Penalty, block: Weighted) -> int:
    if penalty.separable:
        return sum(view.numel() for view in block.views)
    return math.prod(block.views[0].shape[: block.parts[0].lead])


def _of_entries(penalty: Penalty, block: Weighted, every: int) -> Tensor:
    found = []
    for view, metric in zip(block.views, block.metric or [None] * len(block.views), strict=True):
        v = upcast(_some(view, view, every))
        if metric is None:
            found.append(penalty.lam_max((v / block.t).unsqueeze(-1), block.t))
            continue
        d = metric.over(_some(metric.second, view, every)).whole() if isinstance(metric, Diagonal) else metric + 0 * v
        found.append(penalty.lam_max((v * d / block.t).unsqueeze(-1), block.t / d))
    return torch.cat(found)


def _some(x: Tensor, view: Tensor, every: int) -> Tensor:
    """Every so many entries of x, cut as `view`, in the order in which that lies in memory: none is copied first."""
    axes = sorted(range(view.ndim), key=view.stride, reverse=True)
    while every > 1 and math.gcd(every, view.shape[axes[-1]]) > 1:  # else it would meet few of the columns
        every += 1
    return x.permute(axes).reshape(-1)[::every]


def _of_rows(penalty: Penalty, block: Weighted, every: int) -> Tensor:
    rows = [upcast(part.rows(view[::every])) for part, view in zip(block.parts, block.views, strict=True)]
    v = rows[0] if len(rows) == 1 else torch.cat(rows, 1)
    if block.metric is None:
        return penalty.lam_max(v / block.t, block.t)
    some = [d.over(d.second[::every]) if isinstance(d, Diagonal) else d for d in block.metric]
    d = torch.cat([spread(*each) for each in zip(block.parts, rows, some, strict=True)], 1)
    # A convex R vanishes where D v / t lies in lam times its subdifferential at 0; GroupL0 is the same in any scale of v.
    return penalty.lam_max((d if penalty.convex else d.sqrt()) * v / block.t, block.t)
