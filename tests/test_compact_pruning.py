"""Channels that are dead in every layer that shares them, removed from graphs with control flow."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor, nn

from sparselayers.sparsify.compact_pruning import prune_graph


class Branches(nn.Module):
    """A residual network whose forward looks at values and keeps a list, which torch.fx cannot trace."""

    def __init__(self, between=torch.relu) -> None:
        super().__init__()
        self.between = between
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.hidden, self.head = nn.Linear(8 * 4, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        seen = [self.between(self.norm1(self.conv1(x)))]
        if x.abs().sum() < 0:
            return x
        seen.append(self.between(self.norm2(self.conv2(seen[0]))) + seen[0])
        return self.head(self.between(self.hidden(nn.functional.adaptive_avg_pool2d(seen[-1], 2).flatten(1))))


def made(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = model.double().eval()
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if x.is_floating_point():
                x.copy_(torch.randn(x.shape, generator=generator, dtype=x.dtype) * 0.4)
                if name.endswith("running_var"):
                    x.abs_().add_(0.5)
    return model


@torch.no_grad()
def unread(model: Branches, *channels: int) -> None:
    for channel in channels:
        model.conv2.weight[:, channel] = 0
        model.hidden.weight.unflatten(1, (8, 4))[:, channel] = 0


@torch.no_grad()
def silent(model: Branches, *channels: int) -> None:
    for norm in (model.norm1, model.norm2):
        norm.weight[list(channels)] = norm.bias[list(channels)] = 0


IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64)
PATTERNS = {
    "unread": (lambda m: unread(m, 1, 3), 6, 10),
    "written as zero": (lambda m: silent(m, 2, 4, 5), 5, 10),
    "both": (lambda m: (unread(m, 1), silent(m, 4, 5)), 5, 10),
    "unread by one of two": (lambda m: m.conv2.weight[:, 1].data.zero_(), 8, 10),
    "hidden unit unread": (lambda m: m.head.weight[:, :4].data.zero_(), 8, 6),
    "hidden unit zero": (lambda m: (m.hidden.weight[2].data.zero_(), m.hidden.bias[2].data.zero_()), 8, 9),
    "a bias alone is no zero": (lambda m: m.hidden.weight[2].data.zero_(), 8, 10),
    "classes stay": (lambda m: (m.head.weight[1].data.zero_(), m.head.bias[1].data.zero_()), 8, 10),
    "nothing": (lambda m: None, 8, 10),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_residual_network_with_control_flow(name: str) -> None:
    pattern, maps, hidden = PATTERNS[name]
    model = made(Branches())
    pattern(model)
    model.conv1.weight.requires_grad_(False)
    small = copy.deepcopy(model).train()
    prune_graph(small, IMAGES)
    assert (small.conv1.out_channels, small.conv2.weight.shape[:2], small.norm2.num_features) == (
        maps,
        (maps, maps),
        maps,
    )
    assert (small.hidden.in_features, small.hidden.out_features, small.head.weight.shape) == (
        4 * maps,
        hidden,
        (4, hidden),
    )
    assert list(small.state_dict()) == list(model.state_dict())
    assert small.training
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    small.eval()
    torch.testing.assert_close(small(IMAGES), model(IMAGES), rtol=0, atol=1e-12)
    other = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(small(other), model(other), rtol=0, atol=1e-12)


def test_a_zero_that_the_function_behind_does_not_keep_stays() -> None:
    model = made(Branches(between=torch.sigmoid))
    silent(model, 2)
    with torch.no_grad():
        model.hidden.weight[2] = model.hidden.bias[2] = 0
        model.head.weight[:, 5] = 0
    small = copy.deepcopy(model)
    prune_graph(small, IMAGES)
    assert (small.conv1.out_channels, small.hidden.out_features) == (8, 9)
    torch.testing.assert_close(small(IMAGES), model(IMAGES), rtol=0, atol=1e-12)


def test_removing_one_layers_neurons_makes_those_before_unread() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 2)

        def forward(self, x: Tensor, *, twice: bool) -> Tensor:
            for _ in range(2 if bool(x.sum() < -1e9) else 1):
                x = self.b(self.a(x).relu()).relu()
            return self.c(x) * (2 if twice else 1)

    model = made(Deep())
    with torch.no_grad():
        model.c.weight[:, :3] = 0
        model.b.weight[3:, 2:4] = 0
    small = copy.deepcopy(model)
    x = torch.randn(5, 3, dtype=torch.float64)
    prune_graph(small, {"x": x, "twice": True})
    assert (small.a.out_features, small.b.weight.shape) == (4, (3, 4))
    torch.testing.assert_close(small(x, twice=True), model(x, twice=True), rtol=0, atol=1e-12)


class Softmax(Branches):
    """Channels compete, which the graph takes for a function of each: what nobody reads counts all the same."""

    def __init__(self) -> None:
        super().__init__(between=lambda x: x.softmax(1))


class Groups(Branches):
    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2)


class Shows(Branches):
    """Returns its maps, too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), self.norm1(self.conv1(x))


class Keeps(Branches):
    def __init__(self) -> None:
        super().__init__()
        self.norm2 = nn.GroupNorm(2, 8)


@pytest.mark.parametrize("kind", [Softmax, Groups, Shows, Keeps])
def test_channels_that_mix_or_are_shown_stay(kind: type[Branches]) -> None:
    model = made(kind())
    with torch.no_grad():
        model.hidden.weight.unflatten(1, (8, 4))[:, 1] = 0
        if kind is not Groups:
            model.conv2.weight[:, 1] = 0
    small = copy.deepcopy(model)
    prune_graph(small, IMAGES)
    assert small.conv1.out_channels == 8
    for one, other in zip(small(IMAGES), model(IMAGES), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_layer_keeps_a_channel() -> None:
    model = made(Branches())
    silent(model, *range(8))
    small = copy.deepcopy(model)
    prune_graph(small, IMAGES)
    assert small.conv1.out_channels >= 1
    torch.testing.assert_close(small(IMAGES), model(IMAGES), rtol=0, atol=1e-12)


def test_without_torch_pruning_the_error_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ImportError, match=r"torch-pruning, .* not installed; use: .*'sparselayers\[prune\]'"):
        prune_graph(made(Branches()), IMAGES)


def test_what_torch_pruning_cannot_follow_is_a_value_error() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad or torch.is_grad_enabled():
                raise RuntimeError("no gradients here")
            return self.layer(x)

    with pytest.raises(ValueError, match=r"neither torch.fx nor torch-pruning can follow Cut \(RuntimeError: no grad"):
        prune_graph(Cut(), torch.randn(2, 3))
    with pytest.raises(TypeError, match=r"example_input must be a tensor, a tuple .* got int"):
        prune_graph(Cut(), 3)
