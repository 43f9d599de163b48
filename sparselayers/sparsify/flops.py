"""How often each weight of a layer is used in one forward pass: what turns counts of weights into counts of operations."""

from __future__ import annotations

from collections import Counter
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .cuts import is_conv1d
from .evaluation import Example, call, check_example, evaluating


@torch.no_grad()
def uses(model: nn.Module, example_input: Example) -> Counter[int]:
    """id of a Linear's or convolution's weight -> multiplications by each of its entries in model(example_input).

    Where the weight is no parameter, but computed from some (a parametrization, a mask), it is the id of the layer.

    A convolution multiplies by an entry once for every place of the output (of the input where it is transposed), its
    padding included. Modules run in evaluation mode, so that no statistics move, and get their own mode back.
    """
    check_example(example_input)
    counts: Counter[int] = Counter()

    def count(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        weight = cast(Tensor, layer.weight)
        seen = inputs[0] if isinstance(layer, _ConvTransposeNd) else output
        width = weight.shape[1 if is_conv1d(layer) else 0]
        counts[id(weight) if isinstance(weight, nn.Parameter) else id(layer)] += seen.numel() // max(width, 1)

    layers = [module for module in model.modules() if isinstance(module, nn.Linear | _ConvNd) or is_conv1d(module)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with evaluating(model):
            call(model, example_input)
    finally:
        for hook in hooks:
            hook.remove()
    return counts
