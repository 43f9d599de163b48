"""The channels of a value in a model, and which of them stand or fall together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Channels:
    """What is known of a tensor, entry by entry of one axis.

    Attributes:
        axis: the axis, counted from the front.
        slots: (C,), for each entry the number of its slot; entries of one slot stay or go together.
        known: (C,), True where the entry has one value at every place and for every input.
        const: (C,), that value; 0 where it is not known.
    """

    axis: int
    slots: Tensor
    known: Tensor
    const: Tensor

    def take(self, index: Tensor, axis: int | None = None) -> Channels:
        """The entries `index`, along another axis if one is given."""
        return Channels(self.axis if axis is None else axis, self.slots[index], self.known[index], self.const[index])

    def learned(self, known: Tensor, const: Tensor) -> Channels:
        """The same entries with other knowledge; a value that is not finite counts as unknown."""
        known = known & const.isfinite()
        return Channels(self.axis, self.slots, known, torch.where(known, const, 0))


def wide(x: Tensor) -> Tensor:
    """In double precision, real or complex."""
    return x.to(torch.promote_types(x.dtype, torch.float64))


class Slots:
    """Numbers for channels; `unite` makes two of them one, `keep` says that one cannot go."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self.kept: set[int] = set()

    def fresh(self, n: int) -> Tensor:
        """n new slots."""
        first = len(self._parents)
        self._parents.extend(range(first, first + n))
        return torch.arange(first, first + n)

    def unite(self, one: Tensor, other: Tensor) -> None:
        """one[i] and other[i] stay or go together from now on."""
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            self._parents[self._root(a)] = self._root(b)

    def keep(self, slots: Tensor) -> None:
        """None of them can go."""
        self.kept.update(slots.tolist())

    def roots(self) -> Tensor:
        """(number of slots,): one representative of each slot's class."""
        return torch.tensor([self._root(slot) for slot in range(len(self._parents))], dtype=torch.long)

    def _root(self, slot: int) -> int:
        while self._parents[slot] != slot:
            self._parents[slot] = self._parents[self._parents[slot]]
            slot = self._parents[slot]
        return slot
