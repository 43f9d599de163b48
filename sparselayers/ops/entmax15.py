"""Entmax with alpha = 1.5 on rows: the waterline with a square inside."""

from __future__ import annotations

import torch
from torch import Tensor

from .eager import may_branch
from .kernels.rows import entmax15_rows as fused_entmax15_rows
from .waterline import indicator, newton_passes


def entmax15_rows(z: Tensor) -> Tensor:
    r"""(s - tau)_+² with s = z / 2 and tau such that the row sums to 1; z (..., n), n >= 1, at least 32 bits.

    On the support S of size k, with A = sum_S (s - tau_0) and Q = sum_S (s - tau_0)² for any constant tau_0:
    tau = tau_0 + A / k - sqrt((1 - Q + A² / k) / k). S is found on detached values by Newton on ‖(s - tau)_+‖ - 1, convex
    and falling, from below: max - 1 is below. The closed form on the constant S then carries every derivative.
    """
    fused = fused_entmax15_rows(z)
    if fused is not None:
        return fused
    s = z / 2
    top = s.detach().amax(-1, keepdim=True)
    s = s - torch.where(top == -torch.inf, 0, top)
    fixed = s.detach()
    tau = torch.full_like(top, -1.0)
    eager = may_branch(fixed)
    for _ in range(newton_passes(fixed)):
        above = torch.relu(fixed - tau)
        area, length = above.sum(-1, keepdim=True), torch.linalg.vector_norm(above, dim=-1, keepdim=True)
        step = length * (length - 1) / torch.where(area > 0, area, 1)
        tau = tau + step
        if eager and not bool((step > 4 * torch.finfo(step.dtype).eps).any()):
            break
    above = torch.relu(s - tau)
    k = indicator(above.detach()).sum(-1, keepdim=True)
    k = torch.where(k > 0, k, 1)
    area, square = above.sum(-1, keepdim=True), above.square().sum(-1, keepdim=True)
    spread = (1 - square + area.square() / k) / k
    tau = tau + area / k - spread.sqrt()
    return torch.relu(s - tau).square()
