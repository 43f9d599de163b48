"""Sparse codes by a fixed number of proximal gradient steps: `ista`, `fista`, and the strengths they run through."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor

from ..ops import checks
from ..ops.norm import strength
from ..prox import L1, Penalty
from ..proxgrad import Iterates, Restart, proximal_gradient
from ..schedules import Constant, Schedule
from .dictionaries import Dense, Dictionary

Shrink = Callable[[Tensor, float | Tensor], Tensor]


def ista(
    x: Tensor,
    D: Tensor,
    lam: float | Tensor,
    *,
    depth: int,
    penalty: Penalty | Shrink = L1(),  # noqa: B008 - a frozen dataclass
    schedule: Schedule = Constant(),  # noqa: B008
    step: float | Tensor | None = None,
) -> Tensor:
    r"""Code x in the dictionary D by `depth` steps of ISTA from zero.

    argmin_z  1/2 ‖x - D z‖² + lam R(z),  by  z_k = prox_{step lam_k R}(z_{k-1} + step D^T (x - D z_{k-1})),  z_0 = 0.

    Args:
        x: (..., n_features).
        D: (n_features, n_atoms).
        lam: strength >= 0: a number, or a tensor () or (..., 1) one a sample, or (n_atoms,) one an atom (separable
            penalties). May need grad.
        depth: number of steps, at least 1.
        penalty: R, or any callable (v, t) -> v in the place of its prox, such as `SigShrink(lam, tau)`.
        schedule: `Constant()`, or `Homotopy()` with lam_max per sample.
        step: step size; None is 1 / ‖D‖², always safe, and the gradient flows through it.

    Returns: the code z (..., n_atoms). lam >= max abs(D^T x) gives exactly zero under L1; a zero sample a zero code.

    Raises: TypeError for dtypes, ValueError for shapes and hyperparameters, with the remedy.

    Source: Daubechies, Defrise and De Mol 2004; Beck and Teboulle 2009, eq. 2.3.

    When not to use: for the converged Lasso code: `fista` needs a fraction of the steps.

    >>> import torch, sparselayers.functional as F
    >>> F.ista(torch.tensor([1.0, 0.2]), torch.eye(2), 0.5, depth=1)
    tensor([0.5000, 0.0000])
    """
    return unrolled(x, D, lam, depth=depth, penalty=penalty, schedule=schedule, step=step).z


def fista(
    x: Tensor,
    D: Tensor,
    lam: float | Tensor,
    *,
    depth: int,
    penalty: Penalty | Shrink = L1(),  # noqa: B008
    schedule: Schedule = Constant(),  # noqa: B008
    step: float | Tensor | None = None,
    restart: Restart = "sample",
) -> Tensor:
    r"""Code x in the dictionary D by `depth` steps of FISTA from zero: ISTA with Nesterov's momentum.

    argmin_z  1/2 ‖x - D z‖² + lam R(z).

    Args: as for `ista`, and
        restart: "sample" drops a sample's momentum when it points uphill (about three times fewer steps to a small
            duality gap); None is the plain FISTA.

    Returns: the code z (..., n_atoms).

    Raises: as `ista`; ValueError for another `restart`.

    Source: Beck and Teboulle 2009, section 4; O'Donoghue and Candes 2015 (gradient restart), here per sample.

    When not to use: with a shrinkage that expands (SigShrink with tau lam > 2): momentum amplifies it.

    >>> import torch, sparselayers.functional as F
    >>> F.fista(torch.tensor([1.0, 0.2]), torch.eye(2), 0.5, depth=3)
    tensor([0.5000, 0.0000])
    """
    return unrolled(
        x, D, lam, depth=depth, penalty=penalty, schedule=schedule, step=step, momentum=True, restart=restart
    ).z


def unrolled(
    x: Tensor,
    D: Tensor | Dictionary,
    lam: float | Tensor,
    *,
    depth: int,
    penalty: Penalty | Shrink,
    schedule: Schedule,
    step: float | Tensor | None,
    lam_max: Penalty | None = None,
    momentum: bool = False,
    restart: Restart = None,
    trace: bool = False,
) -> Iterates:
    """Both algorithms and all the checks; `lam_max` is the penalty that the homotopy starts from, `penalty` if None."""
    atoms = Dense(D) if isinstance(D, Tensor) else D
    atoms.check(x)
    start_from = lam_max or (penalty if isinstance(penalty, Penalty) else L1())
    check_hyperparameters(lam, depth, penalty, schedule, step, restart, start_from, atoms.n_atoms)
    check_strength(lam, atoms.n_atoms, start_from)
    shrink = penalty.prox if isinstance(penalty, Penalty) else penalty
    lam = atoms.per_code(lam, x, "lam")
    step = atoms.safe_step() if step is None else atoms.per_code(step, x, "step")
    excess: float | Tensor = 1.0
    if schedule.from_lam_max:
        excess = ratio_to_lam_max(atoms.correlation(x), lam, start_from, step)
        if atoms.positions:
            excess = excess.amax(tuple(range(-1 - atoms.positions, -1)), keepdim=True)
    return proximal_gradient(
        atoms.zeros(x),
        grad=atoms.gradient(x),
        prox=lambda v, k: shrink(v, step * schedule.strength(lam, excess, k, depth)),
        step=step,
        depth=depth,
        momentum=momentum,
        restart=restart,
        axes=1 + atoms.positions,
        trace=trace,
    )


def ratio_to_lam_max(c: Tensor, lam: float | Tensor, penalty: Penalty, step: float | Tensor) -> Tensor:
    """lam_max / lam per sample, at least 1, (..., 1); with one lam an atom, the largest of the atoms' ratios.

    Where a tensor lam holds 0 there is nothing to run down to: that atom or sample has no say, and keeps 0.
    """
    each = per_atom(lam)
    largest = penalty.lam_max(c.unsqueeze(-1), step) if each else penalty.lam_max(c, step).unsqueeze(-1)
    lam = strength(lam, largest)
    ratio = torch.where(lam > 0, largest / torch.where(lam > 0, lam, 1), 1)
    return (ratio.amax(-1, keepdim=True) if each else ratio).clamp_min(1)


def per_atom(lam: float | Tensor) -> TypeGuard[Tensor]:
    return isinstance(lam, Tensor) and lam.ndim > 0 and lam.shape[-1] != 1


def check_strength(lam: float | Tensor, n_atoms: int, penalty: Penalty) -> None:
    """ValueError for a lam whose shape fits neither samples nor atoms, or is one an atom of a non-separable penalty."""
    if not per_atom(lam):
        return
    if lam.shape[-1] != n_atoms:
        raise ValueError(
            f"lam must be a number, (), (..., 1) one a sample or ({n_atoms},) one an atom, got shape {tuple(lam.shape)}"
            + ("; use lam.unsqueeze(-1) for one a sample" if lam.ndim == 1 else "")
        )
    if not penalty.separable:
        raise ValueError(f"one lam an atom needs a separable penalty, got {penalty!r}; use lam of shape () or (..., 1)")


def check_hyperparameters(
    lam: float | Tensor,
    depth: int,
    penalty: Penalty | Shrink,
    schedule: Schedule,
    step: float | Tensor | None,
    restart: Restart,
    start_from: Penalty,
    n_atoms: int,
) -> None:
    """What can be known before any data: types, ranges, and that a homotopy has somewhere to start."""
    checks.count(depth, "depth")
    checks.number(lam, "lam", low=0.0)
    if step is not None:
        checks.number(step, "step", low=0.0, open_low=True)
    if not callable(penalty) and not isinstance(penalty, Penalty):
        raise TypeError(f"penalty must be a Penalty such as L1() or a callable (v, t) -> v, got {penalty!r}")
    if isinstance(schedule, type) or not hasattr(schedule, "strength"):
        raise TypeError(f"schedule must be an object such as Constant() or Homotopy(), got {schedule!r}")
    if restart not in ("sample", None):
        raise ValueError(f'restart must be "sample" or None, got {restart!r}')
    if schedule.from_lam_max:
        if not isinstance(lam, Tensor) and lam == 0:
            raise ValueError("Homotopy() runs down to lam and needs lam > 0, got 0; use schedule=Constant()")
        start_from.lam_max(torch.ones(n_atoms))
