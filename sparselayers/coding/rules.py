"""How a LISTA step shrinks: how much, what it trusts, and with which momentum. By a schedule, or by three constants.

`at(c, D, lam, step)` gives the function (z, g, k, step) -> Plan for samples with the correlation c = -g_1(0).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from .. import positive
from ..ops.spectral import leverage
from ..prox import Penalty
from ..schedules import Schedule
from .ista import per_atom, ratio_to_lam_max
from .support_selection import SupportSelection


class Plan(NamedTuple):
    """What one step does: the t of its prox, how many entries it trusts, and the factor of its momentum."""

    t: float | Tensor
    kept: int | Tensor
    momentum: Tensor | None


Planner = Callable[[Tensor, Tensor, int, float | Tensor], Plan]


class Scheduled(nn.Module):
    """t_k = step_k gain_k lam_k with the lam_k of a schedule; the gains, 1 at the start, can be learned.

    One gain a step, (depth, 1); where lam is one an atom, one gain a step and an atom, (depth, n_atoms).
    """

    def __init__(
        self,
        lam: float | Tensor,
        penalty: Penalty,
        schedule: Schedule,
        support: SupportSelection | None,
        depth: int,
        learn: bool,
        like: Tensor,
    ) -> None:
        super().__init__()
        self.penalty, self.schedule, self.support, self.depth = penalty, schedule, support, depth
        gain = torch.ones(depth, lam.shape[-1] if per_atom(lam) else 1) if learn else 1.0
        positive.hold(self, "gain", gain, learn, like)

    def at(self, c: Tensor, D: Tensor, lam: float | Tensor, step: float | Tensor) -> Planner:
        gain = positive.held(self, "gain")
        excess = ratio_to_lam_max(c, lam, self.penalty, step) if self.schedule.from_lam_max else 1.0

        def plan(z: Tensor, g: Tensor, k: int, step: float | Tensor) -> Plan:
            t = step * self.schedule.strength(lam, excess, k, self.depth)
            t = t * gain[k - 1] if isinstance(gain, Tensor) else t
            return Plan(t, 0 if self.support is None else self.support.count(k, c.shape[-1]), None)

        return plan


class Hyper(nn.Module):
    r"""All from the residual and three constants. With e = ‖D^+ (D z - x)‖_1 and e_0 = ‖D^+ x‖_1, per sample:

    t = step c1 min(e, fall^(k-1) e_0),  momentum = c2 ‖z‖_0,  trusted share of the atoms = c3 log(e_0 / e) in [0, 1].

    With e alone a sample can stall: a threshold that lets nothing new pass leaves the residual, and so itself, as it is.
    The second term takes it down all the same.
    """

    leverage: Tensor | None

    def __init__(
        self, constants: tuple[float, float, float], fall: float, learn: bool, D: Tensor, follow: bool
    ) -> None:
        super().__init__()
        self.fall = fall
        positive.hold(self, "constants", torch.tensor(constants, dtype=torch.float64), learn, D)
        self.register_buffer("leverage", None if follow else leverage(D))

    def at(self, c: Tensor, D: Tensor, lam: float | Tensor, step: float | Tensor) -> Planner:
        c1, c2, c3 = self.constants.unbind()
        lever = leverage(D) if self.leverage is None else self.leverage
        first = (lever * c).abs().sum(-1, keepdim=True)

        def plan(z: Tensor, g: Tensor, k: int, step: float | Tensor) -> Plan:
            if k == 1:
                return Plan(step * c1 * first, 0, None)
            now = (lever * g).abs().sum(-1, keepdim=True)
            share = (c3 * (first / now).log()).detach().nan_to_num(0.0, 1.0, 0.0).clamp(0, 1)
            kept = (share * z.shape[-1]).round().long()
            level = now if self.fall == 1 else torch.minimum(now, self.fall ** (k - 1) * first)
            return Plan(step * c1 * level, kept, c2 * (z != 0).sum(-1, keepdim=True).to(z.dtype))

        return plan

    @property
    def constants(self) -> Tensor:
        """(c1, c2, c3), positive also where they are learned."""
        return cast(Tensor, positive.held(self, "constants"))

    def set(self, constants: Tensor) -> None:
        """Put other constants in the place of the present ones."""
        with torch.no_grad():
            if "log_constants" in self._parameters:
                cast(Tensor, self.log_constants).copy_(constants.log())
            else:
                cast(Tensor, self.fixed_constants).copy_(constants)
