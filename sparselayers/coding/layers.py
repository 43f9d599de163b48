"""Sparse coding as layers: thin modules round `unrolled`, with the dictionary, lam and step learnable or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from ..ops import checks
from ..prox import L1, Penalty
from ..proxgrad import Restart
from ..schedules import Homotopy, Schedule
from . import dictionary as atoms
from .ista import Shrink
from .objective import objective
from .unrolled_layer import Unrolled


class _Unrolled(Unrolled):
    """What ISTA and FISTA share: everything but the momentum."""

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
        checks.count(n_features, "n_features")
        checks.count(n_atoms, "n_atoms")
        super().__init__(
            n_atoms,
            depth=depth,
            lam=lam,
            penalty=penalty,
            shrink=shrink,
            schedule=schedule,
            step=step,
            learn=learn,
            momentum=momentum,
            restart=restart,
        )
        self.n_features = n_features
        D = atoms.hold(self, n_features, n_atoms, dictionary, "dictionary" in learn, device, dtype)
        self._hold_strengths(lam, step, D, atoms.safe_step)

    @overload
    def forward(self, x: Tensor, trace: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, trace: Literal[True]) -> tuple[Tensor, list[Tensor]]: ...
    def forward(self, x: Tensor, trace: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """x (..., n_features) -> z (..., n_atoms); with `trace` also the list of z_1 .. z_depth."""
        found = self._unrolled(x, self.dictionary, trace)
        return (found.z, found.trace) if trace else found.z

    def decode(self, z: Tensor) -> Tensor:
        """The signal of a code: z (..., n_atoms) -> D z (..., n_features)."""
        return atoms.decode(z, self.dictionary)

    def objective(self, x: Tensor) -> Tensor:
        """1/2 ‖x - D z_k‖² + lam R(z_k) after each step, per sample: x (..., n_features) -> (depth, ...)."""
        return objective(x, self.dictionary, torch.stack(self(x, trace=True)[1]), self.lam, self.penalty)

    def extra_repr(self) -> str:
        return f"{self.n_features}, {self.n_atoms}, {super().extra_repr()}"


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
        dictionary: the initial D, copied; Gaussian unit atoms if None. Atoms keep unit norm only by `unit_norm`.
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
