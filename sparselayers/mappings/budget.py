"""Two more shapes of the simplex: entries capped at 1 that share a budget, and at most k entries."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import checks
from ..ops.budget import budget_rows
from ..ops.norm import strength
from ..ops.project import project_simplex
from ..ops.rows import masked_rows, restored, row_parameter


def project_budget(v: Tensor, k: float | Tensor, dim: int = -1, mask: Tensor | None = None) -> Tensor:
    r"""Project each row on the capped simplex {0 <= x <= 1, sum x = k}: a soft choice of k entries, with exact 0s and 1s.

    argmin_x 1/2 ‖x - v‖²  over the capped simplex  =  clip(v - tau, 0, 1),  tau such that the row sums to k.
    Jacobian: diag(s) - s s^T / |S| with s the 0/1 indicator of S = {0 < x < 1}; dx/dk = s / |S|.

    Args:
        v: any shape with at least one axis. -inf entries get 0; NaN or +inf makes its whole row NaN.
        k: >= 0, a number or a tensor that broadcasts to v with size 1 at `dim`; need not be whole; may need grad. The
            values of a tensor are not checked: below 0 counts as 0. Where k exceeds the number of entries of a row that
            take part, all of them are 1.
        dim: the axis that sums to k.
        mask: boolean, broadcasts to v; False takes no part (whatever stands there) and gets 0.

    Returns: the shape and dtype of v. A row with nothing left (all masked or all -inf) is 0, with gradient 0; so is the
        gradient where no entry lies strictly between 0 and 1.

    Raises: TypeError for an integer v or a mask that is not boolean; ValueError for a number k below 0 or, without a mask,
        above the length of the rows, and for shapes that do not fit (for `dim` it is an IndexError too).

    Source: Wang and Lu, arXiv:1503.01002 (the projection); Malaviya, Ferreira and Martins, ACL 2018 (its derivative, as
        constrained sparsemax).

    When not to use: for a hard choice of k entries (torch.topk), or for k = 1, which is the simplex.

    >>> import torch, sparselayers.functional as F
    >>> F.project_budget(torch.tensor([0.5, 1.2, 0.1, 0.4]), 2)
    tensor([0.5000, 1.0000, 0.1000, 0.4000])
    """
    rows = masked_rows(v, dim, mask)
    if isinstance(k, Tensor):
        k = row_parameter(k, v, dim, "k")
    checks.number(k, "k", low=0.0)
    n = v.shape[dim]
    if n == 0:
        return v.clone()
    if not isinstance(k, Tensor) and mask is None and k > n:
        raise ValueError(f"k must be at most {n}, the length of the rows, since no entry exceeds 1; got {k!r}")
    return restored(budget_rows(rows, strength(k, rows)), v, dim)


def topk_simplex(v: Tensor, k: int, dim: int = -1, mask: Tensor | None = None) -> Tensor:
    r"""Project each row on the probability simplex with at most k nonzeros: its k largest entries on their own simplex.

    argmin_x 1/2 ‖x - v‖²  over {x >= 0, sum x = 1, ‖x‖_0 <= k}  =  (v_i - tau)_+ on the k largest, 0 elsewhere.

    Args:
        v: any shape with at least one axis. -inf entries get 0; NaN or +inf makes its whole row NaN.
        k: how many nonzeros at most; of equal entries those of lower index are kept.
        dim: the axis that sums to 1.
        mask: boolean, broadcasts to v; False takes no part (whatever stands there) and gets 0.

    Returns: the shape and dtype of v. A row with nothing left (all masked or all -inf) is 0, with gradient 0.

    Raises: TypeError for an integer v, a mask that is not boolean or a k that is no int; ValueError for k < 1 or shapes
        that do not fit (for `dim` it is an IndexError too).

    Source: Kyrillidis, Becker, Cevher and Koch, ICML 2013.

    When not to use: where the result must be continuous in v: it jumps when the k-th and the next entry change places.

    >>> import torch, sparselayers.functional as F
    >>> F.topk_simplex(torch.tensor([0.5, 0.7, 0.1, 0.4]), 2)
    tensor([0.4000, 0.6000, 0.0000, 0.0000])
    """
    checks.count(k, "k")
    rows = masked_rows(v, dim, mask)
    order = rows.detach().sort(dim=-1, descending=True, stable=True).indices  # a NaN counts as largest and stays
    kept = torch.zeros_like(rows, dtype=torch.bool).scatter(-1, order[..., :k], True)
    return restored(project_simplex(torch.where(kept, rows, -torch.inf)), v, dim)
