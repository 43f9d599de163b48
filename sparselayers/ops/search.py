"""Binary search in every row at once, in a number of passes fixed by the length of the rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .eager import is_exporting


def last_where(holds: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """The index (..., 1) of the last point at which a condition still holds that, once false, stays false.

    Args:
        holds: points (..., 1) -> boolean (..., 1).
        points: (..., n), n >= 1, one ordered list a row. Where the condition holds nowhere the answer is 0.
    """
    # A guard on an exported dynamic length would be an error, so export reckons with two million points.
    bits = 21 if is_exporting() else next(k for k in range(64) if points.shape[-1] <= 2**k)
    low = torch.zeros_like(points[..., :1], dtype=torch.long)
    high = torch.full_like(low, points.shape[-1] - 1)
    for _ in range(bits):
        middle = (low + high + 1) // 2
        good = holds(points.gather(-1, middle))
        low, high = torch.where(good, middle, low), torch.where(good, high, middle - 1).maximum(low)
    return low
