"""A fresh model of the original size takes the shapes and values of a smaller state_dict."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

import sparselayers as sl

from .test_compact_parts import MODELS, fill, kill, outputs_of


class Net(nn.Module):
    """Every kind of layer that shrinks: convolutions plain, depthwise and transposed, norms, PReLU, a residual sum, Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 16, 3, groups=8)
        self.point = nn.Conv2d(16, 6, 1, bias=False)
        self.instance = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
        self.slope = nn.PReLU(6)
        self.up = nn.ConvTranspose2d(6, 5, 2)
        self.a, self.b, self.head = nn.Linear(5, 7), nn.Linear(7, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.depthwise(self.norm(self.stem(x)).relu()))
        x = self.up(self.slope(self.instance(x))).relu().mean((2, 3))
        return self.head(x + self.b(self.a(x).relu()))


def dead() -> nn.Module:
    model = fill(Net())
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d):
                module.running_var.fill_(1.5)
                module.running_mean.normal_()
        model.stem.weight[:, 1] = 0  # the second colour is not read
        model.norm.weight[2:4] = model.norm.bias[2:4] = 0
        model.depthwise.bias[4:8] = 0  # no bias behind it could take a constant
        model.instance.weight[1] = 0
        model.up.weight[:, 4] = 0
        model.a.weight[3:5] = 0
        model.b.weight[:, 6] = 0
        model.head.weight[:, 4] = 0
    return model


IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def saved(model: nn.Module) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return torch.load(file)


def test_layers_of_every_kind() -> None:
    model = dead()
    model.stem.weight.requires_grad_(False)
    small = sl.compact(model, IMAGES)
    fresh = fill(Net()).train()
    fresh.stem.weight.requires_grad_(False)
    before = copy.deepcopy(fresh.state_dict())
    loaded = sl.load_compact(fresh, saved(small))
    assert loaded.training
    assert [p.shape for p in loaded.parameters()] == [p.shape for p in small.parameters()]
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in small.parameters()]
    assert str(loaded).replace("Small", "") == str(small).replace("Small", "")
    assert (loaded.depthwise.groups, loaded.norm.num_features, loaded.a.out_features) == (6, 6, 4)
    torch.testing.assert_close(loaded.eval()(IMAGES), model(IMAGES), rtol=0, atol=1e-10)
    torch.testing.assert_close(fresh.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers(name: str) -> None:
    model, example, heads = MODELS[name]()
    model = kill(fill(model), heads)
    small = sl.compact(model, example)
    loaded = sl.load_compact(fill(type(model)(model.config)), saved(small))
    torch.testing.assert_close(outputs_of(loaded, example), outputs_of(model, example), rtol=0, atol=1e-10)


def test_an_encoder_with_inputs_that_are_not_read() -> None:
    def made() -> nn.Module:
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        return fill(nn.Sequential(nn.Linear(9, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)))

    model = kill(made())
    with torch.no_grad():
        model[0].weight[:, :4] = 0
        model[2].weight[:, 3] = 0
    x = torch.randn(2, 5, 9).double()
    small = sl.compact(model, x)
    loaded = sl.load_compact(made(), saved(small))
    assert [p.shape for p in loaded.parameters()] == [p.shape for p in small.parameters()]
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=1e-10)


def test_what_is_not_smaller_loads_as_it_is() -> None:
    model = fill(Net())
    loaded = sl.load_compact(fill(Net()), model.state_dict())
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


LINEAR = nn.Linear(3, 2)
WRONG = [
    (lambda: sl.load_compact(3, {}), TypeError, "model must be an nn.Module, got int"),
    (lambda: sl.load_compact(LINEAR, [1]), TypeError, "state_dict must be a mapping of names to tensors, got list"),
    (
        lambda: sl.load_compact(LINEAR, {"weight": torch.ones(2, 3)}),
        ValueError,
        r"(?s)not of a smaller Linear: .*\"bias\"",
    ),
    (
        lambda: sl.load_compact(nn.LayerNorm(4), {"weight": torch.ones(3), "bias": torch.ones(3)}),
        ValueError,
        r"the model is a LayerNorm, which compact\(\) does not make smaller; .*'weight': \(3,\)",
    ),
    (
        lambda: sl.load_compact(nn.Sequential(nn.Conv1d(4, 4, 1, groups=2)), {"0.weight": torch.ones(2, 2, 1)}),
        ValueError,
        r"0 is a Conv1d, which compact\(\) does not make smaller",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:30] for w in WRONG])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("other", [nn.Linear(4, 9), nn.Linear(6, 5)])
def test_a_state_of_a_larger_model_is_no_smaller_one(other: nn.Module) -> None:
    with pytest.raises(
        ValueError, match=r"'weight' of shape .*no part of the model's \(5, 4\); give a model of the sizes"
    ):
        sl.load_compact(nn.Linear(4, 5), other.state_dict())
