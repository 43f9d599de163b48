"""Closed-form shrinkage functions: soft, hard, group soft, SigShrink and SSBS.

Two care points run through the file. Comparisons are written so that NaN survives (`~(x <= t)` is True for NaN), and a
strength of exactly 0 is bitwise the identity, with derivative 1 even at 0.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from . import checks, soft
from .norm import norm, strength


def soft_threshold(v: Tensor, t: float | Tensor) -> Tensor:
    r"""Shrink every entry towards zero by `t`: the prox of t ‖.‖_1.

    argmin_x  1/2 ‖x - v‖² + t ‖x‖_1  =  sign(v) (abs(v) - t)_+

    Args:
        v: any shape.
        t: threshold >= 0, a number or a tensor that broadcasts to v; may need grad.

    Returns: the shape and dtype of v.

    Raises: TypeError for an integer v; ValueError for a negative number t or a shape that does not broadcast.

    Source: Donoho, IEEE Trans. Inf. Theory 1995.

    When not to use: large entries are biased by t; `hard_threshold` keeps them whole.

    >>> import torch, sparselayers.functional as F
    >>> F.soft_threshold(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-1.,  0.,  2.])
    """
    checks.floating(v, "v")
    checks.per_entry(t, v, "t")
    if isinstance(t, Tensor):
        if soft.serves(v, t):
            return cast(Tensor, soft.SoftThreshold.apply(v, t))
        below = (v.detach().abs() <= t.detach()) & (t.detach() != 0)
        return torch.where(below, 0, v - t * v.detach().sign()).to(v.dtype)
    if t == 0:
        return v.clone()
    return torch.nn.functional.softshrink(v, min(t, torch.finfo(v.dtype).max))


def hard_threshold(v: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Keep the entries above `threshold` in size, set the others to zero: the prox of t ‖.‖_0 at threshold sqrt(2 t).

    argmin_x  1/2 ‖x - v‖² + t ‖x‖_0  =  v where abs(v) > sqrt(2 t), else 0      (a tie goes to zero)

    Args:
        v: any shape.
        threshold: >= 0, a number or a tensor that broadcasts to v. No gradient flows into it: the derivative is zero
            almost everywhere.

    Returns: the shape and dtype of v.

    Raises: TypeError for an integer v; ValueError for a negative number or a shape that does not broadcast.

    Source: Blumensath and Davies, J. Fourier Anal. Appl. 2008.

    When not to use: to learn the threshold (use `sigshrink`), or where a jump at the threshold hurts.

    >>> import torch, sparselayers.functional as F
    >>> F.hard_threshold(torch.tensor([-2.0, 0.5, 3.0]), 1.0)
    tensor([-2.,  0.,  3.])
    """
    checks.floating(v, "v")
    checks.per_entry(threshold, v, "threshold")
    bound = threshold.detach() if isinstance(threshold, Tensor) else threshold
    kept = ~(v.detach().abs() <= bound) | (bound == 0)
    return torch.where(kept, v, 0)


def group_soft_threshold(v: Tensor, t: float | Tensor, dim: int = -1) -> Tensor:
    r"""Shrink the Euclidean norm of each row by `t`; a row of norm at most t becomes exactly zero.

    argmin_x  1/2 ‖x - v‖² + t ‖x‖_2  =  v (1 - t / ‖v‖_2)_+      along `dim`

    Args:
        v: any shape with at least one axis; the entries along `dim` form one group.
        t: >= 0, a number or a tensor that broadcasts to v with size 1 at `dim`; may need grad.
        dim: the axis of the groups.

    Returns: the shape and dtype of v. A zero row stays zero with finite derivatives; t = 0 is the identity.

    Raises: TypeError for an integer v; ValueError (also an IndexError for `dim`) for shapes that do not fit.

    Source: Yuan and Lin, J. R. Stat. Soc. B 2006.

    When not to use: for sparsity inside a group, which needs `SparseGroup` or `exclusive_threshold`.

    >>> import torch, sparselayers.functional as F
    >>> F.group_soft_threshold(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """
    rows, t = rows_and_strength(v, t, dim)
    return group_scale(rows, t).movedim(-1, dim)


