"""Sparse maps from scores to probabilities: sparsemax and entmax-1.5, as functions and modules."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn

from ..ops.entmax15 import entmax15_rows
from ..ops.rows import Thresholded, leader, masked_rows, restored, thresholded
from ..ops.waterline import waterline


@overload
def sparsemax(
    z: Tensor, dim: int = -1, mask: Tensor | None = None, *, return_threshold: Literal[False] = False
) -> Tensor: ...
@overload
def sparsemax(
    z: Tensor, dim: int = -1, mask: Tensor | None = None, *, return_threshold: Literal[True]
) -> Thresholded: ...
def sparsemax(
    z: Tensor, dim: int = -1, mask: Tensor | None = None, *, return_threshold: bool = False
) -> Tensor | Thresholded:
    r"""Map scores to the nearest point of the probability simplex: probabilities with exact zeros.

    argmin_p ‖p - z‖² over the simplex  =  (z - tau)_+.      Jacobian: diag(s) - s s^T / |S|, s the indicator of the support.

    Args:
        z: scores, any shape with at least one axis. -inf scores get 0; NaN or +inf makes its whole row NaN.
        dim: the axis that sums to 1.
        mask: boolean, broadcasts to z; False takes no part (whatever stands there) and gets 0.
        return_threshold: return `Thresholded(weights, threshold, support_size)`, with the threshold tau of the closed form.

    Returns: the shape and dtype of z; sums are right to the last bit in 16-bit types too. A row with nothing left (all
        masked or all -inf) is 0, with gradient 0.

    Raises: TypeError for integer scores or a mask that is not boolean; ValueError where shapes do not fit (for `dim` it
        is an IndexError too).

    Source: Martins and Astudillo, ICML 2016, eqs. 2 and 12.

    When not to use: with a log-likelihood loss (log 0): use the sparsemax loss.

    >>> import torch, sparselayers.functional as F
    >>> F.sparsemax(torch.tensor([0.5, 1.2, 0.1]))
    tensor([0.1500, 0.8500, 0.0000])
    """
    rows = masked_rows(z, dim, mask, "z")
    p = waterline(rows, 1.0, 1.0).above if z.shape[dim] else rows
    if not return_threshold:
        return restored(p, z, dim)
    top, largest = leader(rows, p)
    return thresholded(p, top - largest, top, z, dim)


@overload
def entmax15(
    z: Tensor, dim: int = -1, mask: Tensor | None = None, *, return_threshold: Literal[False] = False
) -> Tensor: ...
@overload
def entmax15(
    z: Tensor, dim: int = -1, mask: Tensor | None = None, *, return_threshold: Literal[True]
) -> Thresholded: ...
def entmax15(
    z: Tensor, dim: int = -1, mask: Tensor | None = None, *, return_threshold: bool = False
) -> Tensor | Thresholded:
    r"""Map scores to probabilities by entmax with alpha = 1.5: between softmax and sparsemax, with exact zeros.

    argmax_p <p, z> + H_1.5(p) over the simplex  =  (z / 2 - tau)_+²

    Args:
        z: scores, any shape with at least one axis. -inf scores get 0; NaN or +inf makes its whole row NaN.
        dim: the axis that sums to 1.
        mask: boolean, broadcasts to z; False takes no part (whatever stands there) and gets 0.
        return_threshold: return `Thresholded(weights, threshold, support_size)`, with the threshold tau of the closed form.

    Returns: the shape and dtype of z; a row with nothing left is 0, with gradient 0.

    Raises: as `sparsemax`.

    Source: Peters, Niculae and Martins, ACL 2019, section 4.2.

    When not to use: where the strongest sparsity is wanted (sparsemax).

    >>> import torch, sparselayers.functional as F
    >>> F.entmax15(torch.tensor([0.5, 1.2, 0.1]))
    tensor([0.2311, 0.6901, 0.0788])
    """
    rows = masked_rows(z, dim, mask, "z")
    p = entmax15_rows(rows) if z.shape[dim] else rows
    if not return_threshold:
        return restored(p, z, dim)
    top, largest = leader(rows, p)
    return thresholded(p, top / 2 - torch.where(largest > 0, largest, 1).sqrt(), top, z, dim)


class Sparsemax(nn.Module):
    r"""`sparsemax` as a module: argmin_p ‖p - z‖² over the simplex along `dim`.

    Args:
        dim: the axis that sums to 1.

    Shape: z any shape -> the same; mask broadcasts to z, True = takes part.

    Source: Martins and Astudillo, ICML 2016.

    When not to use: before a logarithm.

    >>> import torch, sparselayers as sl
    >>> sl.Sparsemax()(torch.tensor([0.5, 1.2, 0.1]))
    tensor([0.1500, 0.8500, 0.0000])
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        return sparsemax(z, self.dim, mask)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Entmax15(nn.Module):
    r"""`entmax15` as a module: argmax_p <p, z> + H_1.5(p) over the simplex along `dim`.

    Args:
        dim: the axis that sums to 1.

    Shape: z any shape -> the same; mask broadcasts to z, True = takes part.

    Source: Peters, Niculae and Martins, ACL 2019.

    When not to use: before a logarithm.

    >>> import torch, sparselayers as sl
    >>> sl.Entmax15()(torch.tensor([0.0, 3.0]))
    tensor([0., 1.])
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        return entmax15(z, self.dim, mask)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
