"""Entmax with any alpha from softmax (1) through sparsemax (2) to 4, fixed or learned."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn

from ..ops import checks
from ..ops.entmax import entmax_rows
from ..ops.rows import Thresholded, leader, masked_rows, restored, row_parameter, thresholded
from .simplex import entmax15, sparsemax

LOW, HIGH = 1.0, 4.0


@overload
def entmax(
    z: Tensor,
    alpha: float | Tensor,
    dim: int = -1,
    mask: Tensor | None = None,
    *,
    return_threshold: Literal[False] = False,
) -> Tensor: ...
@overload
def entmax(
    z: Tensor, alpha: float | Tensor, dim: int = -1, mask: Tensor | None = None, *, return_threshold: Literal[True]
) -> Thresholded: ...
def entmax(
    z: Tensor, alpha: float | Tensor, dim: int = -1, mask: Tensor | None = None, *, return_threshold: bool = False
) -> Tensor | Thresholded:
    r"""Map scores to probabilities by alpha-entmax: softmax at 1, sparsemax at 2, sparser beyond; differentiable in alpha.

    argmax_p <p, z> + H_alpha(p) over the simplex  =  [1 + (alpha - 1)(z - tau)]_+^(1 / (alpha - 1)),
    H_alpha(p) = (1 - sum p^alpha) / (alpha (alpha - 1)), Shannon's entropy at alpha = 1.

    Args:
        z: scores, any shape with at least one axis. -inf scores get 0; NaN or +inf makes its whole row NaN.
        alpha: a number in [1, 4] (1, 1.5 and 2 take the shorter ways of softmax, `entmax15` and `sparsemax`), or a tensor
            that broadcasts to z with size 1 at `dim`: 0-d, one a head, one a row. A tensor may need grad, also at exactly
            1, where the derivative is that from the right; its values are not checked, and one outside [1, 4] counts as
            the nearest end, with gradient 0.
        dim: the axis that sums to 1.
        mask: boolean, broadcasts to z; False takes no part (whatever stands there) and gets 0.
        return_threshold: return `Thresholded(weights, threshold, support_size)`, with the threshold tau of the closed
            form (logsumexp at alpha = 1).

    Returns: the shape and dtype of z; sums are right to the last bit in 16-bit types too. A row with nothing left is 0,
        with gradient 0. Derivatives are exact to second order.

    Raises: ValueError for a number alpha outside [1, 4] or shapes that do not fit (for `dim` it is an IndexError too);
        TypeError for integer scores, a mask that is not boolean or an alpha that is neither number nor tensor.

    Source: Peters, Niculae and Martins, ACL 2019; the derivative in alpha: Correia, Niculae and Martins, EMNLP 2019.

    When not to use: with a known alpha of 1.5 or 2, whose own functions say so; with alpha above 2 where derivatives
        must be bounded: they grow without limit as several entries reach the edge of the support together.

    >>> import torch, sparselayers.functional as F
    >>> F.entmax(torch.tensor([0.5, 1.2, 0.1]), 1.25)
    tensor([0.2524, 0.6102, 0.1374])
    >>> F.entmax(torch.tensor([0.5, 0.8, 0.1]), torch.tensor(3.0))
    tensor([0.2000, 0.8000, 0.0000])
    """
    rows = masked_rows(z, dim, mask, "z")
    if isinstance(alpha, Tensor):
        alpha = row_parameter(alpha, z, dim, "alpha")
    checks.number(alpha, "alpha", LOW, HIGH)
    if z.shape[dim] == 0:
        p, tau = rows, rows.sum(-1, keepdim=True)
    elif isinstance(alpha, Tensor) or alpha not in (1, 1.5, 2):
        p, tau = entmax_rows(rows, alpha)
    elif alpha == 1:
        p, tau = _softmax_rows(rows)
    elif not return_threshold:
        return sparsemax(z, dim, mask) if alpha == 2 else entmax15(z, dim, mask)
    elif alpha == 2:
        p, tau, _ = sparsemax(rows, return_threshold=True)
        tau = tau + 1
    else:
        p, tau, _ = entmax15(rows, return_threshold=True)
        tau = 2 * tau + 2
    return thresholded(p, tau, leader(rows)[0], z, dim) if return_threshold else restored(p, z, dim)


def _softmax_rows(z: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax and logsumexp, with 0 and a finite number for an empty row."""
    empty = z.detach().amax(-1, keepdim=True) == -torch.inf
    z = torch.where(empty, 0, z)
    return torch.where(empty, 0, torch.softmax(z, -1)), torch.logsumexp(z, -1, keepdim=True)


class Entmax(nn.Module):
    r"""`entmax` as a module: argmax_p <p, z> + H_alpha(p) over the simplex along `dim`, with a fixed or learned alpha.

    Args:
        alpha: a number in [1, 4] or a tensor that broadcasts to the scores with size 1 at `dim`, such as (heads, 1, 1)
            for one alpha a head.
        dim: the axis that sums to 1.
        learn_alpha: learn alpha; it is kept as logit((alpha - 1) / 3), unconstrained, and stays inside (1, 4).

    Shape: z any shape -> the same; mask broadcasts to z, True = takes part.

    Raises: ValueError for a number alpha outside [1, 4], or at an end of it when it is to be learned.

    Source: Peters, Niculae and Martins, ACL 2019; learned alpha: Correia, Niculae and Martins, EMNLP 2019.

    When not to use: before a logarithm.

    >>> import torch, sparselayers as sl
    >>> attend = sl.Entmax(torch.full((8, 1, 1), 1.5), learn_alpha=True)
    >>> attend
    Entmax(alpha=learned (8, 1, 1), dim=-1)
    >>> attend(torch.tensor([0.0, 3.0]).expand(8, 1, 2))[0]
    tensor([[0., 1.]], grad_fn=<SelectBackward0>)
    """

    def __init__(self, alpha: float | Tensor, dim: int = -1, learn_alpha: bool = False) -> None:
        super().__init__()
        checks.number(alpha, "alpha", LOW, HIGH)
        self.dim = dim
        self.fixed_alpha: float | Tensor | None
        if learn_alpha:
            if alpha in (LOW, HIGH) if not isinstance(alpha, Tensor) else False:
                raise ValueError(
                    f"a learned alpha stays inside (1, 4) and cannot start at {alpha!r}; start at 1.01, say"
                )
            start = torch.as_tensor(alpha, dtype=None if isinstance(alpha, Tensor) else torch.get_default_dtype())
            share = (start.detach() - LOW) / (HIGH - LOW)
            self.logit_alpha = nn.Parameter(torch.logit(share, eps=1e-4))
            self.fixed_alpha = None
        elif isinstance(alpha, Tensor):
            self.register_parameter("logit_alpha", None)
            self.register_buffer("fixed_alpha", alpha.detach().clone())
        else:
            self.register_parameter("logit_alpha", None)
            self.fixed_alpha = alpha

    @property
    def alpha(self) -> float | Tensor:
        """The alpha in use, with its gradient where it is learned."""
        if self.logit_alpha is not None:
            return LOW + (HIGH - LOW) * torch.sigmoid(self.logit_alpha)
        return self.fixed_alpha

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        return entmax(z, self.alpha, self.dim, mask)

    def extra_repr(self) -> str:
        if self.logit_alpha is not None:
            return f"alpha=learned {tuple(self.logit_alpha.shape)}, dim={self.dim}"
        shown = f"tensor{tuple(self.fixed_alpha.shape)}" if isinstance(self.fixed_alpha, Tensor) else self.fixed_alpha
        return f"alpha={shown}, dim={self.dim}"
