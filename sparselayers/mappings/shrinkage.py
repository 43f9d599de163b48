"""Shrinkage functions as modules: SoftThreshold and SigShrink. Either serves a coding layer as its `shrink`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .. import positive
from ..ops import checks
from ..ops.shrink import sigshrink, soft_threshold


class SoftThreshold(nn.Module):
    r"""`soft_threshold` as a module: sign(v) (abs(v) - lam)_+, the prox of lam ‖.‖_1.

    Args:
        lam: threshold >= 0: a number or a tensor that broadcasts to v.

        learn: learn lam; it is kept as its logarithm and stays positive.

    Shape: v any shape -> the same. `forward(v, t)` uses t in the place of lam, as a coding layer's `shrink` is called.

    Raises: ValueError for a negative number.

    Source: Donoho, IEEE Trans. Inf. Theory 1995.

    When not to use: where torch's own `nn.Softshrink` is enough (a fixed number lam without gradient).

    >>> import torch, sparselayers as sl
    >>> sl.SoftThreshold(1.0)(torch.tensor([-2.0, 0.5, 3.0]))
    tensor([-1.,  0.,  2.])
    """

    def __init__(self, lam: float | Tensor, learn: bool = False) -> None:
        super().__init__()
        checks.number(lam, "lam", low=0.0)
        positive.hold(self, "lam", lam, learn)

    @property
    def lam(self) -> float | Tensor:
        """The threshold."""
        return positive.held(self, "lam")

    def forward(self, v: Tensor, t: float | Tensor | None = None) -> Tensor:
        return soft_threshold(v, self.lam if t is None else t)

    def extra_repr(self) -> str:
        return f"lam={positive.brief(self, 'lam')}"


class SigShrink(nn.Module):
    r"""`sigshrink` as a module: v sigmoid(tau (abs(v) - lam)).

    Args:
        lam: threshold >= 0: a number or a tensor that broadcasts to v.
        tau: steepness > 0, likewise.
        learn: names of those to learn, out of ("lam", "tau"); they are kept as logarithms and stay positive.

    Shape: v any shape -> the same. `forward(v, t)` uses t in the place of lam, as a coding layer's `shrink` is called.

    Raises: ValueError for a negative number lam or a tau that is not positive.

    Source: Atto, Pastor and Mercier, EURASIP J. Image Video Process. 2009.

    When not to use: where exact zeros are wanted; or as a `shrink` of FISTA with tau lam > 2.

    >>> import torch, sparselayers as sl
    >>> sl.SigShrink(1.0, 10.0)(torch.tensor([-2.0, 0.5, 3.0]))
    tensor([-1.9999,  0.0033,  3.0000])
    """

    def __init__(self, lam: float | Tensor, tau: float | Tensor, learn: Sequence[str] = ()) -> None:
        super().__init__()
        checks.number(lam, "lam", low=0.0)
        checks.number(tau, "tau", low=0.0, open_low=True)
        if isinstance(learn, str) or not set(learn) <= {"lam", "tau"}:
            raise ValueError(f"learn must be a sequence of names out of ('lam', 'tau'), got {learn!r}")
        positive.hold(self, "lam", lam, "lam" in learn)
        positive.hold(self, "tau", tau, "tau" in learn)

    @property
    def lam(self) -> float | Tensor:
        """The threshold."""
        return positive.held(self, "lam")

    @property
    def tau(self) -> float | Tensor:
        """The steepness."""
        return positive.held(self, "tau")

    def forward(self, v: Tensor, t: float | Tensor | None = None) -> Tensor:
        return sigshrink(v, self.lam if t is None else t, self.tau)

    def extra_repr(self) -> str:
        return f"lam={positive.brief(self, 'lam')}, tau={positive.brief(self, 'tau')}"
