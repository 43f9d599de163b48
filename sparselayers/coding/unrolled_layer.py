"""What all unrolled layers share, whatever their dictionary: hyperparameters checked and held, lam and step learnable."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .. import positive
from ..prox import Penalty
from ..proxgrad import Iterates, Restart
from ..schedules import Schedule
from . import dictionary as atoms
from .dictionaries import Dictionary
from .ista import Shrink, check_hyperparameters, check_strength, unrolled

LEARNABLE = ("dictionary", "lam", "step")


class Unrolled(nn.Module):
    """Abstract: a subclass holds the `dictionary`, then calls `_hold_strengths`; it defines `forward` and `decode`."""

    dictionary: Tensor

    def __init__(
        self,
        n_atoms: int,
        *,
        depth: int,
        lam: float | Tensor,
        penalty: Penalty,
        shrink: Shrink | None,
        schedule: Schedule,
        step: float | Tensor | None,
        learn: Sequence[str],
        momentum: bool,
        restart: Restart,
    ) -> None:
        super().__init__()
        if not isinstance(penalty, Penalty):
            raise TypeError(f"penalty must be a Penalty such as L1(), got {penalty!r}; pass a callable as shrink=")
        if shrink is not None and not callable(shrink):
            raise TypeError(f"shrink must be a callable (v, t) -> v such as SigShrink(lam, tau), got {shrink!r}")
        atoms.check_learn(learn, LEARNABLE)
        check_hyperparameters(lam, depth, shrink or penalty, schedule, step, restart, penalty, n_atoms)
        check_strength(lam, n_atoms, penalty)
        self.n_atoms, self.depth = n_atoms, depth
        self.penalty, self.shrink, self.schedule = penalty, shrink, schedule
        self.momentum, self.restart, self.learn = momentum, restart, tuple(learn)

    def _hold_strengths(
        self, lam: float | Tensor, step: float | Tensor | None, D: Tensor, safe_step: Callable[[Tensor], Tensor]
    ) -> None:
        """Hold lam and step beside the dictionary D; a step that is learned and not given starts as the safe one of D."""
        positive.hold(self, "lam", lam, "lam" in self.learn, D)
        if step is None and "step" in self.learn:
            step = safe_step(D)
        positive.hold(self, "step", step, "step" in self.learn, D)

    @property
    def lam(self) -> float | Tensor:
        """The strength, positive also where it is learned."""
        return positive.held(self, "lam")

    @property
    def step(self) -> float | Tensor | None:
        """The step size; None is 1 / ‖D‖²."""
        return positive.held(self, "step")

    def reset_parameters(self) -> None:
        """Draw new Gaussian unit atoms."""
        atoms.redraw(self)

    def _unrolled(self, x: Tensor, D: Tensor | Dictionary, trace: bool) -> Iterates:
        return unrolled(
            x,
            D,
            self.lam,
            depth=self.depth,
            penalty=self.penalty if self.shrink is None else self.shrink,
            schedule=self.schedule,
            step=self.step,
            lam_max=self.penalty,
            momentum=self.momentum,
            restart=self.restart,
            trace=trace,
        )

    def extra_repr(self) -> str:
        lam, step = positive.brief(self, "lam"), positive.brief(self, "step")
        shown = f"depth={self.depth}, lam={lam}, penalty={self.penalty!r}"
        shown += f", schedule={self.schedule!r}, step={step}, learn={self.learn!r}"
        return shown + (f", restart={self.restart!r}" if self.momentum else "")
