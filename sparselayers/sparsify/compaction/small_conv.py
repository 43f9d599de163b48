"""A convolution so small that setting it up costs more than its arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...ops.eager import is_plain_eager

thnn_conv2d: Callable = torch._C._nn.thnn_conv2d  # type: ignore[attr-defined]  # less work a call than torch.ops.aten

# Multiplications in one call up to which the routine without set-up was the faster one (1 and 2 threads, kernels of 3 and 5).
FEW = 1_000_000


class SmallConv2d(nn.Conv2d):
    """nn.Conv2d, by the routine of torch that needs no set-up where a call has few multiplications.

    On the CPU, in float32; elsewhere, and for larger batches, it is nn.Conv2d. What oneDNN sets up at each call takes as long
    as a million multiplications, so that a small batch through few channels would gain little from having lost the others.
    `compact` makes it where `is_small`.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        here = input.ndim == 4 and input.device.type == "cpu" and input.dtype == weight.dtype == torch.float32
        # Each entry of the input meets each weight of its channel, but for the border.
        if here and 0 < input.numel() * weight.numel() <= FEW * self.in_channels and _plain(input, weight):
            return thnn_conv2d(input, weight, self.kernel_size, bias, self.stride, self.padding)
        return super()._conv_forward(input, weight, bias)


def is_small(layer: nn.Module, output: torch.Size) -> bool:
    """Whether a convolution can be done by that routine, and is small for one sample of this output shape."""
    return (
        isinstance(layer, nn.Conv2d)
        and max(layer.kernel_size) > 3  # for smaller kernels torch has a way of its own to the other routine
        and layer.groups == 1
        and set(layer.dilation) == {1}
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.weight.numel() * math.prod(output[-2:]) <= FEW
    )


def _plain(input: Tensor, weight: Tensor) -> bool:
    return (
        is_plain_eager(input)
        and type(weight) is nn.Parameter
        and input.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
    )
