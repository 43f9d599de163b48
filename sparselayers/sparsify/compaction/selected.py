"""Layers that read only some channels of what comes in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .small_conv import SmallConv2d, is_small


class Selected(nn.Module):
    """Hands the entries `index` of the channel axis to the layer that it is mixed into."""

    index: Tensor
    channel_axis: int

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.index_select(self.channel_axis, self.index))


class SelectedLinear(Selected, nn.Linear):
    r"""A linear layer on some of the features that come in: y = x[..., index] W^T + b, with in_features = len(index).

    `compact` makes it where a column of W is zero but the feature has to stay, for others that read it.
    """

    channel_axis = -1


class SelectedConv1d(Selected, nn.Conv1d):
    """nn.Conv1d on the channels `index`, as SelectedLinear."""

    channel_axis = -2


class SelectedConv2d(Selected, SmallConv2d):
    """nn.Conv2d on the channels `index`, as SelectedLinear."""

    channel_axis = -3


class SelectedConv3d(Selected, nn.Conv3d):
    """nn.Conv3d on the channels `index`, as SelectedLinear."""

    channel_axis = -4


SELECTED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SelectedLinear,
    nn.Conv1d: SelectedConv1d,
    nn.Conv2d: SelectedConv2d,
    nn.Conv3d: SelectedConv3d,
}
PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    SmallConv2d: nn.Conv2d,
    SelectedLinear: nn.Linear,
    SelectedConv1d: nn.Conv1d,
    SelectedConv2d: nn.Conv2d,
    SelectedConv3d: nn.Conv3d,
}


def with_index(layer: nn.Module, index: Tensor | None, output: torch.Size) -> None:
    """Make the layer one that selects, or with None one that does not; in place, so that whoever holds it holds this.

    `output` is the shape of its output on the example, by which a convolution may become a small one.
    """
    plain = PLAIN.get(type(layer), type(layer))
    if index is not None:
        layer.__class__ = SELECTED[plain]
        layer.register_buffer("index", index)
        return
    if isinstance(layer, Selected):
        del layer.index
    layer.__class__ = SmallConv2d if is_small(layer, output) else plain


def index_of(layer: nn.Module, n_inputs: int) -> Tensor:
    """Which of n_inputs channels the layer reads."""
    return layer.index.cpu() if isinstance(layer, Selected) else torch.arange(n_inputs)
