"""Random search for a few positive numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SPREAD = math.log(6.0)  # the first half of the trials looks within a factor of 6 of the start
NEAR, NEAREST = 0.5, 0.05  # the second half near the best one so far, in log units, ever nearer


def random_search(score: Callable[[Tensor], float], start: Tensor, trials: int, generator: torch.Generator) -> Tensor:
    """The best of `start` and `trials` - 1 draws: the least score wins, the earlier one at a tie, NaN never.

    `start` is a vector of positive numbers; the draws are log-uniform around it, then log-normal around the best.
    """
    best, least = start, score(start)
    least = math.inf if math.isnan(least) else least
    for trial in range(1, trials):
        done = trial / trials
        if done < 0.5:
            drawn = start.log() + SPREAD * (2 * torch.rand(start.shape, dtype=start.dtype, generator=generator) - 1)
        else:
            width = NEAR * (NEAREST / NEAR) ** (2 * done - 1)
            drawn = best.log() + width * torch.randn(start.shape, dtype=start.dtype, generator=generator)
        value = score(drawn.exp())
        if value < least:
            best, least = drawn.exp(), value
    return best
