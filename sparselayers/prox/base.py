"""What a penalty is: value, prox and lam_max along the last axis. And `Grouped`, a penalty on blocks of that axis."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import checks
from ..ops.diagonal import Diagonal
from ..ops.norm import upcast


class Penalty(ABC):
    """A penalty R. Structure lives in the object as Python numbers; strength comes with the call; leading axes are batch.

    Subclasses are frozen dataclasses that define `value`, `_prox` and, where it exists, `_lam_max`.

    Attributes:
        convex: R is convex.
        separable: R is a sum over entries; t may then differ from entry to entry.
        has_metric: `prox` takes a diagonal metric.
        indicator: R is 0 or infinite; `prox` projects, whatever t is.
    """

    convex: bool = True
    separable: bool = False
    has_metric: bool = False
    indicator: bool = False
    _shortest = 1  # entries of a row that is not empty

    @abstractmethod
    def value(self, v: Tensor) -> Tensor:
        """R of each row: (..., n) -> (...,). Its gradient is finite wherever R is, and 0 where R has a kink."""

    def prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None = None) -> Tensor:
        """argmin_x  1/2 sum_i d_i (x_i - v_i)² + t R(x)  along the last axis.

        Args:
            v: (..., n).
            t: strength >= 0, a number or a tensor that broadcasts to (..., 1); to v for a separable penalty.
            metric: d > 0, broadcasts to v; 1 if None.

        Returns: the shape and dtype of v; the input is unchanged. t = 0 is the identity unless R is an indicator.
        """
        checks.floating(v, "v")
        checks.axis(-1, v, "v")
        (checks.per_entry if self.separable else checks.per_row)(t, v, "t")
        if metric is None:
            return self._prox(v, t, None).to(v.dtype)
        if not self.has_metric:
            raise ValueError(
                f"{type(self).__name__} has no prox in a metric; those that have: {', '.join(with_metric())}"
            )
        checks.floating(metric, "metric")
        checks.per_entry(metric, v, "metric")
        return self._prox(v, t, upcast(metric).expand(v.shape)).to(v.dtype)

    @abstractmethod
    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        """`prox` for arguments already checked; `metric` has the shape of v, in at least 32 bits."""

    def _prox_(self, rows: Tensor, t: float | Tensor, metric: Tensor | Diagonal | None) -> bool:
        """`prox` of rows (m, n) in place, without a graph, by a kernel; False where none serves, and nothing is done."""
        return False

    def lam_max(self, c: Tensor, step: float | Tensor = 1.0) -> Tensor:
        """The smallest lam with prox(step c, step lam) = 0, row by row: (..., n) -> (...,); ValueError where there is none.

        For 16-bit c it is in float32 where it is not proportional to c.
        """
        checks.floating(c, "c")
        checks.axis(-1, c, "c")
        if c.shape[-1] == 0:  # as a row of zeros
            c = c.new_zeros(*c.shape[:-1], self._shortest)
        return self._lam_max(c, step)

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        raise ValueError(
            f"{self!r} has no finite lam_max: no strength is known to set everything to zero; in a coding layer use "
            "schedule=Constant(), for weights give lam as a number, "
            "or define _lam_max in a penalty of your own that has one"
        )


def with_metric() -> list[str]:
    """The names of the penalties whose `prox` takes a metric."""
    return sorted(cls.__name__ for cls in Penalty.__subclasses__() if cls.has_metric)


def nudged_up(lam: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`lam` raised by a few rounding errors, where prox(step c, step lam) computes the same number by another route.

    `dtype` is that of c where lam has another: a strength that goes with c² leaves the range of 16 bits.
    """
    return lam * (1 + 8 * torch.finfo(dtype or lam.dtype).eps)


@dataclass(frozen=True)
class Grouped(Penalty):
    """A penalty on consecutive blocks of the last axis: R(v) = sum of penalty(block).

    prox: that of the penalty, block by block. lam_max: the largest over the blocks.

    Args:
        penalty: any penalty, for instance GroupL2().
        size: entries a block; divides the last axis.

    Raises: TypeError where `penalty` is none; ValueError for a size below 1 or one that does not divide the axis.

    When not to use: for groups that overlap or differ in size.

    >>> import torch, sparselayers as sl
    >>> sl.Grouped(sl.GroupL2(), size=2).prox(torch.tensor([3.0, 4.0, 0.3, 0.4]), 1.0)
    tensor([2.4000, 3.2000, 0.0000, 0.0000])
    """

    penalty: Penalty
    size: int

    def __post_init__(self) -> None:
        if not isinstance(self.penalty, Penalty):
            raise TypeError(f"penalty must be a Penalty such as GroupL2(), got {self.penalty!r}")
        checks.count(self.size, "size")
        object.__setattr__(self, "_shortest", self.size)
        for flag in ("convex", "has_metric", "indicator"):  # not separable: a block is not to be cut
            object.__setattr__(self, flag, getattr(self.penalty, flag))

    def _blocks(self, v: Tensor) -> Tensor:
        if v.shape[-1] % self.size:
            raise ValueError(
                f"size {self.size} does not divide the last axis of shape {tuple(v.shape)}; use a divisor of {v.shape[-1]}"
            )
        return v.unflatten(-1, (v.shape[-1] // self.size, self.size))

    def value(self, v: Tensor) -> Tensor:
        return self.penalty.value(self._blocks(v)).sum(-1)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        if isinstance(t, Tensor) and t.ndim:
            t = t.unsqueeze(-1)
        within = None if metric is None else self._blocks(metric)
        return self.penalty._prox(self._blocks(v), t, within).reshape(v.shape)

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        if isinstance(step, Tensor) and step.ndim:
            step = step.unsqueeze(-1)
        return self.penalty._lam_max(self._blocks(c), step).amax(-1)
