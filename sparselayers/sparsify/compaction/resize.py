"""Layers given the shapes of a smaller state_dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from . import operations as ops
from .channels import Channels
from .flow import Flow
from .layers import is_per_channel
from .replay import RESHAPES, resized
from .rewriting import Changes
from .selected import PLAIN, SELECTED


@torch.no_grad()
def resize_layers(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Every tensor in the shape that state_dict has for it, in place, its values any; and the sizes that layers note."""
    for path, layer in model.named_modules():
        prefix = f"{path}." if path else ""
        for held in (layer._parameters, layer._buffers):
            for name, tensor in held.items():
                wanted = state_dict.get(prefix + name)
                if tensor is not None and wanted is not None and wanted.shape != tensor.shape:
                    _resize(layer, name, tensor, wanted.shape)
        plain = PLAIN.get(type(layer), type(layer))
        index = state_dict.get(f"{prefix}index")
        if index is not None and plain in SELECTED:
            layer.__class__ = SELECTED[plain]
            layer.register_buffer("index", torch.zeros_like(index, device=layer.weight.device))


def _resize(layer: Any, name: str, tensor: Tensor, shape: torch.Size) -> None:
    smaller = tensor.new_zeros(shape)
    if isinstance(tensor, nn.Parameter):
        smaller = nn.Parameter(smaller, requires_grad=tensor.requires_grad)
    setattr(layer, name, smaller)
    if name != "weight":
        if is_per_channel(layer) and not isinstance(layer, nn.PReLU):
            layer.num_features = shape[0]
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = shape
    elif isinstance(layer, _ConvNd):
        first, second = shape[:2]
        if layer.groups > 1:  # depthwise: a group for each input channel
            layer.groups = first * layer.in_channels // layer.out_channels
        sides = (first, second * layer.groups)
        transposed = isinstance(layer, _ConvTransposeNd)
        layer.in_channels, layer.out_channels = sides if transposed else sides[::-1]
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = shape[0]
    elif is_per_channel(layer):
        layer.num_features = shape[0]


def resized_views(flow: Flow, inputs: list[object]) -> Changes:
    """The sizes written in the code of a module that was traced whole and then resized, as they are now."""
    runner = _Views(flow)
    with torch.no_grad():
        runner.run(*inputs)
    return runner.changes


class _Views(fx.Interpreter):
    def __init__(self, flow: Flow) -> None:
        super().__init__(flow.traced.module, graph=flow.traced.graph)
        self.flow = flow
        self.changes: Changes = {}

    def run_node(self, n: fx.Node) -> object:
        value, shape = self.flow.values[n], self.flow.traced.shape(n)
        if ops.name_of(n) not in RESHAPES or n.kwargs or not isinstance(value, Channels) or shape is None:
            return super().run_node(n)
        source = self.env[n.all_input_nodes[0]]
        sizes = list(shape)
        sizes[value.axis] = shape[value.axis] * source.numel() // max(shape.numel(), 1)
        changed = resized(n, torch.Size(sizes))
        if changed != (n.args, n.kwargs):
            self.changes[n] = changed
        return ops.run(n, self.flow.traced, self.env.__getitem__, changed)
