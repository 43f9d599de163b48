"""The derivative of a code under any convex penalty, as a fixed point of one proximal gradient step.

An optimum is a fixed point of T(z) = prox_{step lam R}(z - step D^T (D z - x)). With J the Jacobian of T in z, its
derivative in any parameter p solves (I - J) dz = dT/dp.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..prox import Penalty
from . import dictionary
from .certificate import widest

CHORD_STEPS = 4  # two for two orders of derivative, two for what the constant inverse is short of
SLIGHT = 1e-12


class AtFixedPoint(torch.autograd.Function):
    """The identity on a code, with the derivative of the fixed point; all the work is done in the backward pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, x: Tensor, D: Tensor, lam: Tensor, penalty: Penalty) -> Tensor:
        ctx.save_for_backward(z, x, D, lam)
        ctx.penalty = penalty
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        z, x, D, lam = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:4]
        with torch.enable_grad():
            code = attach_fixed_point(z, x, D, lam, ctx.penalty)
        chosen = [q for q, want in zip((x, D, lam), wanted, strict=True) if want]
        again = torch.is_grad_enabled()
        grads = iter(torch.autograd.grad(code, chosen, g, create_graph=again, allow_unused=True))
        return None, *(next(grads) if want else None for want in wanted), None


def attach_fixed_point(z: Tensor, x: Tensor, D: Tensor, lam: Tensor, penalty: Penalty) -> Tensor:
    """The value of z, a code without a graph, with the derivative of the fixed point, in plain torch operations.

    Chord steps with a constant inverse of I - J, (M^T M + slight I)^{-1} M^T with M = I - J, write it down: each makes one
    more order of derivative exact. The inverse is dense: n_atoms² entries a sample.
    """
    start, fixed = z.detach(), D.detach()
    step = dictionary.safe_step(fixed)
    eye = torch.eye(D.shape[1], dtype=D.dtype, device=D.device)
    v, t = start - step * ((start @ fixed.mT - x.detach()) @ fixed), step * lam.detach()
    pull = torch.func.vjp(lambda v: penalty.prox(v, t), v)[1]
    slopes = torch.func.vmap(lambda e: pull(e.expand_as(v))[0])(eye).movedim(0, -2)
    short = widest(eye) - widest(slopes) @ widest(eye - step * fixed.mT @ fixed)
    factor = torch.linalg.cholesky_ex(short.mT @ short + SLIGHT * widest(eye))[0]

    def moved(z: Tensor) -> Tensor:
        return z - penalty.prox(z - step * ((z @ D.mT - x) @ D), step * lam)

    offset, code = moved(start).detach(), start
    for _ in range(CHORD_STEPS):
        wrong = widest(moved(code) - offset).unsqueeze(-1)
        code = code - torch.cholesky_solve(short.mT @ wrong, factor).squeeze(-1).to(z.dtype)
    return z + (code - start)
