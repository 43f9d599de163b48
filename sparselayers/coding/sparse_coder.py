"""The converged code as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor, nn

from .. import positive
from ..ops import checks
from ..prox import L1, Penalty
from . import dictionary as atoms
from .ista import check_strength
from .lasso import Backward, LassoResult, check_options, lasso
from .target import TargetResult, check_target, lasso_target_k

LEARNABLE = ("dictionary", "lam")


class SparseCoder(nn.Module):
    r"""Sparse coding to the optimum, sample by sample, with a dictionary that can be learned end to end.

    argmin_z  1/2 ‖x - D z‖² + lam R(z)

    Args:
        n_features, n_atoms: the shape of the dictionary D, attribute `dictionary`.
        lam: strength: a number, or a tensor (), (n_atoms,) one an atom, or (..., 1) one a sample.
        tol: a sample stops once its certificate is at most this.
        backward: "implicit", "unroll", "truncated" or "danskin", as for `F.lasso`.
        target_k: active atoms: lam is then found for each sample, as by `F.lasso_target_k`, and `lam` and `tol` have no say.
        penalty: R, convex.
        max_iter: passes of the solver at most.
        backward_steps: steps that "truncated" keeps.
        dictionary: the initial D, copied; Gaussian unit atoms if None. Atoms keep unit norm only by a parametrization.
        learn: which of "dictionary", "lam" are parameters; lam is learned as its logarithm.
        device, dtype: of the dictionary.

    Shape: x (..., n_features) -> z (..., n_atoms).

    Raises: TypeError and ValueError at construction, with the remedy.

    Source: Tibshirani 1996; Mairal, Bach and Ponce 2012 (dictionaries learned through the implicit derivative).

    When not to use: as one of many layers that must be fast rather than exact: `FISTA` at a small depth.

    >>> import torch, sparselayers as sl
    >>> coder = sl.SparseCoder(2, 2, lam=0.5, dictionary=torch.eye(2), learn=())
    >>> coder(torch.tensor([1.0, -0.2]))
    tensor([0.5000, 0.0000])
    """

    dictionary: Tensor

    def __init__(
        self,
        n_features: int,
        n_atoms: int,
        lam: float | Tensor = 0.1,
        tol: float = 1e-6,
        backward: Backward = "implicit",
        *,
        target_k: int | None = None,
        penalty: Penalty = L1(),  # noqa: B008 - a frozen dataclass
        max_iter: int = 1000,
        backward_steps: int = 50,
        dictionary: Tensor | None = None,
        learn: Sequence[str] = ("dictionary",),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.count(n_features, "n_features")
        checks.count(n_atoms, "n_atoms")
        checks.number(lam, "lam", low=0.0)
        check_options(penalty, tol, max_iter, backward, backward_steps)
        check_strength(lam, n_atoms, penalty)
        if target_k is not None:
            check_target(target_k, n_atoms, penalty, backward)
            if "lam" in learn:
                raise ValueError('"lam" cannot be learned with a target_k, which finds it; take it out of learn')
        atoms.check_learn(learn, LEARNABLE)
        self.n_features, self.n_atoms, self.tol, self.max_iter = n_features, n_atoms, tol, max_iter
        self.backward, self.backward_steps = backward, backward_steps
        self.target_k, self.penalty, self.learn = target_k, penalty, tuple(learn)
        D = atoms.hold(self, n_features, n_atoms, dictionary, "dictionary" in learn, device, dtype)
        positive.hold(self, "lam", lam, "lam" in learn, D)

    @property
    def lam(self) -> float | Tensor:
        """The strength, positive also where it is learned."""
        return positive.held(self, "lam")

    def reset_parameters(self) -> None:
        """Draw new Gaussian unit atoms."""
        atoms.redraw(self)

    @overload
    def forward(self, x: Tensor, certificate: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, certificate: Literal[True]) -> LassoResult | TargetResult: ...
    def forward(self, x: Tensor, certificate: bool = False) -> Tensor | LassoResult | TargetResult:
        """x (..., n_features) -> z (..., n_atoms); with `certificate` all of LassoResult(code, gap, iterations).

        With a target_k that is a TargetResult, which holds lam as well.
        """
        found = self._lasso(x) if self.target_k is None else self._target(x, self.target_k)
        return found if certificate else found.code

    def _lasso(self, x: Tensor) -> LassoResult:
        return lasso(
            x,
            self.dictionary,
            self.lam,
            penalty=self.penalty,
            tol=self.tol,
            max_iter=self.max_iter,
            backward=self.backward,
            backward_steps=self.backward_steps,
        )

    def _target(self, x: Tensor, k: int) -> TargetResult:
        return lasso_target_k(
            x,
            self.dictionary,
            k,
            penalty=self.penalty,
            max_iter=self.max_iter,
            backward=self.backward,
            backward_steps=self.backward_steps,
        )

    def decode(self, z: Tensor) -> Tensor:
        """The signal of a code: z (..., n_atoms) -> D z (..., n_features)."""
        return atoms.decode(z, self.dictionary)

    def extra_repr(self) -> str:
        wanted = f"lam={positive.brief(self, 'lam')}, tol={self.tol}"
        if self.target_k is not None:
            wanted = f"target_k={self.target_k}"
        shown = f"{self.n_features}, {self.n_atoms}, {wanted}"
        shown += f", backward={self.backward!r}, penalty={self.penalty!r}, max_iter={self.max_iter}"
        return f"{shown}, learn={self.learn!r}"
