"""LeNet-5-Caffe, its count of zeros, and what is left of it when its dead neurons are cut out."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

import sparselayers as sl
from nets.data import Split
from nets.record import Record
from nets.train import error

PARAMETERS = 431_080  # biases among them, as the papers count
NEURONS = 1_370  # 20 + 50 filters, 800 + 500 inputs of the fully connected layers
SIZES = {"conv1": 25, "conv2": 500, "fc1": 500, "fc2": 10}  # of a group of the whole network


def lenet() -> nn.Sequential:
    """The whole network; pooling comes before the ReLU, which gives the same and costs a quarter."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            pool1=nn.MaxPool2d(2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            flat=nn.Flatten(),
            fc1=nn.Linear(800, 500),
            relu3=nn.ReLU(),
            fc2=nn.Linear(500, 10),
        )
    )


def cut(model: nn.Sequential) -> nn.Sequential:
    """The model without its dead neurons; itself where there are none."""
    if sum(p.numel() for p in model.parameters()) == left(model)[0]:
        return model
    return sl.compact(model, torch.zeros(2, 1, 28, 28, device=model.conv1.weight.device))


def sizes(model: nn.Sequential) -> list[int]:
    """Filters, filters, inputs of fc1, inputs of fc2 that are alive: they have weights, and somebody reads them."""
    weights = {name: (getattr(model, name).weight.detach() != 0) for name in SIZES}
    maps = weights["conv2"].flatten(1).any(1)
    inputs = weights["fc1"].any(0) & maps[taken(model) // 16]
    maps = torch.zeros_like(maps).index_fill(0, taken(model)[inputs] // 16, True)
    filters = weights["conv1"].flatten(1).any(1) & weights["conv2"][maps].any(0).flatten(1).any(1)
    hidden = weights["fc2"].any(0) & weights["fc1"].any(1)
    return [int(x.sum()) for x in (filters, maps, inputs, hidden)]


def taken(model: nn.Sequential) -> Tensor:
    """Which places of the maps fc1 reads."""
    everywhere = torch.arange(model.fc1.in_features, device=model.fc1.weight.device)
    return getattr(model.fc1, "index", everywhere)


def left(model: nn.Sequential) -> tuple[int, int]:
    """Parameters and neurons that a cut leaves."""
    a, b, i, h = sizes(model)
    return 26 * a + b * (25 * a + 1) + h * (i + 1) + 10 * (h + 1), a + b + i + h


@torch.no_grad()
def grown(small: nn.Sequential) -> nn.Sequential:
    """The whole network with a cut one inside and zeros around it: the same outputs."""
    whole, (a, b, _, h) = lenet(), sizes(small)
    for p in whole.parameters():
        p.zero_()
    whole.conv1.weight[:a], whole.conv1.bias[:a] = small.conv1.weight, small.conv1.bias
    whole.conv2.weight[:b, :a], whole.conv2.bias[:b] = small.conv2.weight, small.conv2.bias
    whole.fc1.weight[:h, taken(small)], whole.fc1.bias[:h] = small.fc1.weight, small.fc1.bias
    whole.fc2.weight[:, :h] = small.fc2.weight
    whole.fc2.bias.copy_(small.fc2.bias)
    return whole


def measured(model: nn.Module, split: Split, **what: Any) -> Record:
    """What is left and how well it does; the model is a cut one, and what was cut counts as zero."""
    parameters = sum(int(p.count_nonzero()) for p in model.parameters())
    return what | {
        "sizes": sizes(model),
        "weights": parameters,
        "neurons": sum(sizes(model)),
        "held": error(model, split.held_x, split.held_y),
        "test": error(model, split.test_x, split.test_y),
    }
