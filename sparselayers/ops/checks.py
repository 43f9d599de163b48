"""Argument checks: what was expected, what was got, and the remedy. Shapes and dtypes only, never values."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class DimError(IndexError, ValueError):
    """A `dim` outside the tensor: an IndexError as in torch, and a ValueError as in the rest of this library."""


def floating(x: Tensor, name: str) -> None:
    """TypeError unless `x` is a real floating-point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}; use torch.as_tensor({name})")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}; use {name}.float()")


def axis(dim: int, x: Tensor, name: str) -> int:
    """`dim` counted from the front; DimError where `x` has no such axis."""
    if not -x.ndim <= dim < x.ndim:
        raise DimError(
            f"dim must lie in [{-x.ndim}, {x.ndim - 1}] for {name} of shape {tuple(x.shape)}, got {dim}"
            + ("; unsqueeze a 0-d tensor first" if x.ndim == 0 else "")
        )
    return dim % x.ndim


def boolean_mask(mask: Tensor | None, x: Tensor, name: str) -> None:
    """TypeError unless `mask` is boolean, ValueError unless it broadcasts to `x`."""
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a boolean tensor (True = takes part), got {got}; use mask.bool()")
    broadcastable = mask.ndim <= x.ndim and all(
        m in (1, n) for m, n in zip(reversed(mask.shape), reversed(x.shape), strict=False)
    )
    if not broadcastable:
        raise ValueError(f"mask of shape {tuple(mask.shape)} does not broadcast to {name} of shape {tuple(x.shape)}")


def number(
    value: float | Tensor, name: str, low: float = -math.inf, high: float = math.inf, open_low: bool = False
) -> None:
    """ValueError unless the Python number lies in [low, high] ((low, high] with `open_low`); tensors are not looked at."""
    if isinstance(value, Tensor):
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (low < value if open_low else low <= value) or not value <= high:
        bracket = "(" if open_low else "["
        raise ValueError(f"{name} must lie in {bracket}{low:g}, {high:g}], got {value!r}")


def scalar(value: float | Tensor, name: str, low: float = -math.inf, open_low: bool = False) -> None:
    """As `number`, and ValueError for a tensor that is not 0-d."""
    number(value, name, low, open_low=open_low)
    if isinstance(value, Tensor) and value.ndim:
        raise ValueError(
            f"{name} must be a number or a 0-d tensor, got shape {tuple(value.shape)}; "
            f"for a {name} a layer make one object a layer, by include"
        )


def count(value: int, name: str, least: int = 1) -> None:
    """ValueError unless `value` is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def per_row(t: float | Tensor, v: Tensor, name: str) -> None:
    """ValueError unless `t` broadcasts to (..., 1), one strength a row of `v`."""
    if not isinstance(t, Tensor):
        number(t, name, low=0.0)
    elif t.ndim and t.shape[-1] != 1:
        raise ValueError(
            f"{name} must broadcast to (..., 1), one a row of v of shape {tuple(v.shape)}, got shape {tuple(t.shape)}; "
            f"use {name}.unsqueeze(-1)"
        )


def per_entry(t: float | Tensor, v: Tensor, name: str) -> None:
    """ValueError unless `t` broadcasts to `v`."""
    if not isinstance(t, Tensor):
        number(t, name, low=0.0)
        return
    if t.ndim > v.ndim or any(m not in (1, n) for m, n in zip(reversed(t.shape), reversed(v.shape), strict=False)):
        raise ValueError(
            f"{name} of shape {tuple(t.shape)} does not broadcast to v of shape {tuple(v.shape)}; "
            f"give a number, one a row (..., 1) or one an entry"
        )


def broadcast(**shapes: torch.Size) -> torch.Size:
    """The common shape of the named leading axes; ValueError where they do not broadcast."""
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        listed = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"leading axes must broadcast against each other, got {listed}") from None
