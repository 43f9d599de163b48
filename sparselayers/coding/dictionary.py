"""What coding needs to know of a dictionary D (n_features, n_atoms): checks, the gradient, a safe step, a random start."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..ops import checks
from ..ops.spectral import squared_norm


def check(x: Tensor, D: Tensor) -> None:
    """TypeError or ValueError unless D is (n_features, n_atoms) and x (..., n_features), of one floating dtype."""
    checks.floating(x, "x")
    checks.floating(D, "D")
    if D.ndim != 2 or 0 in D.shape:
        raise ValueError(f"D must be a matrix (n_features, n_atoms) with entries, got shape {tuple(D.shape)}")
    if x.ndim == 0 or x.shape[-1] != D.shape[0]:
        raise ValueError(
            f"x must be (..., {D.shape[0]}) for D of shape {tuple(D.shape)} (n_features, n_atoms), got {tuple(x.shape)}"
            + ("; transpose D" if x.ndim and x.shape[-1] == D.shape[1] else "")
        )
    if x.dtype != D.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"x and D must have one dtype, got {x.dtype} and {D.dtype}; use x.to(D.dtype)")


def safe_step(D: Tensor) -> Tensor:
    """1 / ‖D‖², through which the gradient flows; 1 for a dictionary that is zero."""
    bound = squared_norm(D)
    return 1 / torch.where(bound > 0, bound, 1)


def gradient(x: Tensor, D: Tensor) -> Callable[[Tensor], Tensor]:
    """z -> D^T (D z - x), by one Gram product where that is cheaper than two products (n_atoms < 2 n_features)."""
    n_features, n_atoms = D.shape
    if n_atoms < 2 * n_features:
        gram, correlation = D.mT @ D, x @ D
        return lambda z: z @ gram - correlation
    return lambda z: (z @ D.mT - x) @ D


def random_atoms(n_features: int, n_atoms: int, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    """Gaussian atoms of unit norm."""
    D = torch.randn(n_features, n_atoms, device=device, dtype=dtype)
    return D / torch.linalg.vector_norm(D, dim=0)


def random_filters(shape: tuple[int, ...], device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    """Gaussian filters (n_atoms, channels, *kernel) of unit norm."""
    filters = torch.randn(shape[0], math.prod(shape[1:]), device=device, dtype=dtype)
    return (filters / torch.linalg.vector_norm(filters, dim=1, keepdim=True)).view(shape)


def fresh(shape: tuple[int, ...], device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    """Random unit atoms: the columns of a matrix, or the filters of a convolution, which has three axes or more."""
    return random_atoms(shape[0], shape[1], device, dtype) if len(shape) == 2 else random_filters(shape, device, dtype)


def hold(
    module: nn.Module,
    n_features: int,
    n_atoms: int,
    start: Tensor | None,
    learn: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """Give `module` its `dictionary`, a parameter if learned, else a buffer: a copy of `start`, or random unit atoms."""
    return hold_shape(module, (n_features, n_atoms), "(n_features, n_atoms)", start, learn, device, dtype)


def hold_shape(
    module: nn.Module,
    shape: tuple[int, ...],
    axes: str,
    start: Tensor | None,
    learn: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """`hold` for a dictionary of any shape, whose axes are called `axes`."""
    device = torch.device(device) if device is not None else None
    if start is None:
        D = fresh(shape, device, dtype)
    else:
        checks.floating(start, "dictionary")
        if start.shape != shape:
            raise ValueError(f"dictionary must be {shape} {axes}, got {tuple(start.shape)}")
        D = start.detach().clone().to(device=device, dtype=dtype)
    if learn:
        module.register_parameter("dictionary", nn.Parameter(D))
    else:
        module.register_buffer("dictionary", D)
    return D


def redraw(module: nn.Module) -> None:
    """New Gaussian unit atoms in the place of the module's old ones, through its parametrization if it has one."""
    D = cast(Tensor, module.dictionary)
    new = fresh(tuple(D.shape), D.device, D.dtype)
    with torch.no_grad():
        if parametrize.is_parametrized(module, "dictionary"):
            module.dictionary = new
        else:
            D.copy_(new)


def decode(z: Tensor, D: Tensor) -> Tensor:
    """D z, for z (..., n_atoms); ValueError where the shapes do not fit."""
    if z.ndim == 0 or z.shape[-1] != D.shape[1]:
        raise ValueError(f"z must be (..., {D.shape[1]}), got {tuple(z.shape)}")
    return z @ D.mT


def check_learn(learn: Sequence[str], learnable: tuple[str, ...]) -> None:
    """ValueError unless `learn` is a sequence of names out of `learnable`."""
    if isinstance(learn, str) or not set(learn) <= set(learnable):
        raise ValueError(f"learn must be a sequence of names out of {learnable}, got {learn!r}")
