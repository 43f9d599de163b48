"""The Lasso of rows as one operator: tracers and transforms see what goes in and what comes out, not the loop.

It has no derivative; who needs one attaches it to the codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.eager import is_plain_eager
from ..ops.kernels.lasso import lasso_codes
from .certificate import Weights, unit, widest
from .greedy import greedy

Found = tuple[Tensor, Tensor, Tensor]


def weighted_lasso(x: Tensor, D: Tensor, weights: Weights, tol: float, max_iter: int) -> Found:
    """Codes (B, n_atoms), gaps (B,) and passes (B,) of x (B, n_features), without a graph."""
    a, b = (torch.atleast_2d(q) for q in (weights.a, torch.zeros_like(weights.a) if weights.b is None else weights.b))
    solve = _solve if is_plain_eager(x) and is_plain_eager(D) and is_plain_eager(a) else _operator
    return solve(x, D, a, b, weights.b is not None, weights.nonnegative, tol, max_iter)


def _solve(
    x: Tensor, D: Tensor, a: Tensor, b: Tensor, curved: bool, nonnegative: bool, tol: float, max_iter: int
) -> Found:
    """In units in which x and D are of size 1. a, b: (B or 1, n_atoms or 1), b 0 unless curved."""
    sample, spread = unit(x, a_row=True), unit(D, a_row=False)
    weights = Weights(a, b if curved else None, nonnegative).scaled(sample, spread)
    x, D, scale = x / sample, D / spread, sample / spread
    fused = None if weights.free() else lasso_codes(x, D, weights.a, weights.b, nonnegative, scale, tol, max_iter)
    if fused is not None:
        return fused
    code, passes = greedy(x, D, weights, tol, max_iter)
    code = code * scale
    gap = weights.gap(widest(x), widest(D), widest(code) / widest(scale)).squeeze(-1)
    return torch.where(gap.isnan().unsqueeze(-1), torch.nan, code), gap.to(x.dtype), passes


_operator = torch.library.custom_op("sparselayers::weighted_lasso", _solve, mutates_args=())


@_operator.register_fake
def _(x, D, a, b, curved, nonnegative, tol, max_iter):  # type: ignore[no-untyped-def]
    rows = x.shape[0]
    return x.new_empty(rows, D.shape[1]), x.new_empty(rows), x.new_empty(rows, dtype=torch.long)


@_operator.register_vmap
def _(info, in_dims, x, D, a, b, *rest):  # type: ignore[no-untyped-def]
    """Samples of samples are samples; one dictionary each is a loop."""
    size = info.batch_size
    x, D, a, b = (
        q.unsqueeze(0).expand(size, *q.shape) if dim is None else q.movedim(dim, 0)
        for q, dim in zip((x, D, a, b), in_dims[:4], strict=True)
    )
    if in_dims[1] is not None:
        found = [_operator(*each, *rest) for each in zip(x, D, a, b, strict=True)]
        return tuple(torch.stack(part) for part in zip(*found, strict=True)), (0, 0, 0)
    rows = x.shape[1]
    a, b = (q.expand(size, rows, q.shape[-1]).flatten(0, 1) for q in (a, b))
    found = _operator(x.flatten(0, 1), D[0], a, b, *rest)
    return tuple(part.unflatten(0, (size, rows)) for part in found), (0, 0, 0)