def group_scale(v: Tensor, t: float | Tensor) -> Tensor:
    """v (1 - t / ‖v‖_2)_+ along the last axis, for arguments already checked."""
    length = norm(v)
    if (
        not isinstance(t, Tensor) and torch.finfo(length.dtype).tiny <= t < 1e15
    ):  # the usual case in few operations; a zero row gets 1 - t / t = 0
        # A zero row gets 1 - t / t = 0.
        return (v * torch.relu(1 - t / torch.where(length == 0, t, length))).to(v.dtype)
    t = strength(t, length)
    kept = ~(length <= t) | (t == 0)
    ratio = torch.where(kept, t, 0) / torch.where(length == 0, 1, length)
    return (v * torch.where(kept, 1 - ratio, 0)).to(v.dtype)


def sigshrink(v: Tensor, lam: float | Tensor, tau: float | Tensor) -> Tensor:
    r"""Shrink smoothly by a sigmoid: nothing is exactly zero, and large entries are kept whole.

    sigshrink(v) = v sigmoid(tau (abs(v) - lam)),      derivative  s + tau abs(v) s (1 - s),  s = sigmoid(...)

    As tau grows it tends to HARD thresholding at lam (for the soft one use `ssbs`). It is strictly increasing, and
    expansive near lam once tau lam > 2. It is C1 but not C2 at 0. It is not the prox of t R for a fixed R.

    Args:
        v: any shape.
        lam: threshold, a number or a tensor that broadcasts to v; may need grad.
        tau: steepness, likewise.

    Returns: the shape and dtype of v.

    Raises: TypeError for an integer v.

    Source: Atto, Pastor and Mercier, EURASIP J. Image Video Process. 2009, doi 10.1155/2009/532312.

    When not to use: where exact zeros are wanted, or as a step of ISTA that must converge (tau lam > 2 expands).

    >>> import torch, sparselayers.functional as F
    >>> F.sigshrink(torch.tensor([-2.0, 0.5, 3.0]), 1.0, 10.0)
    tensor([-1.9999,  0.0033,  3.0000])
    """
    checks.floating(v, "v")
    return (v * torch.sigmoid(tau * (v.abs() - lam))).to(v.dtype)


def ssbs(v: Tensor, lam: float | Tensor, tau: float | Tensor, t: float | Tensor) -> Tensor:
    r"""Soft-threshold by `t`, then shrink by a sigmoid: the general form of which t = 0 is SigShrink.

    ssbs(v) = sign(v) (abs(v) - t)_+ sigmoid(tau (abs(v) - lam))

    With t = lam it tends to the SOFT threshold at lam as tau grows, and it has exact zeros for t > 0.

    Args:
        v: any shape.
        lam: centre of the sigmoid, a number or a tensor that broadcasts to v; may need grad.
        tau: steepness, likewise.
        t: threshold >= 0, likewise.

    Returns: the shape and dtype of v.

    Raises: TypeError for an integer v; ValueError for a negative number t or a shape that does not broadcast.

    Source: Atto, Pastor and Mercier, ICASSP 2008 (smooth sigmoid-based shrinkage).

    When not to use: where the plain soft threshold is steep enough; it costs a sigmoid more.

    >>> import torch, sparselayers.functional as F
    >>> F.ssbs(torch.tensor([-2.0, 0.5, 3.0]), 1.0, 10.0, 1.0)
    tensor([-1.0000,  0.0000,  2.0000])
    """
    checks.floating(v, "v")
    return (soft_threshold(v, t) * torch.sigmoid(tau * (v.abs() - lam))).to(v.dtype)


def hard_bound(t: float | Tensor) -> float | Tensor:
    """sqrt(2 t), the hard threshold that goes with strength t, as a constant."""
    return (2 * t.detach()).sqrt() if isinstance(t, Tensor) else math.sqrt(2 * t)


def rows_and_strength(v: Tensor, t: float | Tensor, dim: int, name: str = "t") -> tuple[Tensor, float | Tensor]:
    """`v` and the strength called `name`, with the axis `dim` moved last, checked."""
    checks.floating(v, "v")
    dim = checks.axis(dim, v, "v")
    if isinstance(t, Tensor) and t.ndim == v.ndim:
        t = t.movedim(dim, -1)
    rows = v.movedim(dim, -1)
    checks.per_row(t, rows, name)
    return rows, t
