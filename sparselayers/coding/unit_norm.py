"""Atoms of unit norm, kept by a parametrization."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..ops import checks
from ..ops.norm import norm

Module = TypeVar("Module", bound=nn.Module)


class UnitNorm(nn.Module):
    r"""A parametrization that scales every slice along `dim` to Euclidean norm 1: slice / ‖slice‖_2.

    It is the projection onto the unit sphere, slice by slice. The gradient that reaches the free tensor under it is
    tangent to the sphere: g - (g . u) u over the free norm, u the unit slice. A slice that is zero stays zero, with
    finite derivatives, and is of unit norm again once a step has moved it.

    Args:
        dim: the axis that numbers the slices, as in torch's weight_norm: -1 for a dictionary (n_features, n_atoms), 0
            for filters (n_atoms, channels, *kernel).

    Shape: any with at least two axes -> the same.

    Raises: TypeError for a `dim` that is no int or a tensor that is not floating point; ValueError (also an IndexError)
    for a `dim` that the tensor does not have.

    Source: Salimans and Kingma 2016 (weight normalisation), without the gain.

    When not to use: for the l2 BALL of classical dictionary learning, which lets unused atoms shrink.

    >>> import torch, sparselayers as sl
    >>> sl.UnitNorm()(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
    tensor([[0.6000, 0.0000],
            [0.8000, 0.0000]])
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise TypeError(f"dim must be an int, got {type(dim).__name__}")
        self.dim = dim

    def forward(self, D: Tensor) -> Tensor:
        """D with slices of unit norm."""
        checks.floating(D, "D")
        checks.axis(self.dim, D, "D")
        slices = D.movedim(self.dim, 0)
        length = norm(slices.flatten(1)).view(-1, *(1,) * (D.ndim - 1)) if D.ndim > 1 else slices.abs()
        return (slices / torch.where(length == 0, 1, length)).to(D.dtype).movedim(0, self.dim)

    def right_inverse(self, D: Tensor) -> Tensor:
        """What to store so that an assigned D of unit norm comes back: itself, scaled to the sphere."""
        return self(D)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


def unit_norm(module: Module, name: str = "dictionary", dim: int | None = None) -> Module:
    r"""Keep the atoms of a layer at unit norm while it trains, by a parametrization of its dictionary.

    module.dictionary  =  atom / ‖atom‖_2, atom by atom.

    Undo it with torch.nn.utils.parametrize.remove_parametrizations(module, name), which keeps the unit atoms. In a
    state_dict the free tensor is called "parametrizations.dictionary.original".

    Args:
        module: a coding layer, or any module with a tensor called `name`.
        name: the parameter or buffer.
        dim: the axis that numbers the atoms; None is the last of a matrix (n_features, n_atoms), so its columns have unit
            norm, also those of an nn.Linear's weight (out, in) as it decodes a code; its rows are dim=0. For a
            convolution's filters None is the first.

    Returns: the module itself, changed in place.

    Raises: ValueError where the module has no such parameter or buffer, or has it at unit norm already.

    Source: Mairal, Bach, Ponce and Sapiro 2009 (normalised atoms against the scale ambiguity of D z).

    When not to use: with lam learned one an atom, which settles the scale by itself.

    >>> import torch, sparselayers as sl
    >>> layer = sl.unit_norm(sl.ISTA(8, 16, depth=4))
    >>> layer.dictionary = 3 * torch.randn(8, 16)
    >>> torch.allclose(layer.dictionary.norm(dim=0), torch.ones(16))
    True
    """
    if parametrize.is_parametrized(module, name):
        raise ValueError(f"{name!r} of {type(module).__name__} has a parametrization already; remove it first")
    if name not in dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False)):
        raise ValueError(f"{type(module).__name__} has no parameter or buffer {name!r}; give its name")
    if dim is None:
        dim = -1 if getattr(module, name).ndim == 2 else 0
    parametrize.register_parametrization(module, name, UnitNorm(dim))
    return module
