"""Support selection: a row's largest entries pass the threshold without being shrunk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import checks


@dataclass(frozen=True)
class SupportSelection:
    r"""How many entries of a code step k trusts: min(rate k, most) percent of the atoms, largest magnitudes first.

    What is trusted and passes the threshold keeps its value; the rest is shrunk. Without the bias of the threshold the
    codes of sparse signals become exact much faster.

    Args:
        rate: percent more at each step, >= 0.
        most: percent at most, in [0, 100]; a little above the share of atoms that a code uses.

    Raises: TypeError and ValueError for what is no such number.

    Source: Chen, Liu, Wang and Yin, NeurIPS 2018 (LISTA-CPSS).

    When not to use: for codes that are not sparse: what is kept by mistake is kept whole.

    >>> import sparselayers as sl
    >>> [sl.SupportSelection(rate=1.2, most=13.0).count(k, n_atoms=500) for k in (1, 2, 16)]
    [6, 12, 65]
    """

    rate: float = 1.2
    most: float = 13.0

    def __post_init__(self) -> None:
        checks.number(self.rate, "rate", low=0.0)
        checks.number(self.most, "most", low=0.0, high=100.0)

    def count(self, k: int, n_atoms: int) -> int:
        """How many entries step k = 1, 2, ... trusts."""
        return round(min(self.rate * k, self.most) / 100 * n_atoms)


def keep_largest(v: Tensor, shrunk: Tensor, count: int | Tensor) -> Tensor:
    """`v` where it is among the `count` largest magnitudes of its row and was not shrunk to 0, else `shrunk`.

    `count` is one for all rows or (..., 1) one a row, at most the length of a row. Entries that tie with the last one
    are kept as well. One sort of each row, O(n log n), whatever the batch.
    """
    size = v.detach().abs()
    if isinstance(count, int):
        if count == 0:
            return shrunk
        level = size.topk(count).values[..., -1:]
    else:
        level = size.sort(dim=-1, descending=True).values.gather(-1, (count - 1).clamp_min(0))
        level = torch.where(count > 0, level, torch.inf)
    return torch.where((size >= level) & (shrunk != 0), v, shrunk)
