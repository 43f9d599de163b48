"""The loop: z <- prox_{step lam_k R}(z - step grad f(z)), for coding layers, simplex attention and whatever else has a prox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .ops.eager import may_branch

CHECK_EVERY = 5  # steps between two looks at the stopping rule, which costs about as much as a step

Restart = Literal["sample"] | None


class Iterates(NamedTuple):
    """The last iterate, all of them if they were asked for, and how many steps each sample took (an int where it is fixed)."""

    z: Tensor
    trace: list[Tensor]
    steps: Tensor | int


def proximal_gradient(
    z: Tensor,
    *,
    grad: Callable[[Tensor], Tensor],
    prox: Callable[[Tensor, int], Tensor],
    step: float | Tensor,
    depth: int,
    momentum: bool = False,
    restart: Restart = None,
    stop: Callable[[Tensor], Tensor] | None = None,
    axes: int = 1,
    trace: bool = False,
) -> Iterates:
    r"""Run `depth` proximal gradient steps from z; samples are the leading axes and never see each other.

    Args:
        z: start (..., n); the samples are its rows, or its last `axes` axes.
        grad: z -> the gradient of the smooth part, the shape of z.
        prox: (v, k) -> the prox of step k = 1..depth at v, its strength included.
        step: step size, a number or a tensor that broadcasts to z.
        depth: number of steps.
        momentum: Nesterov's extrapolation (FISTA).
        restart: "sample" drops a sample's momentum whenever its last move went uphill against the prox-gradient; None never.
        stop: z -> boolean, True where a sample is done; looked at every 5 steps. A sample that is done stays as
            it is, whatever the others do.
        axes: how many trailing axes make a sample.
        trace: keep z_1 .. z_depth.

    Source: Beck and Teboulle 2009 (FISTA); O'Donoghue and Candes 2015, section 3.2 (gradient restart), per sample.
    """
    y, previous = z, z
    t: float | Tensor = 1.0
    kept: list[Tensor] = []
    sample = tuple(range(-axes, 0))
    downhill = (
        -step
    )  # y + (-step) grad has one pass less in its backward than y - step grad, bit by bit the same values
    done = None if stop is None else stop(z)
    steps: Tensor | int = depth if done is None else torch.where(done, 0, depth)
    for k in range(1, depth + 1):
        if done is not None and may_branch(done) and bool(done.all()):
            break
        z = prox(y + downhill * grad(y), k)
        if momentum:
            if restart == "sample":
                uphill = ((y - z) * (z - previous)).sum(sample, keepdim=True).detach() > 0
                t = torch.where(uphill, 1.0, torch.as_tensor(t, dtype=z.dtype, device=z.device))
            following = (1 + (1 + 4 * t * t) ** 0.5) / 2
            y, t = z + ((t - 1) / following) * (z - previous), following
        else:
            y = z
        if done is not None and stop is not None:
            z, y = torch.where(done, previous, z), torch.where(done, previous, y)
            if k % CHECK_EVERY == 0 and k < depth:
                done = done | stop(z)
                steps = torch.where(done & (steps == depth), k, steps)
        previous = z
        if trace:
            kept.append(z)
    return Iterates(z, kept, steps)
