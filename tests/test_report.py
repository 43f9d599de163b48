"""Flops against loops that multiply one by one, and the papers' rule against their words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparselayers as sl


def by_hand(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """How often each entry of the weight is multiplied: the gradient of the output's sum where input and weight are 1.

    Padding counts too, so it is done before, with ones.
    """
    if isinstance(layer, nn.Linear):
        y = nn.functional.linear(torch.ones_like(x), weight := torch.ones_like(layer.weight, requires_grad=True))
    elif isinstance(layer, nn.ConvTranspose2d):
        weight = torch.ones_like(layer.weight, requires_grad=True)
        y = nn.functional.conv_transpose2d(torch.ones_like(x), weight, None, layer.stride, groups=layer.groups)
    else:
        weight = torch.ones_like(layer.weight, requires_grad=True)
        padded = nn.functional.pad(
            torch.ones_like(x), [n for n in reversed(layer.padding) for _ in range(2)], value=1.0
        )
        y = nn.functional.conv2d(padded, weight, None, layer.stride, groups=layer.groups, dilation=layer.dilation)
    y.sum().backward()
    return weight.grad


LAYERS = {
    "Linear": (lambda: nn.Linear(3, 4), (5, 3)),
    "Linear(sequence)": (lambda: nn.Linear(3, 4), (5, 7, 3)),
    "Linear(one)": (lambda: nn.Linear(3, 4), (3,)),
    "Conv2d": (lambda: nn.Conv2d(2, 4, 3, padding=1, stride=2), (2, 2, 7, 8)),
    "Conv2d(groups)": (lambda: nn.Conv2d(4, 6, (2, 3), groups=2, dilation=2), (3, 4, 9, 9)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_flops_are_counted_as_a_loop_would(name: str) -> None:
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    with torch.no_grad():
        layer.weight[0] = 0
        layer.weight[1, 0] = 0
        layer.weight[:, 1] = 0
        layer.weight[-1, 0].view(-1)[0] = 0
    times = by_hand(layer, x)
    zero = layer.weight.detach() == 0
    report = sl.sparsity_report(layer, x)
    assert report.flops == 2 * times.sum()
    assert report.flops_zero == 2 * times[zero].sum()
    whole = torch.zeros_like(zero)
    groups = getattr(layer, "groups", 1)
    for part, mark in zip(zero.chunk(groups), whole.chunk(groups), strict=True):
        dims = range(2, part.ndim)
        mark |= part.all((1, *dims)).view(-1, 1, *[1 for _ in dims]) if groups == 1 else part.all((1, *dims), True)
        mark |= part.all((0, *dims), True)
    assert report.flops_removable == 2 * times[whole].sum()


def test_a_model_is_run_once_in_evaluation_mode_and_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 8), nn.Linear(8, 8))
    model[4].weight = model[3].weight
    model[2].eval()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    report = sl.sparsity_report(model, torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model] == [True, True, False, True, True]
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert [layer.flops for layer in report.layers] == [2 * 4 * 48, 2 * 2 * 4 * 64]  # the tied weight serves twice
    assert report.flops == sum(layer.flops for layer in report.layers)


def test_layers_of_a_transformer_are_counted_not_passed_by() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    flops = {weight.name: weight.flops for weight in sl.sparsity_report(layer, torch.randn(3, 5, 8)).layers}
    expected = 2 * 15 * 8 * 16
    # torch multiplies by the attention's own weights in a function, without a layer.
    attention = {"self_attn.in_proj_weight": 0, "self_attn.out_proj.weight": 0}
    assert flops == attention | {"linear1.weight": expected, "linear2.weight": expected}


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor, fail: bool = False) -> torch.Tensor:
        if fail:
            raise RuntimeError("as told")
        return self.a(x) + self.b(y)


def test_several_inputs_by_place_or_by_name() -> None:
    x, y = torch.randn(5, 2), torch.randn(5, 4)
    for example in ((x, y), {"x": x, "y": y}):
        assert sl.sparsity_report(Pair(), example).flops == 2 * 5 * (6 + 12)
    model = Pair()
    with pytest.raises(RuntimeError, match="as told"):
        sl.sparsity_report(model, (x, y, True))
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_the_table_has_flops_where_they_were_asked_for() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        layer.bias.fill_(1.0)
    plain, full = str(sl.sparsity_report(layer)), str(sl.sparsity_report(layer, torch.ones(3, 2)))
    assert "flops" not in plain
    assert full.splitlines()[0].split("  ")[-2:] == ["flops by zeros", "flops removable"]
    assert full.splitlines()[-1].endswith("18/24 (75.0%)   18/24 (75.0%)")


def test_the_papers_rule() -> None:
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1e-6, -9e-6, 0, 2e-5], [1e-6, 0, 0, 1.0], [float("nan"), 0, 0, 0]]))
        layer.bias.zero_()
    exact, rule = sl.sparsity_report(layer), sl.sparsity_report(layer, below=1e-5)
    assert (exact.weights_zero, exact.groups_zero, exact.neurons_zero, exact.below) == (6, 0, 0, None)
    # Entries: abs(w) < 1e-5. Rows: the mean of abs(w) over the row, 7.5e-6 in the first.
    assert (rule.weights_zero, rule.groups_zero, rule.inputs_zero, rule.neurons_zero) == (9, 1, 2, 1)
    assert rule.below == 1e-5
    assert str(rule).splitlines()[0] == "counted as zero: below 1e-05, rows by the mean of their sizes"
    assert sl.sparsity_report(layer, below=0.0).weights_zero == 0  # nothing lies below 0
    flops = sl.sparsity_report(layer, torch.ones(1, 4), below=1e-5)
    assert (flops.flops, flops.flops_zero, flops.flops_removable) == (24, 18, 2 * (4 + 2 * 2))


WRONG = [
    (lambda: sl.sparsity_report(nn.Linear(2, 2), 3), TypeError, "example_input must be a tensor, a tuple .* got int"),
    (lambda: sl.sparsity_report(nn.Linear(2, 2), below=-1.0), ValueError, r"below must lie in \[0, inf\], got -1.0"),
    (lambda: sl.sparsity_report(nn.Linear(2, 2), below="papers"), TypeError, "below must be a number, got str"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:30] for w in WRONG])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
