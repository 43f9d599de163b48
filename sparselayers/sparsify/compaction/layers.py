"""Layers with weights: how constants pass through them, and which channels they read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ..gates import HardConcrete
from .channels import Channels, wide
from .selected import PLAIN

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@dataclass(frozen=True, eq=False)
class Mixer:
    """A layer whose outputs are sums over its inputs: Linear, a convolution of one group.

    Attributes:
        layer: the module.
        upstream: the channels of the tensor that comes in.
        index: which of them the layer reads, in the order of its weight's columns.
        into: the channels at those columns.
        out: the channels that it makes.
        foldable: (inputs,), True where the input is a constant that the bias can take over, or 0.
        output: the shape of what it gives for the example.
    """

    layer: nn.Linear | _ConvNd
    upstream: Channels
    index: Tensor
    into: Channels
    out: Channels
    foldable: Tensor
    output: torch.Size

    def read(self, rows: Tensor) -> Tensor:
        """(inputs,): True where one of the outputs `rows` depends on the input and no bias can stand for it."""
        return nonzero(self.layer)[rows].any(0) & ~self.foldable


@dataclass(frozen=True, eq=False)
class Entries:
    """Tensors with an entry (a slice of their axis) for each channel, which go with it."""

    owner: nn.Module
    names: tuple[str, ...]
    slots: Tensor
    axis: int = 0
    counts: tuple[str, ...] = ()  # the attributes of the owner that say how many there are


def matrix(layer: nn.Linear | _ConvNd) -> Tensor:
    """The weight as (outputs, inputs, places); a view."""
    weight = layer.weight.detach()
    if isinstance(layer, _ConvTransposeNd):
        weight = weight.transpose(0, 1)
    return weight.unsqueeze(-1) if weight.ndim == 2 else weight.flatten(2)


def nonzero(layer: nn.Linear | _ConvNd) -> Tensor:
    """(outputs, inputs): whether any weight between the two is not zero."""
    return (matrix(layer) != 0).any(-1).cpu()


def is_mixer(layer: nn.Module) -> bool:
    """A layer of exactly these classes, one group."""
    kind = PLAIN.get(type(layer), type(layer))
    return kind is nn.Linear or (kind in CONVS + TRANSPOSED and cast(_ConvNd, layer).groups == 1)


def is_depthwise(layer: nn.Module) -> bool:
    """A convolution in which each output channel reads one input channel."""
    return type(layer) in CONVS and 1 < cast(_ConvNd, layer).groups == cast(_ConvNd, layer).in_channels


def channel_axis(layer: nn.Linear | _ConvNd, ndim: int) -> int:
    """The axis of channels in an input or output of that many axes."""
    return ndim - 1 if isinstance(layer, nn.Linear) else ndim - 1 - len(layer.kernel_size)


def sees_constants(layer: nn.Linear | _ConvNd) -> bool:
    """Whether a constant input is the same at every place where the layer looks: no zeros beyond the border."""
    if isinstance(layer, nn.Linear):
        return True
    if isinstance(layer, _ConvTransposeNd):
        return False  # near the border, and between strides, fewer places of the input reach an output
    if isinstance(layer.padding, str):
        unpadded = layer.padding == "valid" or set(layer.kernel_size) == {1}
    else:
        unpadded = not any(layer.padding)
    return unpadded or layer.padding_mode != "zeros"


def mixed(layer: nn.Linear | _ConvNd, into: Channels, slots: Tensor, axis: int) -> tuple[Channels, Tensor]:
    """What is known of the layer's outputs, and which inputs its bias can take over."""
    steady = into.known & ((into.const == 0) | sees_constants(layer))
    weights = nonzero(layer)
    known = ~(weights & ~steady).any(1)
    const = (constant_part(layer, into.const, steady) * known).to(into.const.dtype)
    foldable = steady & ((into.const == 0) | (layer.bias is not None))
    return Channels(axis, slots, known, const).learned(known, const), foldable


def constant_part(layer: nn.Linear | _ConvNd, const: Tensor, which: Tensor) -> Tensor:
    """(outputs,), in double precision: the bias and what the inputs `which` add at their constants."""
    # Summed over the places first: a constant input meets each of them once.
    weight = wide(matrix(layer)[:, which.to(layer.weight.device)]).sum(-1).cpu()
    bias = 0 if layer.bias is None else wide(layer.bias.detach()).cpu()
    return weight @ wide(const[which]).to(weight) + bias


def depthwise(layer: _ConvNd, into: Channels) -> Channels:
    """The outputs of a depthwise convolution; they share the slots of the inputs that they read."""
    times = layer.out_channels // layer.in_channels
    out = into.take(torch.arange(layer.in_channels).repeat_interleave(times))
    weight = matrix(layer)
    empty = ~(weight != 0).any(-1).any(-1).cpu()
    bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias.detach().cpu()
    const = wide(weight).sum((1, 2)).cpu() * wide(out.const) + wide(bias)
    known = empty | (out.known & ((out.const == 0) | sees_constants(layer)))
    return out.learned(known, const.to(out.const.dtype))


def is_per_channel(layer: nn.Module) -> bool:
    """A normalisation that does not mix channels, a PReLU with a slope for each, random gates."""
    slopes = type(layer) is nn.PReLU and layer.num_parameters > 1
    return slopes or type(layer) in (*BATCH_NORMS, *INSTANCE_NORMS, HardConcrete)


def entry_axis(layer: nn.Module, ndim: int) -> int:
    """The axis of a per-channel layer's channels."""
    if isinstance(layer, HardConcrete):
        return layer.dim % ndim
    return ndim - 1 - int(type(layer).__name__[-2]) if type(layer) in INSTANCE_NORMS else 1


def entry_names(layer: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tensors of a per-channel layer, and the attributes that count their entries."""
    if isinstance(layer, nn.PReLU):
        return ("weight",), ("num_parameters",)
    if isinstance(layer, HardConcrete):
        return ("log_alpha",), ("n",)
    return ("weight", "bias", "running_mean", "running_var"), ("num_features",)


def scaled(layer: nn.Module, into: Channels, ndim: int) -> Channels:
    """The outputs of a per-channel layer in evaluation mode; constant too where gamma, or the gate, is 0."""
    known, const = torch.zeros_like(into.known), into.const
    if isinstance(layer, HardConcrete):
        gates = layer().detach().cpu()
        return into.learned(into.known | (gates == 0), const * gates.to(const.dtype))
    # Without running statistics a norm takes those of the input, in which a constant is not the same for every input.
    beside = (
        layer.weight if isinstance(layer, nn.PReLU) else layer.running_mean if isinstance(layer, _BatchNorm) else None
    )
    if beside is not None:
        wide = [1] * ndim
        wide[1] = len(into.slots)
        known, const = into.known, layer(into.const.to(beside.device).view(wide)).detach().flatten().cpu()
    if isinstance(layer, (_BatchNorm, _InstanceNorm)) and layer.weight is not None:
        dead = (layer.weight.detach() == 0).cpu()
        known, const = known | dead, torch.where(dead, layer.bias.detach().cpu().to(const.dtype), const)
    return into.learned(known, const)
