"""How sparse a model is, counted in exact zeros."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .groups import cut_model


@dataclass(frozen=True)
class LayerSparsity:
    """One weight: its name and shape, and how many of its entries, output rows, input columns and neurons are zero."""

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


@dataclass(frozen=True)
class SparsityReport:
    """Totals over all Linear and convolution weights; prints as a table, one line a layer.

    weights: entries of the weights (biases not counted). groups: output rows or filters; zero where the whole row is.
    inputs: input columns or channels. neurons: output rows with their bias and the entries of a normalisation that
    follows in an nn.Sequential; zero where all of that is, so that the neuron's output is exactly 0.
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

    def __str__(self) -> str:
        head = ("layer", "shape", "zero weights", "zero rows", "zero columns", "zero neurons")
        rows = [(layer.name, "x".join(map(str, layer.shape)), *_shares(layer)) for layer in self.layers]
        table = [head, *rows, ("total", "", *_shares(self))]
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def sparsity_report(model: nn.Module) -> SparsityReport:
    r"""Count what is exactly zero in a model's Linear and convolution weights.

    Args:
        model: any nn.Module with such layers; a tied weight is counted once.

    Returns: a frozen SparsityReport (weights, weights_zero, groups, groups_zero, inputs, inputs_zero, neurons,
        neurons_zero, layers), which prints as a table.

    Raises: ValueError for a model without such weights.

    When not to use: for weights that are small but not zero: they are not counted, whatever their size.

    >>> import torch, sparselayers as sl
    >>> layer = torch.nn.Linear(3, 2)
    >>> _ = layer.weight.data[0].zero_(), layer.bias.data.fill_(1.0)
    >>> report = sl.sparsity_report(layer)
    >>> report.weights_zero, report.groups_zero, report.neurons_zero
    (3, 1, 0)
    """
    parameters = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
    columns_of = {part.name: part for (part,) in cut_model(model, "input", None)}
    layers = []
    for block in cut_model(model, "neuron", None):
        name = block[0].name
        alive = parameters[name] != 0
        parts = [part.rows(part.cut(parameters[part.name])) for part in block]
        rows = (parts[0] != 0).any(1)
        neuron = torch.stack([(part != 0).any(1) for part in parts]).any(0)
        inputs = columns_of[name]
        columns = (inputs.rows(inputs.cut(parameters[name])) != 0).any(1)
        layers.append(
            LayerSparsity(
                name,
                tuple(parameters[name].shape),
                alive.numel(),
                int((~alive).sum()),
                rows.numel(),
                int((~rows).sum()),
                columns.numel(),
                int((~columns).sum()),
                neuron.numel(),
                int((~neuron).sum()),
            )
        )
    totals = {field: sum(getattr(layer, field) for layer in layers) for field in _COUNTS}
    return SparsityReport(**totals, layers=tuple(layers))


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


def _shares(counts: LayerSparsity | SparsityReport) -> list[str]:
    values = [getattr(counts, field) for field in _COUNTS]
    pairs = zip(values[1::2], values[::2], strict=True)
    return [f"{zero}/{total} ({zero / max(total, 1):.1%})" for zero, total in pairs]
