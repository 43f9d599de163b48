"""The strength from which on a prox step sets everything to zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import checks
from ..prox import Penalty
from .cuts import Block
from .sharded import whole


@torch.no_grad()
def lam_max(penalty: Penalty, blocks: list[Block], parameters: dict[str, nn.Parameter], lr: float | Tensor) -> Tensor:
    """The smallest lam with prox_{lr lam R}(w - lr g) = 0 for every group: the largest penalty.lam_max(w / lr - g, lr)."""
    checks.number(lr, "lr", low=0.0, open_low=True)
    found = []
    for block in blocks:
        # A part without a gradient does not move in a step, so it is no part of the question.
        moving = [(part, parameters[part.name]) for part in block if parameters[part.name].grad is not None]
        if moving:
            pulls = [part.rows(part.cut(whole(p.detach()) / lr - whole(_gradient(p)))) for part, p in moving]
            each = penalty.lam_max(torch.cat(pulls, 1), lr)
            found.append(each.amax() if each.numel() else each.new_zeros(()))  # no group at all: any strength does
    if not found:
        names = ", ".join(part.name for block in blocks for part in block)
        raise ValueError(f"lam_max() reads gradients, and none of {names} has one; call loss.backward() first")
    first = found[0]
    return torch.stack([f.to(first.device, torch.promote_types(f.dtype, first.dtype)) for f in found]).amax()


def _gradient(p: nn.Parameter) -> Tensor:
    assert p.grad is not None
    return p.grad
