"""How the strength lam runs from step to step: Constant, or Homotopy from lam_max down to lam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .ops import checks


class Schedule(Protocol):
    """What the layers ask of a schedule."""

    from_lam_max: bool

    def strength(self, lam: float | Tensor, excess: float | Tensor, k: int, depth: int) -> float | Tensor:
        """lam_k of step k = 1..depth; `excess` is lam_max / lam >= 1, per sample (..., 1), or 1.0 where it is not asked for."""


@dataclass(frozen=True)
class Constant:
    """lam_k = lam at every step.

    When not to use: for sparse codes of an incoherent dictionary at a small depth, where `Homotopy` gets nearer to them.

    >>> import sparselayers as sl
    >>> sl.Constant().strength(0.1, 10.0, 1, 16)
    0.1
    """

    from_lam_max = False

    def strength(self, lam: float | Tensor, excess: float | Tensor, k: int, depth: int) -> float | Tensor:
        return lam


@dataclass(frozen=True, repr=False)
class Homotopy:
    r"""lam_k = lam_max (lam / lam_max)^(k / depth), k = 1..depth, with lam_max PER SAMPLE.

    lam_max = max(start penalty.lam_max(D^T x, step), lam). The last step uses lam itself. For L1 and the norms it makes a layer
    scale-equivariant: code(c x) at lam = rho lam_max is c code(x). Gradients flow through lam_max.

    Args:
        start: in (0, 1], the part of lam_max to start from. At a small depth 0.5 leaves more steps near lam.

    Raises: ValueError for a `start` outside.

    Source: Zarka, Thiry, Angles and Mallat, ICLR 2020, eq. 9, there with one lam_max for the batch.

    When not to use: for dense codes of a coherent dictionary, where the objective falls more slowly than at constant lam;
    with a penalty that has no finite lam_max (Ridge, Exclusive, indicators), or at lam = 0: both are a
    ValueError when the layer is made; use `Constant`.

    >>> import sparselayers as sl
    >>> [round(sl.Homotopy().strength(0.1, 10.0, k, 2), 3) for k in (1, 2)]
    [0.316, 0.1]
    """

    start: float = 1.0

    from_lam_max = True

    def __post_init__(self) -> None:
        checks.number(self.start, "start", low=0.0, high=1.0, open_low=True)

    def __repr__(self) -> str:
        return "Homotopy()" if self.start == 1 else f"Homotopy(start={self.start!r})"

    def strength(self, lam: float | Tensor, excess: float | Tensor, k: int, depth: int) -> float | Tensor:
        if self.start != 1:
            excess = self.start * excess
            excess = excess.clamp_min(1) if isinstance(excess, Tensor) else max(excess, 1.0)
        return lam * excess ** (1 - k / depth)
