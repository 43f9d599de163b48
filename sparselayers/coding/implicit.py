"""The derivative of a Lasso code on its support, in memory that does not grow with the steps of the solver.

With the penalty a abs(z) + b 1/2 z², on the support S of a code and with its signs, the optimum solves

    D_S^T (D z - x) + a sign(z) + b z = 0.

With H = D_S^T D_S + diag(b) on S, and g the gradient of a loss in z, v = H^{-1} g there and 0 elsewhere gives

    dx = D v,   dD = (x - D z) v^T - (D v) z^T,   da = -sign(z) v,   db = -z v.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.eager import is_plain_eager
from ..ops.norm import strength
from ..prox import Penalty
from .certificate import Weights, weighed
from .fixed_point import AtFixedPoint, attach_fixed_point
from .support import Inverse, inverted

CHORD_STEPS = 4  # two for two orders of derivative, two for what the constant inverse is short of


def with_derivative(z: Tensor, x: Tensor, D: Tensor, lam: float | Tensor, penalty: Penalty) -> Tensor:
    """The code z, which carries no graph, with the derivative of the optimum in x, D and lam."""
    lam = strength(lam, D)
    plain = is_plain_eager(z)
    if plain and not (torch.is_grad_enabled() and any(q.requires_grad for q in (x, D, lam))):
        return z
    kind = weighed(penalty, lam, D)
    if not isinstance(kind, Weights):
        return (AtFixedPoint.apply if plain else attach_fixed_point)(z, x, D, lam, penalty)
    return _Implicit.apply(z, x, D, kind.a, kind.b) if plain else _attached(z, x, D, kind.a, kind.b)


class _Implicit(torch.autograd.Function):
    """The identity on a code, with the derivative of the optimum; all the work is done in the backward pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, x: Tensor, D: Tensor, a: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(z, x, D, a, b)
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        z, x, D, a, b = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # for a second derivative
            chosen = [q for q, want in zip((x, D, a, b), wanted, strict=True) if want]
            grads = iter(torch.autograd.grad(_attached(z, x, D, a, b), chosen, g, create_graph=True))
            return None, *(next(grads) if want else None for want in wanted)
        v = inverted(g, z, D, b)
        pull = v @ D.mT
        gx, gd, ga, gb = wanted
        return (
            None,
            pull if gx else None,
            _outer(x - z @ D.mT, v) - _outer(pull, z) if gd else None,
            (-z.sign() * v).sum_to_size(a.shape) if ga else None,
            (-z * v).sum_to_size(b.shape) if gb else None,
        )


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """The sum over samples of left right^T."""
    return left.reshape(-1, left.shape[-1]).mT @ right.reshape(-1, right.shape[-1])


def _attached(z: Tensor, x: Tensor, D: Tensor, a: Tensor, b: Tensor | None) -> Tensor:
    """The value of z with its derivative, in plain torch operations: chord steps with a constant inverse.

    Each step makes one more order of derivative exact, and reduces what the inverse is short of by the same factor again.
    """
    start = z.detach()
    signs, inverse = start.sign(), Inverse(start, D.detach(), None if b is None else b.detach())

    def equation(z: Tensor) -> Tensor:
        smooth = (z @ D.mT - x) @ D + a * signs
        return smooth if b is None else smooth + b * z

    offset, code = equation(start).detach(), start
    for _ in range(CHORD_STEPS):
        code = code - inverse(equation(code) - offset)
    return z + (code - start)
