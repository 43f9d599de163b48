"""Products with sparse weights by their support: None from `support_of` where dense products must do the work."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .switch import serve

SHARE = 1 / 16  # of weights that are not zero: above it dense products are faster


class Support(NamedTuple):
    """The entries of weights (heads, rows, n) that are not zero: those of row i are start[i] to start[i + 1].

    Fields:
        start: (heads * rows + 1,), int64.
        place: (entries,), int64, counts through the keys of all heads (heads * n).
        weight: (entries,).
    """

    start: Tensor
    place: Tensor
    weight: Tensor


def support_of(weights: Tensor) -> Support | None:
    """The support, where there are kernels for it and it is small."""
    if serve(weights) != "numba":
        return None
    found = _kernels().support(weights.contiguous(), SHARE)
    return None if found is None else Support(*found)


def read(support: Support, value: Tensor) -> Tensor:
    """weights @ value: (heads, n, width) -> (heads, rows, width)."""
    rows = (support.start.numel() - 1) // value.shape[0]
    return _kernels().read(*support, _rows(value)).view(value.shape[0], rows, value.shape[-1])


def pull_back_(
    support: Support,
    g: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
    scale: float,
    root: bool,
) -> Tensor:
    """From g = dL / d(weights @ value) the gradient of the query; those of key and value are added to what they hold.

    The weights are a mapping of scale Q K^T whose Jacobian is diag(s) - s s^T / sum s, with s = sqrt(weights) if `root`
    (entmax-1.5), else the support's indicator (sparsemax).
    """
    kernels = _kernels()
    scores, grad_query = kernels.pull(*support, _rows(g), _rows(value), _rows(key), scale, root)
    for target, weight, rows in ((grad_key, scores, query), (grad_value, support.weight, g)):
        whole = target if target.is_contiguous() else target.contiguous()
        kernels.scatter_(whole.flatten(0, -2), support.start, support.place, weight, _rows(rows))
        if whole is not target:
            target.copy_(whole)
    return grad_query.view(query.shape)


def _rows(x: Tensor) -> Tensor:
    return x.flatten(0, -2).contiguous()


def _kernels() -> Any:
    from . import numba_support

    return numba_support
