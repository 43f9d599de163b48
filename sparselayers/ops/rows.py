"""What the operators on rows share: the axis moved last, the mask applied, the threshold handed back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .norm import strength, upcast


class Thresholded(NamedTuple):
    """Weights with the level that cut them.

    Fields:
        weights: what the function returns without `return_threshold`.
        threshold: size 1 at `dim`, at least 32 bits, differentiable; inf for a row with nothing left.
        support_size: how many weights of the row are positive, before any rounding to 16 bits; int64, size 1 at `dim`.
    """

    weights: Tensor
    threshold: Tensor
    support_size: Tensor


def masked_rows(v: Tensor, dim: int, mask: Tensor | None, name: str = "v") -> Tensor:
    """`v`, checked, with the axis `dim` last, -inf where the mask is False, in at least 32 bits."""
    checks.floating(v, name)
    dim = checks.axis(dim, v, name)
    checks.boolean_mask(mask, v, name)
    rows = v.movedim(dim, -1)
    if mask is not None:
        rows = torch.where(mask.expand(v.shape).movedim(dim, -1), rows, -torch.inf)
    return upcast(rows)


def row_parameter(t: Tensor, v: Tensor, dim: int, name: str) -> Tensor:
    """`t`, which broadcasts to `v` with size 1 at `dim`, as it broadcasts to the rows: (..., 1), or 0-d."""
    if t.ndim == 0:
        return t
    fits = t.ndim <= v.ndim and all(m in (1, n) for m, n in zip(reversed(t.shape), reversed(v.shape), strict=False))
    aligned = t.reshape((1,) * (v.ndim - t.ndim) + t.shape) if fits else t
    if not fits or aligned.shape[dim] != 1:
        raise ValueError(
            f"{name} must be a number or broadcast to the input of shape {tuple(v.shape)} with size 1 at dim {dim}, "
            f"got shape {tuple(t.shape)}; use {name}.unsqueeze({dim}) for one a row"
        )
    return aligned.movedim(dim, -1)


def entry_parameter(t: float | Tensor, v: Tensor, rows: Tensor, dim: int) -> Tensor:
    """`t`, which broadcasts to `v`, one an entry of the rows, and 1 where the entry is -inf."""
    t = strength(t, rows).expand(v.shape).movedim(dim, -1)
    return torch.where(rows.detach() == -torch.inf, 1, t)


def restored(weights: Tensor, v: Tensor, dim: int) -> Tensor:
    """The weights of the rows in the dtype and layout of `v`."""
    return weights.to(v.dtype).movedim(-1, dim)


def leader(rows: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The largest entry of each row (..., 1), and the entries of `others` in its place; -inf for an empty row."""
    if rows.shape[-1] == 0:
        return tuple(rows.new_full((*x.shape[:-1], 1), -torch.inf) for x in (rows, *others))
    place = rows.detach().argmax(-1, keepdim=True)
    return tuple(x.gather(-1, place) for x in (rows, *others))


def thresholded(weights: Tensor, threshold: Tensor, top: Tensor, v: Tensor, dim: int) -> Thresholded:
    """The result on request; a row whose `top` is -inf has nothing left, and no level is low enough for it."""
    top = top.detach()
    threshold = torch.where(top == -torch.inf, torch.inf, threshold + (top - top))  # NaN where the row is
    size = (weights.detach() > 0).sum(-1, keepdim=True)
    return Thresholded(restored(weights, v, dim), threshold.movedim(-1, dim), size.movedim(-1, dim))
