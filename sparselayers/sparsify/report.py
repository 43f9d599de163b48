"""How sparse a model is, counted in exact zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..ops import checks
from .cuts import along
from .evaluation import Example, evaluating
from .flops import uses
from .groups import Include, Part, cut_model
from .neuron import neuron
from .rules import owners_of, reasons


@dataclass(frozen=True)
class LayerSparsity:
    """One weight: its name and shape, how many of its entries, output rows, input columns and neurons are zero, its flops."""

    name: str
    shape: tuple[int, ...]
    weights: int
    weights_zero: int
    groups: int
    groups_zero: int
    inputs: int
    inputs_zero: int
    neurons: int
    neurons_zero: int
    flops: int = 0
    flops_zero: int = 0
    flops_removable: int = 0


@dataclass(frozen=True)
class SparsityReport:
    """Totals over all Linear and convolution weights; prints as a table, one line a layer.

    weights: entries of the weights (biases not counted). groups: output rows or filters; zero where the whole row is.
    inputs: input columns or channels. neurons: output rows with their bias and the entries of a normalisation that
    follows in an nn.Sequential; zero where all of that is, so that the neuron's output is exactly 0.
    below: None where exact zeros were counted, else the threshold. flops, with an example input (0 without): two for each
    multiplication by a weight in one forward; flops_zero: by a zero weight; flops_removable: by a weight whose whole row or
    column is zero, which a smaller dense layer saves.
    """

    weights: int
    weights_zero: int
    groups: int
    groups_zero: int
    inputs: int
    inputs_zero: int
    neurons: int
    neurons_zero: int
    layers: tuple[LayerSparsity, ...]
    flops: int = 0
    flops_zero: int = 0
    flops_removable: int = 0
    below: float | None = None

    def __str__(self) -> str:
        head = ["layer", "shape", "zero weights", "zero rows", "zero columns", "zero neurons"]
        if self.flops:
            head += ["flops by zeros", "flops removable"]
        rows = [[layer.name, "x".join(map(str, layer.shape)), *_shares(layer, self.flops)] for layer in self.layers]
        table = [head, *rows, ["total", "", *_shares(self, self.flops)]]
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
        first = (
            [] if self.below is None else [f"counted as zero: below {self.below:g}, rows by the mean of their sizes"]
        )
        return "\n".join([*first, lines[0], "-" * max(map(len, lines)), *lines[1:]])


def sparsity_report(
    model: nn.Module,
    example_input: Example | None = None,
    *,
    below: float | None = None,
    include: Include = None,
) -> SparsityReport:
    r"""Count what is exactly zero in a model's Linear and convolution weights.

    Args:
        model: any nn.Module with such layers; a tied weight is counted once. A weight that is computed (a parametrization, a
            mask of torch.nn.utils.prune) is counted as it is in evaluation mode. Gates between layers are not weights.
        example_input: a tensor, a tuple of arguments or a dict of named ones; the model runs once on it, in evaluation mode,
            and the flops of each layer are counted. A weight that a function uses without its layer counts as unused.
        below: the papers' rule in the place of exact zeros: an entry counts as zero where abs(w) < below, a row, column or
            neuron where the mean of abs(w) over it is. The papers take 1e-5.
        include: which weights to count instead, by the rules of `Regularizer`: "rnn.weight*" for recurrent ones. Flops are
            counted for Linear layers and convolutions only.

    Returns: a frozen SparsityReport (weights, weights_zero, groups, groups_zero, inputs, inputs_zero, neurons,
        neurons_zero, layers, flops, flops_zero, flops_removable, below), which prints as a table.

    Raises: ValueError for a model without such weights or a negative `below`; TypeError for what is no
        module and for another kind of example.

    When not to use: for weights that are small but not zero: without `below` they are not counted, whatever their size; with
        it the number is no property of the model that you ship.

    >>> import torch, sparselayers as sl
    >>> layer = torch.nn.Linear(3, 2)
    >>> _ = layer.weight.data[0].zero_(), layer.bias.data.fill_(1.0)
    >>> report = sl.sparsity_report(layer, torch.ones(5, 3))
    >>> report.weights_zero, report.groups_zero, report.neurons_zero
    (3, 1, 0)
    >>> report.flops, report.flops_zero
    (60, 30)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}; for a tensor: (x == 0).sum()")
    if below is not None:
        checks.number(below, "below", low=0.0)
    computed = {} if include is not None else _computed(model)
    holders = {name: holder for name, (holder, _) in computed.items()}
    owned = dict(model.named_parameters(remove_duplicate=False))
    every = owned | {name: weight for name, (_, weight) in computed.items()}
    parameters = {name: p.detach() for name, p in every.items()}
    used = {} if example_input is None else uses(model, example_input)
    blocks = [neuron(model, holders, every, name) for name in computed]
    columns_of = {name: along("input", name, every[name], holder) for name, holder in holders.items()}
    if not computed or None in reasons(model, owners_of(model), "neuron", None, None).values():
        blocks += cut_model(model, "neuron", include)
        columns_of |= {part.name: part for (part,) in cut_model(model, "input", include)}
    order = {path: i for i, (path, _) in enumerate(model.named_modules(remove_duplicate=False))}
    layers = []
    for block in sorted(blocks, key=lambda block: order[block[0].name.rpartition(".")[0]]):
        name = block[0].name
        weight = parameters[name]
        zero = weight == 0 if below is None else weight.abs() < below
        sides = [(part, _zero_rows([(part, weight)], below)) for part in (block[0], columns_of[name])]
        neurons = _zero_rows([(part, parameters[part.name]) for part in block], below)
        (_, rows), (_, columns) = sides
        removable = torch.zeros_like(zero)
        for part, empty in sides:
            view = part.cut(removable)
            view.logical_or_(empty.view(*view.shape[: part.lead], *[1] * (view.ndim - part.lead)))
        entries, rate = (weight.numel(), int(zero.sum())), 2 * used.get(id(owned.get(name, holders.get(name))), 0)
        counts = [n for group in (rows, columns, neurons) for n in (group.numel(), int(group.sum()))]
        flops = (rate * entries[0], rate * entries[1], rate * int(removable.sum()))
        numbers = dict(zip((*_COUNTS, *_FLOPS), (*entries, *counts, *flops), strict=True))
        layers.append(LayerSparsity(name, tuple(weight.shape), **numbers))
    totals = {field: sum(getattr(layer, field) for layer in layers) for field in (*_COUNTS, *_FLOPS)}
    return SparsityReport(**totals, layers=tuple(layers), below=below)


