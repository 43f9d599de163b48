"""compact() on code that leads a reader of its graph astray: sizes, aliases, mutations, values of the example."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparselayers as sl


class Net(nn.Module):
    """last(f(first(x))); of ten neurons three are constant, not 0, and two are not read."""

    def __init__(self, f) -> None:
        super().__init__()
        self.first, self.last, self.f = nn.Linear(6, 10), nn.Linear(10, 4), f
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
            self.first.weight[:3] = 0
            self.last.weight[:, 3:5] = 0
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


def through(f):
    """The forward that puts f between the two layers."""
    return lambda net, x: net.last(f(net.first(x)))


@dataclasses.dataclass
class Out:
    y: Tensor


def floor_in_place(net: Net, x: Tensor) -> Tensor:
    h = net.first(x)
    same = h
    h //= 2
    return net.last(same)


def add_in_place_through_a_view(net: Net, x: Tensor) -> Tensor:
    h = net.first(x)
    view = h.view(-1, 10)
    view += x[:, :1]
    return net.last(h)


def add_in_place_through_plus(net: Net, x: Tensor) -> Tensor:
    h = net.first(x)
    (+h).add_(x[:, :1])
    return net.last(h)


def out_argument(net: Net, x: Tensor) -> Tensor:
    h = net.first(x)
    torch.add(h, x[:, :1], out=h)
    return net.last(h)


def kind_of_argument(net: Net, x: Tensor) -> Tensor:
    return net.last(F.relu(net.first(x)) if isinstance(x, Tensor) else net.first(x))


def input_in_place(net: Net, x: Tensor) -> Tensor:
    return net.last(net.first(x.mul_(2)))


# name -> forward, hidden neurons that are left: 8 where the constant ones depend on the input after all, 5 where they do not
FORWARDS = {
    "the batch's size as a factor": (through(lambda h: h * h.shape[0]), 8),
    "the batch's size as a divisor": (through(lambda h: h / h.size(0)), 8),
    "what is 0 times a size": (through(lambda h: (h - h) * h.shape[0]), 5),
    "what is 0 over a size": (through(lambda h: (h - h) / h.shape[0]), 5),
    "a number over what is 0": (through(lambda h: h.shape[0] / (h - h + 1)), 8),
    "an entry of the example as a factor": (lambda net, x: net.last(net.first(x) * x.max().item()), 8),
    "an entry of the example as a bound": (lambda net, x: net.last(net.first(x).clamp(min=x.max().item())), 8),
    "//= beside another name": (floor_in_place, 8),
    "+= on a view": (add_in_place_through_a_view, 10),
    "add_ on what + gave": (add_in_place_through_plus, 8),
    "out=": (out_argument, 10),
    "the kind of an argument": (kind_of_argument, 8),
    "the input in place": (input_in_place, 5),
    "a size of the layer": (lambda net, x: net.last(net.first(x)) / net.first.out_features, 5),
    "a dataclass": (lambda net, x: Out(net.last(net.first(x))), 5),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_code_that_hides_what_it_does(name: str) -> None:
    f, left = FORWARDS[name]
    net, x = Net(f), torch.randn(3, 6, dtype=torch.float64)
    example = x.clone()
    small = sl.compact(net, example)
    assert torch.equal(example, x)  # nobody wrote into the example
    assert small.first.out_features == left
    for rows in (3, 1, 7):
        x = 3 * torch.randn(rows, 6, dtype=torch.float64)
        with torch.no_grad():
            wanted, found = net(x.clone()), small(x.clone())
        one, other = (out.y if isinstance(out, Out) else out for out in (wanted, found))
        torch.testing.assert_close(other, one, rtol=0, atol=1e-10)


def test_sizes_read_from_layers_keep_the_class() -> None:
    net = Net(lambda net, x: net.last(net.first(x).view(-1, net.last.in_features)))
    small = sl.compact(net, torch.randn(3, 6, dtype=torch.float64))
    assert type(small) is Net
    assert small.last.in_features == 5


class Convolutions(nn.Module):
    """Two convolutions with f between; the first has a constant channel, and the example is small."""

    def __init__(self, f) -> None:
        super().__init__()
        self.a, self.b, self.f = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1), f
        with torch.no_grad():
            self.a.weight[0] = 0
            self.a.bias[0] = 1
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.f(self.a(x)))


SPATIAL = {  # f, channels left, sizes of the example
    "a border that is all of a small image": (lambda h: F.avg_pool2d(h, 3, 1, 1), 4, (1, 1)),
    "a border that does not count": (lambda h: F.avg_pool2d(h, 3, 1, 1, count_include_pad=False), 3, (1, 1)),
    "padding that the example does not need": (lambda h: F.pad(h, (0, h.shape[-1] % 2)), 4, (4, 4)),
    "a size as a factor": (lambda h: h * h.shape[2], 4, (4, 4)),
    "a size from another tensor": (lambda h: F.interpolate(h, size=h.shape[2:]), 3, (3, 3)),
    "a last window that is not full": (lambda h: F.lp_pool2d(h, 2, 2, ceil_mode=True), 4, (4, 4)),
    "the mean over the whole image": (lambda h: F.avg_pool2d(h, h.shape[2:]), 3, (3, 3)),
}


@pytest.mark.parametrize("name", SPATIAL)
def test_constants_that_hold_at_the_size_of_the_example_alone(name: str) -> None:
    f, left, size = SPATIAL[name]
    net = Convolutions(f)
    small = sl.compact(net, torch.randn(2, 2, *size, dtype=torch.float64))
    if left < 4:
        assert small.a.out_channels == left
    for size in ((3, 3), (4, 4), (5, 5), (7, 7)):
        x = torch.randn(3, 2, *size, dtype=torch.float64)
        torch.testing.assert_close(small(x), net(x), rtol=0, atol=1e-10)
