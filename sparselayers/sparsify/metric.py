"""The step an optimizer has just taken, w <- w - lr D^-1 g: each parameter's lr and, where the optimizer has one, its D."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from ..ops.diagonal import Diagonal
from ..ops.eager import may_branch
from ..ops.norm import upcast
from .cuts import Block
from .sharded import Unsharded, is_sharded, whole

LEAST_LR = 1e-12  # a part that does not move is one that hardly moves: its metric stays finite
FLOOR = 0.01


class Rate(NamedTuple):
    """lr, D (1 where None), and a sum of past steps that takes the prox's pull on, as it takes gradients, in this share."""

    lr: float | Tensor
    metric: Diagonal | None = None
    momentum: Tensor | None = None
    share: float = 1.0


Rates = dict[int, Rate]  # by the parameter's id


def euclidean(optimizer: Optimizer) -> Rates:
    """D = 1, whatever the optimizer; parameters without a gradient have not moved and are left out."""
    rates = ((Rate(group["lr"]), group) for group in optimizer.param_groups)
    return {id(p): rate for rate, group in rates for p in group["params"] if p.grad is not None}


def inertial(optimizer: Optimizer) -> Rates:
    """SGD's momentum sums steps, so the penalty's pull must enter the sum as the gradient does, dampened or looked ahead.

    With b the momentum, g the gradient and p the pull: b <- mu b + (1 - dampening) (g + p).
    """
    rates: Rates = {}
    for group, p in _moved(optimizer):
        lr, share = group["lr"], 1 - group["dampening"]
        if group["momentum"]:
            ahead = 1 + group["momentum"] if group["nesterov"] else share
            rates[id(p)] = Rate(lr * ahead, None, optimizer.state[p]["momentum_buffer"], share)
        else:
            rates[id(p)] = Rate(lr)
    return rates


def adaptive(optimizer: Optimizer, floor: float = 0.0) -> Rates:
    """D as the optimizer divides by it, at least `floor` times its root mean square over the parameter."""
    diagonal = KNOWN[kind(optimizer)]
    return {
        id(p): Rate(group["lr"], _floored(diagonal(optimizer.state[p], group), floor)) for group, p in _moved(optimizer)
    }


def kind(optimizer: Optimizer) -> type[Optimizer]:
    """The class in KNOWN that `optimizer` belongs to; ValueError where there is none."""
    for known in KNOWN:
        if isinstance(optimizer, known):
            return known
    names = ", ".join(sorted(known.__name__ for known in KNOWN))
    raise ValueError(
        f'metric="optimizer" is known for {names}, got {type(optimizer).__name__}; use metric=None, the Euclidean prox'
    )


def _moved(optimizer: Optimizer) -> list[tuple[dict[str, Any], Tensor]]:
    return [(group, p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _adam(state: dict[str, Any], group: dict[str, Any]) -> Diagonal:
    """sqrt(v / (1 - beta2^k)) + eps."""
    second = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    beta = group["betas"][1]
    log = beta.log() if isinstance(beta, Tensor) else math.log(beta) if beta else -math.inf
    # expm1 keeps the digits that 1 - beta^k loses in the first steps; a step that was skipped may leave k = 0.
    exponent = _count(state, second) * log
    seen = -torch.expm1(exponent) if isinstance(exponent, Tensor) else -math.expm1(exponent)
    return Diagonal(second, seen**-0.5, group["eps"], 0.0)


def _rmsprop(state: dict[str, Any], group: dict[str, Any]) -> Diagonal:
    """sqrt(v) + eps; centered: v minus the squared mean."""
    second = state["square_avg"]
    if group["centered"]:
        second = (second - state["grad_avg"].square()).clamp_min(0)
    return Diagonal(second, 1.0, group["eps"], 0.0)


def _adagrad(state: dict[str, Any], group: dict[str, Any]) -> Diagonal:
    """(sqrt(sum) + eps) (1 + (k - 1) lr_decay)."""
    slower = 1 + (_count(state, state["sum"]) - 1) * group["lr_decay"] if group["lr_decay"] else 1.0
    return Diagonal(state["sum"], slower, group["eps"] * slower, 0.0)


KNOWN: dict[type[Optimizer], Callable[[dict[str, Any], dict[str, Any]], Diagonal]] = {
    Adam: _adam,
    AdamW: _adam,
    NAdam: _adam,
    RMSprop: _rmsprop,
    Adagrad: _adagrad,
}


def _count(state: dict[str, Any], like: Tensor) -> float | Tensor:
    """The number of steps, at least 1; a tensor where the optimizer keeps it on a device, for which nothing waits."""
    count = state["step"]
    if may_branch(count):
        return max(float(count), 1.0)
    return count.to(torch.promote_types(like.dtype, torch.float32)).clamp_min(1)


def _floored(d: Diagonal, floor: float) -> Diagonal:
    if not floor or not d.second.numel():
        return d
    mean = whole(torch.linalg.vector_norm(d.second, 1, dtype=upcast(d.second).dtype)) / d.second.numel()
    # One NaN among the gradients makes the mean NaN; the floor then says nothing, and the other weights live on.
    return d._replace(least=torch.nan_to_num(floor * (mean.sqrt() * d.scale + d.shift), nan=0.0, posinf=0.0))


def per_lr(rate: Rate) -> float | Tensor | Diagonal:
    """D / lr, for parts of one group that move at different lr."""
    lr = rate.lr.clamp_min(LEAST_LR) if isinstance(rate.lr, Tensor) else max(rate.lr, LEAST_LR)
    if rate.metric is None:
        return 1 / lr
    d = rate.metric
    return Diagonal(d.second, d.scale / lr, d.shift / lr, d.least / lr)


def unsharded_rates(
    rates: Mapping[str, Rate], parameters: dict[str, nn.Parameter], blocks: Sequence[Block]
) -> Mapping[str, Rate]:
    """Rates whose D lies as the unsharded parameters do: of the same rows, or gathered with them."""
    metrics = {name: rate.metric for name, rate in rates.items() if rate.metric is not None}
    if not any(is_sharded(d.second) for d in metrics.values()):
        return rates
    seconds = Unsharded({**parameters, **{name: d.second for name, d in metrics.items()}}, blocks).tensors  # type: ignore[misc]
    return {
        name: rate if rate.metric is None else rate._replace(metric=rate.metric.over(seconds[name]))
        for name, rate in rates.items()
    }