def _computed(model: nn.Module) -> dict[str, tuple[nn.Module, nn.Parameter]]:
    """Name -> (layer, weight) of the layers whose weight is no parameter: parametrized or masked, as it is in evaluation."""
    with torch.no_grad(), evaluating(model):
        return {
            f"{path}.weight" if path else "weight": (
                layer,
                nn.Parameter(cast(Tensor, layer.weight), requires_grad=False),
            )
            for path, layer in model.named_modules()
            if isinstance(layer, nn.Linear | _ConvNd) and "weight" not in layer._parameters
        }


def _zero_rows(parts: list[tuple[Part, Tensor]], below: float | None) -> Tensor:
    """(n_groups,): True where a row, over all parts together, is zero, or its mean size lies below the bound."""
    rows = torch.cat([part.rows(part.cut(p)) for part, p in parts], 1)
    return (rows == 0).all(1) if below is None else rows.abs().mean(1) < below


_COUNTS = (
    "weights",
    "weights_zero",
    "groups",
    "groups_zero",
    "inputs",
    "inputs_zero",
    "neurons",
    "neurons_zero",
)
_FLOPS = ("flops", "flops_zero", "flops_removable")


def _shares(counts: LayerSparsity | SparsityReport, with_flops: int) -> list[str]:
    values = [getattr(counts, field) for field in _COUNTS]
    pairs = list(zip(values[1::2], values[::2], strict=True))
    if with_flops:
        pairs += [(counts.flops_zero, counts.flops), (counts.flops_removable, counts.flops)]
    return [f"{zero}/{total} ({zero / max(total, 1):.1%})" for zero, total in pairs]
