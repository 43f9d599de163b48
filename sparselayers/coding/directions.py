"""Where a LISTA step goes: v = z - step_k g_k(z). At the start g_k is the gradient D^T (D z - x), or close to it.

`at(x, D)` gives the function (z, k) -> g_k(z), k = 1..depth, for the samples x; z = None is 0. The matrices are parameters
where they are learned, else buffers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..ops.norm import upcast
from ..ops.spectral import analytic_weight

Direction = Callable[[Tensor | None, int], Tensor]


class Free(nn.Module):
    """g_k(z) = G_k z - W_k^T x, both matrices free: in the notation of LISTA, W1_k = step W_k^T and W2_k = I - step G_k.

    The first step starts at 0 and has no G.
    """

    gram: Tensor
    weight: Tensor

    def __init__(self, D: Tensor, depth: int, learn: bool) -> None:
        super().__init__()
        gram = (upcast(D).mT @ upcast(D)).to(D.dtype)
        _hold(self, "gram", gram.expand(depth - 1, *gram.shape), learn)
        _hold(self, "weight", D.expand(depth, *D.shape), learn)

    def at(self, x: Tensor, D: Tensor) -> Direction:
        gram, weight = self.gram.unbind(), self.weight.unbind()
        return lambda z, k: -(x @ weight[0]) if z is None else z @ gram[k - 2] - x @ weight[k - 1]


class Coupled(nn.Module):
    """g_k(z) = W_k^T (D z - x) with the dictionary D as it is: one free matrix a step."""

    weight: Tensor

    def __init__(self, D: Tensor, depth: int, learn: bool) -> None:
        super().__init__()
        _hold(self, "weight", D.expand(depth, *D.shape), learn)

    def at(self, x: Tensor, D: Tensor) -> Direction:
        weight = self.weight.unbind()
        return lambda z, k: (-x if z is None else z @ D.mT - x) @ weight[k - 1]


class Analytic(nn.Module):
    """g(z) = W^T (D z - x) with the analytic weight W of D; where D is learned W follows it, at every call."""

    weight: Tensor | None

    def __init__(self, D: Tensor, learn: bool) -> None:
        super().__init__()
        self.register_buffer("weight", None if learn else analytic_weight(D))

    def at(self, x: Tensor, D: Tensor) -> Direction:
        weight = analytic_weight(D) if self.weight is None else self.weight
        return lambda z, k: (-x if z is None else z @ D.mT - x) @ weight


def _hold(module: nn.Module, name: str, start: Tensor, learn: bool) -> None:
    start = start.detach().clone(memory_format=torch.contiguous_format)
    if learn:
        module.register_parameter(name, nn.Parameter(start))
    else:
        module.register_buffer(name, start)
