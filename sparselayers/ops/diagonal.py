"""A diagonal metric by what an optimizer keeps of past gradients, so that no second copy of it is ever held whole."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .norm import upcast


class Diagonal(NamedTuple):
    """d = max(scale sqrt(second) + shift, least), entry by entry; the three are numbers or 0-d tensors."""

    second: Tensor
    scale: float | Tensor
    shift: float | Tensor
    least: float | Tensor

    def whole(self) -> Tensor:
        """d in the shape of `second`, in at least 32 bits."""
        d = upcast(self.second).sqrt() * self.scale + self.shift
        return d.clamp_min(self.least) if not isinstance(self.least, Tensor) else torch.maximum(d, self.least.to(d))

    def over(self, second: Tensor) -> Diagonal:
        """The same for other entries of what the optimizer keeps: a view, a cut or a part of it."""
        return self._replace(second=second)
