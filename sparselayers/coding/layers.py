"""Sparse coding as layers: thin modules round `unrolled`, with the dictionary, lam and step learnable or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor, nn

from .. import positive
from ..ops import checks
from ..prox import L1, Penalty
from ..proxgrad import Restart
from ..schedules import Homotopy, Schedule
from . import dictionary as atoms
from .ista import Shrink, check_hyperparameters, check_strength, unrolled
from .objective import objective

LEARNABLE = ("dictionary", "lam", "step")


class _Unrolled(nn.Module):
    """What ISTA and FISTA share: everything but the momentum."""

    dictionary: Tensor

    def __init__(
        self,
        n_features: int,
        n_atoms: int,
        *,
        depth: int,
        lam: float | Tensor,
        penalty: Penalty,
        shrink: Shrink | None,
        schedule: Schedule,
        step: float | Tensor | None,
        dictionary: Tensor | None,
        learn: Sequence[str],
        momentum: bool,
        restart: Restart,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        checks.count(n_features, "n_features")
        checks.count(n_atoms, "n_atoms")
        if not isinstance(penalty, Penalty):
            raise TypeError(f"penalty must be a Penalty such as L1(), got {penalty!r}; pass a callable as shrink=")
        if shrink is not None and not callable(shrink):
            raise TypeError(f"shrink must be a callable (v, t) -> v such as SigShrink(lam, tau), got {shrink!r}")
        atoms.check_learn(learn, LEARNABLE)
        check_hyperparameters(lam, depth, shrink or penalty, schedule, step, restart, penalty, n_atoms)
        check_strength(lam, n_atoms, penalty)
        self.n_features, self.n_atoms, self.depth = n_features, n_atoms, depth
        self.penalty, self.shrink, self.schedule = penalty, shrink, schedule
        self.momentum, self.restart, self.learn = momentum, restart, tuple(learn)
        D = atoms.hold(self, n_features, n_atoms, dictionary, "dictionary" in learn, device, dtype)
        positive.hold(self, "lam", lam, "lam" in learn, D)
        if step is None and "step" in learn:
            step = atoms.safe_step(D)
        positive.hold(self, "step", step, "step" in learn, D)

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
        atoms.redraw(self.dictionary)

    @overload
    def forward(self, x: Tensor, trace: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, trace: Literal[True]) -> tuple[Tensor, list[Tensor]]: ...
    def forward(self, x: Tensor, trace: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """x (..., n_features) -> z (..., n_atoms); with `trace` also the list of z_1 .. z_depth."""
        found = unrolled(
            x,
            self.dictionary,
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
        return (found.z, found.trace) if trace else found.z

    def decode(self, z: Tensor) -> Tensor:
        """The signal of a code: z (..., n_atoms) -> D z (..., n_features)."""
        return atoms.decode(z, self.dictionary)

    def objective(self, x: Tensor) -> Tensor:
        """1/2 ‖x - D z_k‖² + lam R(z_k) after each step, per sample: x (..., n_features) -> (depth, ...)."""
        return objective(x, self.dictionary, torch.stack(self(x, trace=True)[1]), self.lam, self.penalty)

    def extra_repr(self) -> str:
        lam, step = positive.brief(self, "lam"), positive.brief(self, "step")
        shown = f"{self.n_features}, {self.n_atoms}, depth={self.depth}, lam={lam}, penalty={self.penalty!r}"
        shown += f", schedule={self.schedule!r}, step={step}, learn={self.learn!r}"
        return shown + (f", restart={self.restart!r}" if self.momentum else "")


class ISTA(_Unrolled):
    r"""Sparse coding by `depth` steps of ISTA, with a dictionary that can be learned end to end.

    argmin_z  1/2 ‖x - D z‖² + lam R(z),  by  z_k = prox_{step lam_k R}(z_{k-1} + step D^T (x - D z_{k-1})),  z_0 = 0.

    Args:
        n_features, n_atoms: the shape of the dictionary D, attribute `dictionary`.
        depth: number of steps.
        lam: strength: a number, or a tensor (), (n_atoms,) one an atom, or (..., 1) one a sample.
        penalty: R. Any penalty of the library.
        shrink: a callable (v, t) -> v in the place of the prox of R; a module's own parameters are learned with the rest.
        schedule: `Homotopy()` (lam_max per sample, from the penalty) or `Constant()`.
        step: step size; None is 1 / ‖D‖², always safe. 1.0 is for incoherent dictionaries and may diverge otherwise.
        dictionary: the initial D, copied; Gaussian unit atoms if None. Atoms keep unit norm only by a parametrization.
        learn: which of "dictionary", "lam", "step" are parameters; lam and step are learned as logarithms.
        device, dtype: of the dictionary.

    Shape: x (..., n_features) -> z (..., n_atoms).

    Raises: TypeError and ValueError at construction, with the remedy.

    Source: Zarka, Thiry, Angles and Mallat, ICLR 2020 (homotopy layers); Daubechies, Defrise and De Mol 2004.

    When not to use: for converged codes with a certificate; an unrolled layer stops at `depth`.

    >>> import torch, sparselayers as sl
    >>> layer = sl.ISTA(2, 2, depth=4, lam=0.5, dictionary=torch.eye(2), learn=())
    >>> layer(torch.tensor([1.0, -0.2]))
    tensor([0.5000, 0.0000])
    """

    def __init__(
        self,
        n_features: int,
        n_atoms: int,
        *,
        depth: int,
        lam: float | Tensor = 0.1,
        penalty: Penalty = L1(),  # noqa: B008 - a frozen dataclass
        shrink: Shrink | None = None,
        schedule: Schedule = Homotopy(),  # noqa: B008
        step: float | Tensor | None = None,
        dictionary: Tensor | None = None,
        learn: Sequence[str] = ("dictionary",),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            n_features,
            n_atoms,
            depth=depth,
            lam=lam,
            penalty=penalty,
            shrink=shrink,
            schedule=schedule,
            step=step,
            dictionary=dictionary,
            learn=learn,
            momentum=False,
            restart=None,
            device=device,
            dtype=dtype,
        )


class FISTA(_Unrolled):
    r"""Sparse coding by `depth` steps of FISTA: `ISTA` with momentum, restarted sample by sample.

    argmin_z  1/2 ‖x - D z‖² + lam R(z).

    Args: as for `ISTA`, and
        restart: "sample" drops a sample's momentum when it points uphill; None is the plain FISTA.

    Shape: x (..., n_features) -> z (..., n_atoms).

    Raises: TypeError and ValueError at construction, with the remedy.

    Source: Beck and Teboulle 2009, section 4; O'Donoghue and Candes 2015 (gradient restart), here per sample.

    When not to use: with a shrinkage that expands (SigShrink with tau lam > 2).

    >>> import torch, sparselayers as sl
    >>> layer = sl.FISTA(2, 2, depth=4, lam=0.5, dictionary=torch.eye(2), learn=())
    >>> layer(torch.tensor([1.0, -0.2]))
    tensor([0.5000, 0.0000])
    """

    def __init__(
        self,
        n_features: int,
        n_atoms: int,
        *,
        depth: int,
        lam: float | Tensor = 0.1,
        penalty: Penalty = L1(),  # noqa: B008 - a frozen dataclass
        shrink: Shrink | None = None,
        schedule: Schedule = Homotopy(),  # noqa: B008
        step: float | Tensor | None = None,
        dictionary: Tensor | None = None,
        learn: Sequence[str] = ("dictionary",),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        restart: Restart = "sample",
    ) -> None:
        super().__init__(
            n_features,
            n_atoms,
            depth=depth,
            lam=lam,
            penalty=penalty,
            shrink=shrink,
            schedule=schedule,
            step=step,
            dictionary=dictionary,
            learn=learn,
            momentum=True,
            restart=restart,
            device=device,
            dtype=dtype,
        )
