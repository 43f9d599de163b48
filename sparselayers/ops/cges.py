"""The step of the CGES paper as its authors run it, for reproduction: linearised, and no prox."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .norm import strength, upcast
from .shrink import group_scale, rows_and_strength, soft_threshold


def cges_linearized_step(v: Tensor, t: float | Tensor, mu: float = 0.5, dim: int = -1) -> Tensor:
    r"""The published CGES step: shrink each row as a group, then every entry by the l1 norm the row has after that.

    w = v (1 - t (1 - mu) / ‖v‖_2)_+,      result = sign(w) (abs(w) - t mu ‖w‖_1)_+

    The prox of the penalty needs both norms at the RESULT; here they are taken before, so the step over-shrinks and can
    zero whole rows where t mu n is not small. The exact prox is `sl.GroupExclusive(mu).prox(v, t)`.

    Args:
        v: any shape with at least one axis.
        t: step * lam >= 0, a number or a tensor that broadcasts to v with size 1 at `dim`; may need grad.
        mu: in [0, 1], the share of the exclusive part; `cges_mu` gives the paper's, layer by layer.
        dim: the axis of a group.

    Returns: the shape and dtype of v.

    Raises: TypeError for an integer v; ValueError for a negative number t, a mu outside [0, 1] or shapes that do not fit.

    Source: Yoon and Hwang, ICML 2017, section 3.3, and the authors' code (an all-zero row gives NaN there, zero here).

    When not to use: for anything but reproducing the paper.

    >>> import torch, sparselayers.functional as F
    >>> F.cges_linearized_step(torch.tensor([1.0, 0.9, 0.8, 0.7]), 0.2, mu=1.0)
    tensor([0.3200, 0.2200, 0.1200, 0.0200])
    """
    checks.number(mu, "mu", 0.0, 1.0)
    rows, t = rows_and_strength(v, t, dim)
    t = strength(t, upcast(rows))
    nothing = torch.zeros_like(t)  # 0 times an infinite t is no number
    shrunk = group_scale(upcast(rows), (1 - mu) * t if mu < 1 else nothing)
    total = shrunk.abs().sum(-1, keepdim=True)
    level = torch.where(total == 0, 0, mu * t if mu else nothing) * total
    return soft_threshold(shrunk, level).to(v.dtype).movedim(-1, dim)


def cges_mu(layer: int, n_layers: int, first: float = 0.2) -> float:
    r"""The CGES paper's share of the exclusive part in layer 0 .. n_layers - 1: it grows with depth.

    mu = first + (1 - 2 first) layer / (n_layers - 1); the first layer keeps whole groups, the last one lets entries compete.

    Args:
        layer: counted from 0.
        n_layers: how many layers there are; with one, mu is `first`.
        first: in [0, 1], mu of the first layer; 0.2 in the authors' code.

    Returns: mu for `cges_linearized_step` or `sl.GroupExclusive`.

    Raises: TypeError or ValueError for a layer outside 0 .. n_layers - 1 or a `first` outside [0, 1].

    Source: Yoon and Hwang, ICML 2017.

    When not to use: with a mu of your own, which `sl.GroupExclusive(mu)` takes directly.

    >>> import sparselayers.functional as F
    >>> [round(F.cges_mu(layer, 4), 2) for layer in range(4)]
    [0.2, 0.4, 0.6, 0.8]
    """
    checks.count(n_layers, "n_layers")
    checks.count(layer, "layer", least=0)
    checks.number(first, "first", 0.0, 1.0)
    if layer >= n_layers:
        raise ValueError(f"layer must lie in [0, {n_layers - 1}] for n_layers={n_layers}, got {layer}")
    return first + (1 - 2 * first) * layer / max(n_layers - 1, 1)
