"""Greedy-FISTA, sample by sample: a bold step, full momentum, and a restart whenever it points uphill."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.eager import may_wait
from . import dictionary
from .certificate import Strong, Weights, widest
from .polish import improved

BOLD = 1.3  # times 1 / ‖D‖², the step that is safe without momentum
LESS_BOLD = 0.96  # the step is cut by this where the moves grow beyond the first one
CHECK_EVERY = 5


def greedy(x: Tensor, D: Tensor, penalty: Weights | Strong, tol: float, max_iter: int) -> tuple[Tensor, Tensor]:
    r"""Codes z (B, n_atoms) of x (B, n_features), and the steps that each took (B,), until penalty.gap(x, D, z) <= tol.

    y = z_k + (z_k - z_{k-1});  z_{k+1} = prox_step(y - step D^T (D y - x));  y = z where <y - z_{k+1}, z_{k+1} - z_k> >= 0.

    A sample that is done stays as it is. Where values can be looked at it leaves the batch, and the loop ends with the
    last one; elsewhere all of `max_iter` steps are taken. There, too, a sample whose signs have come to rest is tried at the
    exact optimum of its support, which is taken if its certificate is better.

    Source: Liang, Luo and Schonlieb, SIAM J. Sci. Comput. 2022, algorithm 4.2 (momentum 1, step 1.3 / L, safeguard 0.96).
    """
    safe = dictionary.safe_step(D)
    shrink = penalty.to(x.dtype)
    code = x.new_zeros(x.shape[0], D.shape[1])
    signals, atoms = widest(x), widest(D)
    frozen = ~(penalty.gap(signals, atoms, widest(code)) > tol)
    taken = torch.where(frozen, 0, max_iter).squeeze(-1)
    look = may_wait(x)
    live = (~frozen).squeeze(-1).nonzero().squeeze(-1) if look else None
    z = code
    if live is not None:
        x, signals, z = x[live], signals[live], z[live]
        penalty, shrink = penalty.take(live), shrink.take(live)
    before = z
    y, step, first = z, (BOLD * safe).expand(z.shape[0], 1), z.new_zeros(z.shape[0], 1)
    gradient = dictionary.gradient(x, D)
    for k in range(1, max_iter + 1):
        if live is not None and not live.numel():
            break
        new = shrink.prox(y - step * gradient(y), step)
        move = new - z
        uphill = ((y - new) * move).sum(-1, keepdim=True) >= 0
        length = move.square().sum(-1, keepdim=True)
        first = length if k == 1 else first
        step = torch.where(length > first, (LESS_BOLD * step).clamp_min(safe), step)
        y, z = torch.where(uphill, new, new + move), new
        if k % CHECK_EVERY and k < max_iter:
            continue
        gap = penalty.gap(signals, atoms, widest(z))
        if live is not None and isinstance(penalty, Weights):
            steady = ((z > 0) == (before > 0)) & ((z < 0) == (before < 0)) & (gap > tol)
            rows, before = steady.all(-1).nonzero().squeeze(-1), z
            if rows.numel():
                z, y, gap = improved(signals, atoms, z, y, gap, penalty, rows)
        done = ~(gap > tol)
        if live is None:
            code = torch.where(frozen, code, z)
            taken = torch.where((done & ~frozen).squeeze(-1), k, taken)
            frozen = frozen | done
            continue
        code[live] = z
        leave = done.squeeze(-1)
        taken[live[leave]] = k
        if leave.any():
            stay = (~leave).nonzero().squeeze(-1)
            live, x, signals, y, z, before, step, first = (
                q[stay] for q in (live, x, signals, y, z, before, step, first)
            )
            penalty, shrink, gradient = penalty.take(stay), shrink.take(stay), dictionary.gradient(x, D)
    return code, taken
