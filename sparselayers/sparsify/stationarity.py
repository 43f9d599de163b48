"""How far weights are from a stationary point of loss + lam R: the gradient step against the prox step that answers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..ops import checks
from ..ops.norm import upcast
from ..prox import Penalty
from .groups import Block
from .metric import KNOWN, Rate, adaptive, euclidean
from .multitensor import prox_


@torch.no_grad()
def stationarity(
    penalty: Penalty,
    blocks: Sequence[Block],
    caught: Mapping[str, nn.Parameter],
    step: float | Tensor | Optimizer,
    lam: float | Tensor,
) -> Tensor:
    """‖w - w'‖ / (‖w - v‖ + ‖v - w'‖) with v = w - lr D^-1 g, w' = prox(v); 0 where all three are equal."""
    if not isinstance(step, Optimizer):
        checks.number(step, "step", low=0.0, open_low=True)
    moving = {name: p for name, p in caught.items() if p.grad is not None}
    if not moving:
        raise ValueError(
            f"stationarity() reads gradients, and none of {', '.join(caught)} has one; call loss.backward() first"
        )
    rates = _rates(moving, step)
    pulled = {name: _pulled(moving[name], rate) for name, rate in rates.items()}
    answered = {name: v.clone() for name, v in pulled.items()}
    prox_(penalty, blocks, answered, rates, lam)
    moved = _distance((moving[name], answered[name]) for name in rates)
    pull = _distance((moving[name], v) for name, v in pulled.items())
    answer = _distance((v, answered[name]) for name, v in pulled.items())
    total = pull + answer
    return torch.where(total == 0, 0, moved / torch.where(total == 0, 1, total))


def _rates(moving: Mapping[str, nn.Parameter], step: float | Tensor | Optimizer) -> dict[str, Rate]:
    if not isinstance(step, Optimizer):
        return {name: Rate(step) for name in moving}
    known = isinstance(step, tuple(KNOWN)) and all(step.state.get(p) for p in moving.values())
    rates = adaptive(step) if known else euclidean(step)
    # A scheduler may have brought lr to 0, where every point looks stationary.
    start = {id(p): group.get("initial_lr", group["lr"]) for group in step.param_groups for p in group["params"]}
    held = {name: rates[id(p)]._replace(lr=start[id(p)]) for name, p in moving.items() if id(p) in rates}
    if not held:
        raise ValueError("the optimizer holds none of the parameters caught that have a gradient; give lr instead")
    return held


def _pulled(p: nn.Parameter, rate: Rate) -> Tensor:
    assert p.grad is not None
    w, g = upcast(p.detach()), upcast(p.grad)
    return w - rate.lr * (g if rate.metric is None else g / rate.metric.whole())


def _distance(pairs) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one - other) for one, other in pairs]))
