"""Operators of the waterline family: projections on the simplex and the l1 ball, the exclusive threshold, l-infinity."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from . import checks
from .kernels.rows import project_rows
from .norm import strength, upcast
from .rows import Thresholded, entry_parameter, leader, masked_rows, restored, thresholded
from .shrink import rows_and_strength
from .waterline import waterline


@overload
def project_simplex(
    v: Tensor,
    radius: float | Tensor = 1.0,
    dim: int = -1,
    mask: Tensor | None = None,
    weight: float | Tensor | None = None,
    *,
    return_threshold: Literal[False] = False,
) -> Tensor: ...
@overload
def project_simplex(
    v: Tensor,
    radius: float | Tensor = 1.0,
    dim: int = -1,
    mask: Tensor | None = None,
    weight: float | Tensor | None = None,
    *,
    return_threshold: Literal[True],
) -> Thresholded: ...
def project_simplex(
    v: Tensor,
    radius: float | Tensor = 1.0,
    dim: int = -1,
    mask: Tensor | None = None,
    weight: float | Tensor | None = None,
    *,
    return_threshold: bool = False,
) -> Tensor | Thresholded:
    r"""Project each row on the simplex {x >= 0, sum x = radius}; the result has exact zeros.

    argmin_x 1/2 ‖x - v‖²  over the simplex  =  (v - tau)_+,  tau such that the row sums to `radius`.
    Jacobian: diag(s) - s s^T / |S| with s the 0/1 indicator of the support S.
    With a weight w:  over {x >= 0, sum w x = radius}  =  (v - tau w)_+.

    Args:
        v: any shape with at least one axis. -inf entries get 0; NaN or +inf makes its whole row NaN.
        radius: >= 0, a number or a tensor that broadcasts to v with size 1 at `dim`; may need grad.
        dim: the axis that sums to `radius`.
        mask: boolean, broadcasts to v; False takes no part (whatever stands there) and gets 0.
        weight: > 0, a number or a tensor that broadcasts to v; may need grad.
        return_threshold: return `Thresholded(weights, threshold, support_size)`, with the threshold tau of the closed form.

    Returns: the shape and dtype of v. A row with nothing left (all masked or all -inf) is 0, with gradient 0.

    Raises: TypeError for an integer v or a mask that is not boolean; ValueError for a negative number `radius`, a number
        `weight` that is not positive, or shapes that do not fit (for `dim` it is an IndexError too).

    Source: Held, Wolfe and Crowder 1974; Michelot 1986.

    When not to use: for probabilities that must stay positive (a cross-entropy of exact zeros is infinite).

    >>> import torch, sparselayers.functional as F
    >>> F.project_simplex(torch.tensor([0.5, 1.2, 0.1]))
    tensor([0.1500, 0.8500, 0.0000])
    """
    _, radius = rows_and_strength(v, radius, dim, "radius")
    rows = masked_rows(v, dim, mask)
    if weight is not None:
        checks.per_entry(weight, v, "weight")
        checks.number(weight, "weight", low=0.0, open_low=True)
        weight = entry_parameter(weight, v, rows, dim)
    if v.shape[dim] == 0:
        u, above = rows, rows
    elif weight is None:
        u, above = rows, waterline(rows, 1.0, radius).above
    else:
        u = rows / weight
        empty = u.detach().amax(-1, keepdim=True) == -torch.inf
        above = waterline(torch.where(empty, 0, u), weight.square(), strength(radius, rows)).above
        above = torch.where(empty, 0, above)
    x = above if weight is None else weight * above
    if not return_threshold:
        return restored(x, v, dim)
    top, over = leader(u, above)
    return thresholded(x, top - over, top, v, dim)


def project_l1_ball(v: Tensor, radius: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    r"""Project each row on the l1 ball {‖x‖_1 <= radius}: the identity inside, a soft threshold outside.

    argmin_x 1/2 ‖x - v‖²  over the ball  =  sign(v) (abs(v) - tau)_+,  tau >= 0 such that the l1 norm is `radius`.

    Args:
        v: any shape with at least one axis; NaN or inf makes its whole row NaN.
        radius: >= 0, a number or a tensor that broadcasts to v with size 1 at `dim`; may need grad.
        dim: the axis of the rows.

    Returns: the shape and dtype of v.

    Raises: TypeError for an integer v; ValueError for a negative number `radius` or shapes that do not fit.

    Source: Duchi, Shalev-Shwartz, Singer and Chandra, ICML 2008.

    When not to use: with a known threshold, for which `soft_threshold` is cheaper.

    >>> import torch, sparselayers.functional as F
    >>> F.project_l1_ball(torch.tensor([2.0, -1.0, 0.5]), 2.0)
    tensor([ 1.5000, -0.5000,  0.0000])
    """
    rows, radius = rows_and_strength(v, radius, dim, "radius")
    return clip_l1(rows, radius).movedim(-1, dim)


def exclusive_threshold(v: Tensor, t: float | Tensor, dim: int = -1) -> Tensor:
    r"""Make the entries of each row compete: the exact prox of the exclusive (squared l1) penalty.

    argmin_x  1/2 ‖x - v‖² + t 1/2 ‖x‖_1²  =  sign(v) (abs(v) - tau)_+,   tau = t ‖x‖_1 = t sum_S abs(v) / (1 + t |S|)

    Args:
        v: any shape with at least one axis.
        t: >= 0, a number or a tensor that broadcasts to v with size 1 at `dim`; may need grad.
        dim: the axis along which entries compete.

    Returns: the shape and dtype of v. Small entries become exactly zero, a nonzero row never as a whole.

    Raises: TypeError for an integer v; ValueError for a negative number t or shapes that do not fit.

    Source: Zhou, Jin and Hoi, AISTATS 2010; Kowalski 2009. (The step of the CGES paper uses the old norm in place of
        the new one and over-shrinks; this is the exact one.)

    When not to use: to remove whole groups, which the group norms do.

    >>> import torch, sparselayers.functional as F
    >>> F.exclusive_threshold(torch.tensor([1.0, 0.8, -0.3]), 0.3)
    tensor([0.6625, 0.4625, 0.0000])
    """
    rows, t = rows_and_strength(v, t, dim)
    return compete(rows, t).movedim(-1, dim)


def signed(size: Tensor, v: Tensor) -> Tensor:
    """`size` with the signs of v; adding to 0 keeps what vanished from reading -0."""
    return torch.addcmul(size.new_zeros(()), v.detach().sign().to(size.dtype), size)


def compete(v: Tensor, t: float | Tensor, metric: Tensor | None = None) -> Tensor:
    """argmin_x 1/2 sum d (x - v)² + t 1/2 ‖x‖_1² along the last axis, for arguments already checked."""
    if v.shape[-1] == 0:
        return v.clone()
    if not isinstance(t, Tensor) and t == math.inf:
        return torch.where(v.isnan(), v, 0)
    if isinstance(t, Tensor):
        endless = t == math.inf
        return torch.where(endless & ~v.isnan(), 0, _compete(v, torch.where(endless, 0, t), metric))
    return _compete(v, t, metric)


def _compete(v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
    """`compete` for a finite t and rows that are not empty."""
    rows = upcast(v)
    fused = project_rows(rows, t, 0.0, 1.0, signed=True) if metric is None else None
    if fused is not None:
        return fused[0].to(v.dtype)
    t = strength(t, rows)
    size = rows.abs()
    if metric is None:
        above = waterline(size, a=t, c=1.0).above
    else:
        above = waterline(metric * size, a=t / metric, c=1.0).above / metric
    return torch.where(t == 0, v, signed(above, v).to(v.dtype))


def clip_l1(v: Tensor, radius: float | Tensor, weight: Tensor | None = None) -> Tensor:
    """sign(v) (abs(v) - tau)_+ with tau >= 0 the least level at which sum w (abs(v) - tau)_+ <= radius, last axis."""
    if v.shape[-1] == 0:
        return v.clone()
    rows = upcast(v)
    fused = project_rows(rows, 1.0, radius, 0.0, signed=True) if weight is None else None
    if fused is not None:
        return fused[0].to(v.dtype)
    radius = strength(radius, rows)
    size = rows.abs()
    weighted = size.detach() if weight is None else weight.detach() * size.detach()
    inside = weighted.sum(-1, keepdim=True) <= radius.detach()
    above = waterline(size, 1.0 if weight is None else weight, radius).above
    return torch.where(inside, v, signed(above, v).to(v.dtype))
