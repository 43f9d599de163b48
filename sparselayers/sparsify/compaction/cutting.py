"""The cuts themselves: layers lose channels, and what constants added goes to their biases."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from .flow import Flow
from .layers import Entries, Mixer, constant_part
from .selected import PLAIN, SELECTED, with_index


@torch.no_grad()
def cut(flow: Flow, alive: Tensor) -> None:
    """Cut every layer of the graph to the slots that are alive, in place."""
    for mixer in flow.mixers:
        _cut_mixer(mixer, alive)
    for entries in flow.entries:
        _cut_entries(entries, alive[entries.slots])


def _cut_mixer(mixer: Mixer, alive: Tensor) -> None:
    layer, rows, columns = mixer.layer, alive[mixer.out.slots], alive[mixer.into.slots]
    selects = PLAIN.get(type(layer), type(layer)) in SELECTED
    if selects:
        columns = columns & mixer.read(rows)
        if not columns.any():
            columns[int(alive[mixer.into.slots].nonzero()[0])] = True
    left = alive[mixer.upstream.slots]
    if rows.all() and columns.all() and left.all():
        return
    folded = ~columns & mixer.foldable & (mixer.into.const != 0)
    if folded.any():
        bias = constant_part(layer, mixer.into.const, folded)
        _replace(layer, "bias", bias.to(layer.weight))
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = int(columns.sum()), int(rows.sum())
    else:
        layer.in_channels, layer.out_channels = int(columns.sum()), int(rows.sum())
    axes = (1, 0) if isinstance(layer, _ConvTransposeNd) else (0, 1)
    _replace(layer, "weight", _taken(_taken(layer.weight, axes[0], rows), axes[1], columns))
    if layer.bias is not None:
        _replace(layer, "bias", _taken(layer.bias, 0, rows))
    if selects:
        # Where the columns that stay are now among the channels that come in.
        index = (left.cumsum(0) - 1)[mixer.index[columns]]
        everything = torch.equal(index, torch.arange(int(left.sum())))
        with_index(layer, None if everything else index.to(layer.weight.device), mixer.output)


def _cut_entries(entries: Entries, stays: Tensor) -> None:
    if stays.all():
        return
    for name in entries.names:
        tensor = getattr(entries.owner, name)
        if tensor is not None:
            _replace(entries.owner, name, _taken(tensor, entries.axis, stays))
    for count in entries.counts:
        setattr(entries.owner, count, int(stays.sum()))


def _taken(tensor: Tensor, axis: int, which: Tensor) -> Tensor:
    return tensor.detach().index_select(axis, which.nonzero().flatten().to(tensor.device))


def _replace(owner: nn.Module, name: str, tensor: Tensor) -> None:
    """A tensor in the place of a parameter or buffer; a parameter stays one, frozen if it was."""
    old = getattr(owner, name)
    if isinstance(old, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
    setattr(owner, name, tensor)
