"""Newton's method for one monotone scalar equation a row, with exact first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .eager import may_branch

Equation = Callable[[Tensor], tuple[Tensor, Tensor]]


def newton_root(
    equation: Equation, detached: Equation, start: Tensor, passes: int = 40, most: Tensor | None = None
) -> Tensor:
    r"""The root s of a monotone equation f(s) = 0, approached by Newton from `start`.

    The root is found on constants; two Newton steps from it in plain torch operations then carry its derivatives: the
    first step is right to first order in the parameters, the second makes it right to second order.

    Args:
        equation: s (..., 1) -> (f, f'), built on the differentiable parameters.
        detached: the same on detached parameters.
        start: (..., 1), detached, on the side of the root from which Newton is monotone (below it for a concave
            increasing or a convex decreasing f). Rows whose start is the root stay where they are.
        passes: how many Newton steps at most; a plain CPU tensor stops as soon as no row has further to go.
        most: for an increasing f with its root in [0, most] that is concave or convex only in pieces: a step out of the
            interval in which the root is known to lie goes to its middle.
    """
    s, eager = start, may_branch(start)
    settled = torch.finfo(s.dtype).eps ** 0.75  # what follows a quadratic step of this size is below rounding
    low, high = torch.zeros_like(s), most
    for _ in range(passes):
        value, slope = detached(s)
        step = _newton_step((value, slope))
        if high is not None:
            low, high = torch.where(value < 0, s, low), torch.where(value > 0, s, high)
            within = (s - step >= low) & (s - step <= high)
            step = torch.where(within, step, s - (low + high) / 2)
        s = s - step
        if eager and not bool((step.abs() > settled * s.abs()).any()):
            break
    for _ in range(2):
        s = s - _newton_step(equation(s))
    return s


def _newton_step(value_and_slope: tuple[Tensor, Tensor]) -> Tensor:
    value, slope = value_and_slope
    flat = slope == 0
    return torch.where(flat, 0, value / torch.where(flat, 1, slope))
