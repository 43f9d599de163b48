"""How often each weight of a layer is used in one forward pass: what turns counts of weights into counts of operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Example = Tensor | tuple | Mapping[str, object]


@torch.no_grad()
def uses(model: nn.Module, example_input: Example) -> Counter[int]:
    """id of a Linear's or convolution's weight -> multiplications by each of its entries in model(example_input).

    A convolution multiplies by an entry once for every place of the output (of the input where it is transposed), its
    padding included. Modules run in evaluation mode, so that no statistics move, and get their own mode back.
    """
    if not isinstance(example_input, Tensor | tuple | Mapping):
        raise TypeError(
            "example_input must be a tensor, a tuple of arguments or a dict of named ones, "
            f"got {type(example_input).__name__}"
        )
    counts: Counter[int] = Counter()

    def count(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        channels = layer.out_features if isinstance(layer, nn.Linear) else cast(_ConvNd, layer).out_channels
        seen, width = output, channels
        if isinstance(layer, _ConvTransposeNd):
            seen, width = inputs[0], layer.in_channels
        counts[id(layer.weight)] += seen.numel() // max(cast(int, width), 1)

    modes = {module: module.training for module in model.modules()}
    hooks = [module.register_forward_hook(count) for module in modes if isinstance(module, nn.Linear | _ConvNd)]
    try:
        model.eval()
        if isinstance(example_input, Mapping):
            model(**example_input)
        else:
            model(*(example_input if isinstance(example_input, tuple) else (example_input,)))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return counts
