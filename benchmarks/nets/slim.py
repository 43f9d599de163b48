"""LeNet-5-Caffe, its count of zeros, and the cut that takes dead neurons out while it trains."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

PARAMETERS = 431_080  # biases among them, as the papers count
NEURONS = 1_370  # 20 + 50 filters, 800 + 500 inputs of the fully connected layers
SIZES = {"conv1": 25, "conv2": 500, "fc1": 500, "fc2": 10}  # of a group of the whole network


class Take(nn.Module):
    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(-1, self.index)


def lenet(a: int = 20, b: int = 50, taken: Tensor | None = None, hidden: int = 500) -> nn.Sequential:
    inputs = 16 * b if taken is None else len(taken)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, a, 5),
            pool1=nn.MaxPool2d(2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(a, b, 5),
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            flat=nn.Flatten(),
            take=nn.Identity() if taken is None else Take(taken),
            fc1=nn.Linear(inputs, hidden),
            relu3=nn.ReLU(),
            fc2=nn.Linear(hidden, 10),
        )
    )


def alive(model: nn.Sequential) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    w = {name: getattr(model, name).weight.detach() for name in SIZES}
    take = model.take.index if isinstance(model.take, Take) else torch.arange(w["fc1"].shape[1])
    a = (w["conv1"] != 0).flatten(1).any(1) & (w["conv2"] != 0).any(0).flatten(1).any(1)
    b = (w["conv2"] != 0).flatten(1).any(1)
    i = (w["fc1"] != 0).any(0) & b[take // 16]
    b = b & torch.zeros(len(b), dtype=torch.bool).index_fill(0, take[i] // 16, True)
    h = (w["fc2"] != 0).any(0) & (w["fc1"] != 0).any(1)
    return a, b, i, h


def left(model: nn.Sequential) -> tuple[int, int]:
    """Parameters and neurons that a cut would leave."""
    a, b, i, h = sizes(model)
    return 26 * a + b * (25 * a + 1) + h * (i + 1) + 10 * (h + 1), a + b + i + h


def sizes(model: nn.Sequential) -> list[int]:
    """Filters, filters, inputs of fc1, inputs of fc2 that are left."""
    return [int(x.sum()) for x in alive(model)]


@torch.no_grad()
def cut(model: nn.Sequential) -> nn.Sequential:
    a, b, i, h = alive(model)
    if all(x.all() for x in (a, b, i, h)):
        return model
    take = model.take.index if isinstance(model.take, Take) else torch.arange(len(i))
    conv1, conv2, fc1, fc2 = (getattr(model, name) for name in SIZES)
    # What a dead neuron says all the time goes into the next bias.
    said1 = torch.where((conv1.weight != 0).flatten(1).any(1), 0, conv1.bias.relu())
    bias2 = conv2.bias + conv2.weight.sum((2, 3)) @ said1
    said2 = torch.where((conv2.weight != 0).flatten(1).any(1), 0, bias2.relu())
    bias3 = fc1.bias + fc1.weight @ said2[take // 16]
    said3 = torch.where((fc1.weight != 0).any(1), 0, bias3.relu())
    bias4 = fc2.bias + fc2.weight @ said3
    new = torch.full((len(b),), -1, dtype=torch.long)
    new[b] = torch.arange(int(b.sum()))
    small = lenet(int(a.sum()), int(b.sum()), new[take[i] // 16] * 16 + take[i] % 16, int(h.sum()))
    for name, weight, bias in (
        ("conv1", conv1.weight[a], conv1.bias[a]),
        ("conv2", conv2.weight[b][:, a], bias2[b]),
        ("fc1", fc1.weight[h][:, i], bias3[h]),
        ("fc2", fc2.weight[:, h], bias4),
    ):
        getattr(small, name).weight.copy_(weight)
        getattr(small, name).bias.copy_(bias)
    return small
