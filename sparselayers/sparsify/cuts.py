"""One parameter cut into groups: a view (n_groups, ...) of it, by axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Cut = Callable[[Tensor], Tensor]


class Part(NamedTuple):
    """A parameter by name, and the cut that views it: `lead` axes that count the groups, then those of one group.

    It is always a view, whatever the memory layout: a step on a copy would change nothing. `by_rows`: a slice of the
    parameter's first axis, cut alone, gives that slice's groups, so that a shard of rows needs no other.
    """

    name: str
    cut: Cut
    lead: int = 1
    by_rows: bool = False

    def rows(self, view: Tensor) -> Tensor:
        """The view as a matrix (n_groups, group_size); a copy where its layout has it so."""
        return as_rows(view, self.lead)


def as_rows(view: Tensor, lead: int) -> Tensor:
    return view.reshape(math.prod(view.shape[:lead]), math.prod(view.shape[lead:]))


Block = tuple[
    Part, ...
]  # parts whose rows belong together: one part, a neuron's weight, bias and norm, a head's projections


# The cuts are functions by name, not lambdas, so that what holds them can be pickled.


def as_it_is(p: Tensor) -> Tensor:
    return p


def one_row(p: Tensor) -> Tensor:
    return p.unsqueeze(0)


def each_entry(p: Tensor) -> Tensor:
    return p.unsqueeze(-1)


def columns(p: Tensor) -> Tensor:
    return p.transpose(0, 1)


def columns_of_groups(n: int, p: Tensor) -> Tensor:
    return p.unflatten(0, (n, p.shape[0] // n)).transpose(1, 2)


def named_part(groups: str, name: str, parameter: nn.Parameter, owner: nn.Module) -> Part:
    """The cut that a name such as "output" stands for; ValueError where it does not fit the parameter."""
    if groups == "tensor":
        return Part(name, one_row)
    if groups == "element":
        return Part(name, each_entry, parameter.ndim, by_rows=parameter.ndim > 0)
    if parameter.ndim == 0:
        raise ValueError(f'groups="{groups}" takes vectors and matrices, got the scalar {name!r}; use "element"')
    if groups == "bias" and parameter.ndim > 1:
        raise ValueError(f'groups="bias" takes vectors, got {name!r} of shape {tuple(parameter.shape)}; use "output"')
    if groups in ("filter", "kernel") and parameter.ndim < 3:
        raise ValueError(
            f'groups="{groups}" takes convolution weights, got {name!r} of shape {tuple(parameter.shape)}; use "output"'
        )
    if groups == "kernel":
        return Part(name, as_it_is, 2, by_rows=True)
    if groups == "outgoing":
        return along("output" if parameter.ndim == 1 else "input", name, parameter, owner)
    return along("input" if groups == "input" else "output", name, parameter, owner)


def along(side: str, name: str, parameter: nn.Parameter, owner: nn.Module) -> Part:
    """Groups along the outputs or the inputs of a weight.

    A weight is stored (outputs, inputs, ...), that of a transposed convolution or a Conv1D of transformers (inputs,
    outputs, ...). With groups > 1 the first axis runs over all channels and the second over those of one group only.
    """
    if parameter.ndim == 1:
        if side == "input":
            raise ValueError(
                f'groups="input" takes matrices and kernels, got {name!r} of shape {tuple(parameter.shape)}; use "bias"'
            )
        return entries(name)
    first = "input" if isinstance(owner, _ConvTransposeNd) or is_conv1d(owner) else "output"
    if side == first:
        return Part(name, as_it_is, by_rows=True)
    n_groups = owner.groups if isinstance(owner, _ConvNd) else 1
    if n_groups == 1:
        return Part(name, columns)
    return Part(name, partial(columns_of_groups, n_groups), 2)


def is_conv1d(owner: nn.Module) -> bool:
    """transformers' Conv1D, as in GPT-2: a Linear layer whose weight is (inputs, outputs). Told by name: no import."""
    return type(owner).__name__ == "Conv1D" and type(owner).__module__.startswith("transformers.")


def entries(name: str) -> Part:
    """Each entry of a vector."""
    return Part(name, each_entry, by_rows=True)
