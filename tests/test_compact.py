"""compact(): the outputs of the model it was given, fewer channels, the same names."""

from __future__ import annotations

import copy
import io
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

import sparselayers as sl
from sparselayers.sparsify.compaction.small_conv import SmallConv2d


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with random weights and statistics, in evaluation mode and float64."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(generator=generator).div_(max(tensor[0].numel(), 1) ** 0.5 if tensor.ndim > 1 else 1)
    return model


def zero(model: nn.Module, **parts: object) -> nn.Module:
    """Zero entries of tensors: name with __ for the dots -> an index."""
    with torch.no_grad():
        for name, index in parts.items():
            model.get_parameter(name.replace("__", "."))[index] = 0
    return model


COLUMNS = slice(None)


class Residual(nn.Module):
    """x + conv(relu(conv(x))), twice the same stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.a = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.middle = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        y = self.b(self.relu(self.middle(self.a(x))))
        y += x
        return self.head(self.relu(y).mean([2, 3]))


class LeNet(nn.Module):
    """LeNet-5-Caffe: 20-50-500-10."""

    def __init__(self, sizes_in_code: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)
        self.sizes_in_code = sizes_in_code

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 800) if self.sizes_in_code else x.view(x.size(0), -1)
        x = F.dropout(F.relu(self.fc1(x)), training=self.training)
        return self.fc2(x)


class Branches(nn.Module):
    """Two branches joined by cat, then a layer for each half by chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(4, 6, 3), nn.Conv1d(4, 6, 3)
        self.norm = nn.BatchNorm1d(12)
        self.c = nn.Conv1d(12, 8, 1)
        self.d, self.e = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1)))
        one, other = F.gelu(self.c(x)).amax(-1).chunk(2, 1)
        return self.d(one) * self.e(other)


class Gated(nn.Module):
    """down(silu(gate x) * up x) with a learned scale, as in transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(5, 12, bias=False), nn.Linear(5, 12, bias=False)
        self.scale = nn.Parameter(torch.ones(12))
        self.down = nn.Linear(12, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.silu(self.gate(x)) * self.up(x) * self.scale)


class Shared(nn.Module):
    """One layer used twice, one once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.twice(F.relu(self.twice(F.relu(self.first(x)))))))


class Tied(nn.Module):
    """An autoencoder whose decoder is the transposed encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.middle, self.back = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.back(F.relu(self.middle(F.relu(self.encoder(x))))), self.encoder.weight.t())


def conv_net(padding: int, mode: str = "zeros") -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3, padding=padding, padding_mode=mode),
        nn.BatchNorm2d(5),
        nn.MaxPool2d(3, padding=1),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def constant_one(model: nn.Sequential) -> nn.Sequential:
    """Channel 1 of the first layer is 0.7 everywhere, channel 2 is -1 and so 0 behind the ReLU."""
    zero(model, **{"0__weight": slice(1, 3)})
    model[0].bias.data[1:3] = torch.tensor([0.7, -1.0])
    return model


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    parts = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b, bias=bias), act())]
    return nn.Sequential(*parts[:-1])


def case(model: nn.Module, shape: tuple[int, ...], shapes: dict[str, tuple[int, ...]], **zeros: object):
    model(torch.zeros(shape))  # lazy layers get their shape
    return zero(drawn(model), **zeros), shape, shapes


def cases() -> dict[str, tuple[nn.Module, tuple[int, ...], dict[str, tuple[int, ...]]]]:
    """name -> model with zeros, shape of its input, shapes of the smaller one."""
    image = (2, 2, 9, 9)
    kept = {"0.weight": (5, 2, 3, 3), "2.weight": (5, 5, 3, 3)}
    gone = {"0.weight": (4, 2, 3, 3), "2.weight": (5, 4, 3, 3)}
    return {
        "rows and columns": case(
            mlp(6, 8, 7, 3),
            (4, 6),
            {"0.weight": (5, 6), "2.weight": (6, 5), "4.weight": (3, 6), "0.bias": (5,)},
            **{"0__weight": [1, 2], "2__weight": (COLUMNS, 5), "4__weight": (COLUMNS, 3)},
        ),
        "constants through tanh": case(
            mlp(6, 8, 7, 3, act=nn.Tanh), (4, 3, 6), {"0.weight": (6, 6)}, **{"0__weight": [1, 2]}
        ),
        "a row that reads constants only": case(
            mlp(6, 4, 5, 3),
            (4, 6),
            {"0.weight": (3, 6), "2.weight": (4, 3)},
            **{"0__weight": 0, "2__weight": (1, [1, 2, 3])},
        ),
        "removal makes others unread": case(
            mlp(6, 4, 5, 3),
            (4, 6),
            {"0.weight": (3, 6), "2.weight": (4, 3)},
            **{"4__weight": (COLUMNS, 2), "2__weight": ([0, 1, 3, 4], 1)},
        ),
        "no bias, constant 0": case(mlp(6, 8, 3, bias=False), (4, 6), {"0.weight": (7, 6)}, **{"0__weight": 2}),
        "no bias, constant not 0": case(
            mlp(6, 8, 3, act=nn.Sigmoid, bias=False), (4, 6), {"0.weight": (8, 6)}, **{"0__weight": 2}
        ),
        "inputs unread": case(
            mlp(6, 8, 3), (4, 6), {"0.weight": (8, 4), "0.index": (4,)}, **{"0__weight": (COLUMNS, [0, 3])}
        ),
        "everything dead": case(
            mlp(6, 8, 7, 3),
            (4, 6),
            {"0.weight": (1, 6), "2.weight": (1, 1), "4.weight": (3, 1)},
            **{"2__weight": COLUMNS},
        ),
        "padding": (constant_one(case(conv_net(1), image, {})[0]), image, kept),
        "no padding": (constant_one(case(conv_net(0), image, {})[0]), image, gone),
        "circular padding": (constant_one(case(conv_net(1, "circular"), image, {})[0]), image, gone),
        "reflected padding": (constant_one(case(conv_net(1, "reflect"), image, {})[0]), image, gone),
        "residual": case(
            Residual(),
            (2, 3, 8, 8),
            {"a.weight": (4, 8, 3, 3), "middle.weight": (4,), "middle.running_var": (4,), "b.weight": (8, 4, 3, 3)},
            middle__weight=[0, 3],
            middle__bias=[0, 3],
        ),
        "residual stream": case(
            Residual(),
            (2, 3, 8, 8),
            {
                "stem.weight": (7, 3, 3, 3),
                "norm.weight": (7,),
                "b.weight": (7, 6, 3, 3),
                "head.weight": (4, 7),
                "a.weight": (6, 6, 3, 3),
                "a.index": (6,),
            },
            stem__weight=2,
            stem__bias=2,
            norm__weight=2,
            norm__bias=2,
            b__weight=2,
            b__bias=2,
            a__weight=(COLUMNS, 5),
        ),
        "depthwise": case(
            nn.Sequential(
                nn.Conv2d(2, 6, 1),
                nn.ReLU6(),
                nn.Conv2d(6, 12, 3, padding=1, groups=6),
                nn.BatchNorm2d(12),
                nn.Conv2d(12, 3, 1),
            ),
            (2, 2, 6, 6),
            {"0.weight": (4, 2, 1, 1), "2.weight": (8, 1, 3, 3), "3.running_mean": (8,), "4.weight": (3, 8, 1, 1)},
            **{"4__weight": (COLUMNS, [2, 3, 8, 9])},
        ),
        "grouped": case(
            nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, groups=2), nn.Conv2d(6, 3, 1)),
            (2, 2, 6, 6),
            {"0.weight": (6, 2, 1, 1), "2.weight": (3, 5, 1, 1)},
            **{"2__weight": (COLUMNS, 1)},
        ),
        "transposed": case(
            nn.Sequential(
                nn.Conv2d(2, 6, 1),
                nn.ReLU(),
                nn.ConvTranspose2d(6, 5, 3, stride=2, output_padding=1),
                nn.ELU(),
                nn.Conv2d(5, 3, 1),
            ),
            (2, 2, 6, 6),
            {"0.weight": (5, 2, 1, 1), "2.weight": (5, 4, 3, 3), "4.weight": (3, 4, 1, 1)},
            **{"2__weight": 1, "4__weight": (COLUMNS, 3)},
        ),
        "cat": case(
            Branches(),
            (2, 4, 7),
            {"a.weight": (5, 4, 3), "b.weight": (4, 4, 3), "norm.weight": (9,), "c.weight": (8, 9, 1)},
            c__weight=(COLUMNS, [1, 6, 7]),
        ),
        "chunk, both alike": case(
            Branches(),
            (2, 4, 7),
            {"c.weight": (6, 12, 1), "d.weight": (3, 3), "e.weight": (3, 3)},
            d__weight=(COLUMNS, 1),
            e__weight=(COLUMNS, 2),
        ),
        "chunk, one only": case(
            Branches(),
            (2, 4, 7),
            {"c.weight": (8, 12, 1), "d.weight": (3, 3), "d.index": (3,), "e.weight": (3, 4)},
            d__weight=(COLUMNS, 1),
        ),
        "gated": case(
            Gated(),
            (3, 5),
            {"gate.weight": (8, 5), "up.weight": (8, 5), "scale": (8,), "down.weight": (5, 8)},
            gate__weight=1,
            up__weight=2,
            down__weight=(COLUMNS, 3),
            scale=4,
        ),
        "shared": case(
            Shared(),
            (3, 6),
            {"first.weight": (6, 6), "last.weight": (2, 5)},
            last__weight=(COLUMNS, 0),
            first__weight=1,
        ),
        "tied": case(
            Tied(), (3, 6), {"encoder.weight": (8, 6), "middle.weight": (7, 8), "back.weight": (8, 7)}, middle__weight=0
        ),
        "PReLU": case(
            nn.Sequential(nn.Conv1d(2, 6, 3), nn.PReLU(6), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(18, 3)),
            (2, 2, 8),
            {"0.weight": (5, 2, 3), "1.weight": (5,), "4.weight": (3, 15)},
            **{"0__weight": 3},
        ),
        "instance norm": case(
            nn.Sequential(nn.Conv2d(2, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.Conv2d(6, 3, 3)),
            (2, 2, 8, 8),
            {"0.weight": (5, 2, 3, 3), "1.weight": (5,)},
            **{"1__weight": 3},
        ),
        "norms that mix channels": case(
            nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
            (2, 6),
            {"0.weight": (8, 6)},
            **{"0__weight": 3},
        ),
        "softmax": case(
            nn.Sequential(nn.Linear(6, 8), nn.Softmax(-1), nn.Linear(8, 3)),
            (2, 6),
            {"0.weight": (8, 6)},
            **{"0__weight": 3},
        ),
        "group norm": case(
            nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 3, 3)),
            (2, 2, 8, 8),
            {"0.weight": (6, 2, 3, 3)},
            **{"0__weight": 3},
        ),
        "upsampled": case(
            nn.Sequential(
                nn.Conv2d(2, 6, 3),
                nn.Upsample(scale_factor=2, mode="bilinear"),
                nn.AdaptiveAvgPool2d(3),
                nn.Conv2d(6, 3, 3),
            ),
            (2, 2, 8, 8),
            {"0.weight": (5, 2, 3, 3)},
            **{"0__weight": 3},
        ),
        "average pooling that counts its padding": case(
            nn.Sequential(nn.Conv2d(2, 6, 3), nn.AvgPool2d(3, padding=1), nn.Conv2d(6, 3, 2)),
            (2, 2, 8, 8),
            {"0.weight": (6, 2, 3, 3)},
            **{"0__weight": 3},
        ),
        "norm without statistics": case(
            nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), nn.Conv2d(6, 3, 2)),
            (2, 2, 8, 8),
            {"0.weight": (5, 2, 3, 3), "1.weight": (5,)},
            **{"0__weight": 3, "1__weight": 1},
        ),
        "3-d": case(
            nn.Sequential(
                nn.Conv3d(1, 4, 2, stride=2, dilation=1),
                nn.BatchNorm3d(4, affine=False),
                nn.ReLU(),
                nn.Flatten(2),
                nn.Conv1d(4, 2, 1),
            ),
            (2, 1, 4, 4, 4),
            {"0.weight": (3, 1, 2, 2, 2), "1.running_mean": (3,)},
            **{"0__weight": 3},
        ),
        "LeNet": case(
            LeNet(False),
            (2, 1, 28, 28),
            {
                "conv1.weight": (8, 1, 5, 5),
                "conv2.weight": (15, 8, 5, 5),
                "fc1.weight": (100, 240),
                "fc2.weight": (10, 100),
            },
            conv1__weight=slice(12),
            conv2__weight=slice(35),
            fc1__weight=slice(300),
            fc2__weight=(COLUMNS, slice(300, 400)),
        ),
    }


CASES = cases()


def agree(small: nn.Module, model: nn.Module, x: Tensor, tolerance: float = 1e-12) -> None:
    with torch.no_grad():
        one, other = small(x), model(x)
    assert one.shape == other.shape
    assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_same_and_shapes_as_worked_out_by_hand(name: str) -> None:
    model, shape, shapes = CASES[name]
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    small = sl.compact(model, x)
    agree(small, model, x)
    agree(small, model, torch.randn(7, *shape[1:], dtype=torch.float64))
    found = {key: tuple(tensor.shape) for key, tensor in small.state_dict().items()}
    assert {key: found[key] for key in shapes} == shapes
    assert {key for key in found if not key.endswith("index")} == before.keys()
    assert {key for key in found if key.endswith("index")} >= {key for key in shapes if key.endswith("index")}
    assert type(small) is type(model)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(p.data_ptr() == q.data_ptr() for p in small.parameters() for q in model.parameters())


@pytest.mark.parametrize("name", CASES)
def test_compacting_again_changes_nothing(name: str) -> None:
    model, shape, _ = CASES[name]
    x = torch.randn(shape, dtype=torch.float64)
    once = sl.compact(model, x)
    twice = sl.compact(once, x)
    agree(twice, model, x)
    assert [p.shape for p in twice.parameters()] == [p.shape for p in once.parameters()]
    assert twice.state_dict().keys() == once.state_dict().keys()


@pytest.mark.parametrize("name", CASES)
def test_in_float32(name: str) -> None:
    model, shape, shapes = CASES[name]
    model = copy.deepcopy(model).float()
    x = torch.randn(shape)
    small = sl.compact(model, x)
    agree(small, model, x, 1e-5)
    assert {key: tuple(small.state_dict()[key].shape) for key in shapes} == shapes


def test_sizes_in_the_code_are_corrected() -> None:
    """`x.view(-1, 800)`: a GraphModule under the same names, which still drops units in training, copies and pickles."""
    model = zero(drawn(LeNet(True)), conv2__weight=slice(35), fc1__weight=slice(300))
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    small = sl.compact(model, x)
    agree(small, model, x)
    assert small.fc1.weight.shape == (200, 240)
    assert list(small.state_dict()) == list(model.state_dict())
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        agree(other, model, x)
        assert list(other.state_dict()) == list(model.state_dict())
    assert torch.equal(small(x), small(x))
    small.train()
    assert not torch.equal(small(x), small(x))
    twice = sl.compact(small.eval(), x)
    agree(twice, model, x)


class Sizes(nn.Module):
    """A size in the code, and what a subclass does with it or in training."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.one, self.two, self.other = nn.Conv1d(2, 6, 3), nn.Linear(36, 3), nn.Linear(36, 3)
        self.end = end
        self.register_buffer("not_in_the_graph", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        if self.end == "training" and self.training:
            x = x + 1.0
        if self.end == "number":
            return self.two(x.flatten(1)) / x.size(1)
        if self.end == "unflatten":
            x = x.unflatten(1, (2, 3)).flatten(1, 2)
        x = x.reshape(x.size(0), 36) + torch.ones(1, dtype=torch.float64)
        return self.two(x)


@pytest.mark.parametrize(
    ("end", "kind", "channels"),
    [("plain", torch.fx.GraphModule, 5), ("training", Sizes, 6), ("number", Sizes, 6), ("unflatten", Sizes, 6)],
)
def test_sizes_that_cannot_be_corrected_keep_their_channels(end: str, kind: type, channels: int) -> None:
    model = zero(drawn(Sizes(end)), one__weight=2)
    x = torch.randn(4, 2, 8, dtype=torch.float64)
    small = sl.compact(model, x)
    agree(small, model, x)
    assert isinstance(small, kind)
    assert small.one.out_channels == channels
    assert small.state_dict().keys() - {"two.index"} == model.state_dict().keys()


def test_a_model_called_with_numbers_keeps_its_class() -> None:
    """The graph holds for those numbers only."""

    class Scaled(Sizes):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return super().forward(x) * scale

    model, x = zero(drawn(Scaled("plain")), one__weight=2), torch.randn(4, 2, 8, dtype=torch.float64)
    small = sl.compact(model, {"x": x, "scale": 2.0})
    assert type(small) is Scaled
    assert torch.allclose(small(x, 3.0), model(x, 3.0))


def test_the_state_dict_and_the_mode_come_along() -> None:
    model, shape, _ = CASES["residual"]
    x = torch.randn(shape, dtype=torch.float64)
    model = copy.deepcopy(model).train()
    model.norm.eval()
    model.stem.weight.requires_grad_(False)
    small = sl.compact(model, x)
    assert small.training
    assert small.middle.training
    assert not small.norm.training
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    other = sl.compact(model, x)
    nn.init.zeros_(other.head.weight)
    other.load_state_dict(torch.load(file))
    agree(other.eval(), model.eval(), x)


def test_training_goes_on() -> None:
    model, shape, _ = CASES["residual stream"]
    x = torch.randn(6, *shape[1:], dtype=torch.float64)
    small = sl.compact(model, x).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.01)
    regularizer = sl.Regularizer(small, sl.GroupL2(), lam=12.0, groups="neuron", include=["a.weight", "b.weight"])
    regularizer.attach(optimizer)
    target = torch.randn(6, 4, dtype=torch.float64)
    for _ in range(12):
        optimizer.zero_grad()
        (small(x) - target).square().mean().backward()
        optimizer.step()
    assert small.middle.running_mean.shape == (6,)
    report = sl.sparsity_report(small, x)
    assert report.neurons_zero > 0
    smaller = sl.compact(small, x)
    agree(smaller.eval(), small.eval(), x)
    assert smaller.a.out_channels < small.a.out_channels


@pytest.mark.parametrize("name", ["residual stream", "inputs unread", "LeNet"])
def test_the_smaller_model_copies_compiles_and_exports(name: str) -> None:
    model, shape, _ = CASES[name]
    x = torch.randn(shape, dtype=torch.float64)
    small = sl.compact(model, x)
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), torch.export.export(small, (x,)).module()):
        agree(other, model, x)
    agree(torch.compile(small, backend="aot_eager", fullgraph=True), model, x)


class Hidden(nn.Module):
    """An MLP behind a forward that torch.fx cannot follow."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([inner])
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        for block in self.blocks:
            x = x + block(self.norm(x))
        return x


def test_modules_within_a_forward_that_cannot_be_followed() -> None:
    model = zero(drawn(Hidden(mlp(6, 8, 6))), blocks__0__0__weight=[1, 2])
    x = torch.randn(4, 6, dtype=torch.float64)
    small = sl.compact(model, x)
    agree(small, model, x)
    assert small.blocks[0][0].weight.shape == (6, 6)


def test_a_block_that_cannot_be_followed_within_a_graph() -> None:
    """What surrounds it is cut up to it, and what is within."""
    model = nn.Sequential(mlp(6, 7, 6), Hidden(mlp(6, 8, 6)), mlp(6, 9, 3))
    zero(
        drawn(model),
        **{
            "0__0__weight": 1,
            "0__2__weight": 2,
            "1__blocks__0__0__weight": [1, 2],
            "2__0__weight": (COLUMNS, 3),
            "2__2__weight": (COLUMNS, 4),
        },
    )
    x = torch.randn(4, 6, dtype=torch.float64)
    small = sl.compact(model, x)
    agree(small, model, x)
    shapes = [tuple(p.shape) for p in small.parameters() if p.ndim > 1]
    assert shapes == [(6, 6), (6, 6), (6, 6), (6, 6), (8, 5), (3, 8)]


def hooked(model: nn.Sequential) -> None:
    model[2].register_forward_hook(lambda module, args, output: output + 1)


def forward_of_its_own(model: nn.Sequential) -> None:
    model[2].forward = lambda x: F.linear(x, model[2].weight)


def parametrized(model: nn.Sequential) -> None:
    sl.unit_norm(model[2], "weight", dim=0)


def masked(model: nn.Sequential) -> None:
    with torch.no_grad():
        prune.random_unstructured(model[2], "weight", amount=0.3)


def subclassed(model: nn.Sequential) -> None:
    model[2].__class__ = type("Linear2", (nn.Linear,), {"forward": lambda self, x: 2 * F.linear(x, self.weight)})


def tied(model: nn.Sequential) -> None:
    model[4].weight = model[2].weight


@pytest.mark.parametrize("change", [hooked, parametrized, masked, subclassed, tied])
def test_layers_that_are_more_than_their_class_says_stay_whole(change) -> None:
    model = zero(
        drawn(mlp(6, 6, 6, 6, 6)),
        **{"0__weight": 1, "2__weight": [2, 3], "4__weight": (COLUMNS, 4), "6__weight": (COLUMNS, 5)},
    )
    change(model)
    x = torch.randn(4, 6, dtype=torch.float64)
    small = sl.compact(model, x)
    agree(small, model, x)
    assert (small[2].in_features, small[2].out_features) == (6, 6)
    assert small[6].in_features == 5


class InPlace(nn.Module):
    """An operation in place on what another reads, before it and after it, or through a view."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(6, 4)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        if self.how == "before":
            y = self.two(x)
            return y + self.three(x.add_(1.0))
        if self.how == "after":
            y = self.two(x.add_(1.0))
            return y + self.three(x)
        if self.how == "view":
            flat = x.flatten()
            flat.mul_(2.0)
            return self.two(x)
        if self.how == "sibling":
            one, other = x.view(-1), x.view(x.shape)
            F.relu_(one)
            return self.two(other)
        x = x.relu_()
        x += 1.0
        return self.two(x)


@pytest.mark.parametrize("how", ["before", "after", "view", "sibling", "chain"])
def test_operations_in_place(how: str) -> None:
    model = zero(drawn(InPlace(how)), one__weight=[1, 2])
    x = torch.randn(4, 5, dtype=torch.float64)
    small = sl.compact(model, x)
    agree(small, model, x)
    if how == "chain":
        assert small.one.out_features == 4


def test_known_functions_pass_constants_on() -> None:
    """Each kind of function between a dead neuron and its reader, and shapes seen from Python."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 8, 3), nn.Linear(8 * 9, 3)

        def forward(self, x: Tensor) -> Tensor:
            n, c = x.shape[0], x.size(1)
            x = F.leaky_relu(self.one(x), 0.1).clamp(min=-0.5)
            x = (2.0 - x / 3.0).tanh().permute(0, 2, 3, 1).contiguous().transpose(1, 3)
            x = F.interpolate(F.adaptive_max_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 6), scale_factor=0.5)
            x = F.dropout(torch.cat([x[:, :, :2], x[:, :, 2:]], dim=2), training=self.training)
            return self.two(x.reshape(n, -1)) + c

    model = zero(drawn(Chain()), one__weight=[1, 2, 6])
    x = torch.randn(4, 2, 10, 10, dtype=torch.float64)
    small = sl.compact(model, x)
    agree(small, model, x)
    assert small.two.weight.shape == (3, 45)


SIZES = st.integers(1, 6)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(SIZES, min_size=2, max_size=4),
    st.sampled_from(["none", "batch", "bias"]),
    st.integers(0, 2),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_random_networks_with_random_zeros(sizes: list[int], norm: str, padding: int, linear: bool, seed: int) -> None:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    acts = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Identity]
    for i, (a, b) in enumerate(zip([3, *sizes], sizes, strict=False)):
        layers.append(
            nn.Linear(a, b, bias=norm != "bias") if linear else nn.Conv1d(a, b, 3, padding=padding, bias=norm != "bias")
        )
        if norm == "batch" and not linear:
            layers.append(nn.BatchNorm1d(b))
        layers.append(acts[(seed + i) % 5]())
    if not linear:
        layers += [nn.Flatten(), nn.LazyLinear(3)]
    model = nn.Sequential(*layers)
    shape = (2, 3) if linear else (2, 3, 12)
    model(torch.zeros(shape))
    drawn(model, seed)
    for tensor in model.parameters():
        dead = torch.rand(tensor.shape[0]) < torch.rand(())
        tensor.data[dead] = 0
        if tensor.ndim > 1:
            tensor.data[:, torch.rand(tensor.shape[1]) < torch.rand(()) / 2] = 0
    x = torch.randn(shape, dtype=torch.float64)
    small = sl.compact(model, x)
    agree(small, model, torch.randn(shape, dtype=torch.float64), 1e-10)
    assert sum(p.numel() for p in small.parameters()) <= sum(p.numel() for p in model.parameters())


def test_what_is_no_function_of_its_input_is_an_error() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x)  # in evaluation too

    with pytest.raises(ValueError, match=r"not those of the model.*random numbers in evaluation"):
        sl.compact(nn.Sequential(nn.Linear(4, 4), Noisy()), torch.randn(3, 4))


def test_rounding_is_told_from_a_wrong_answer() -> None:
    """Sums of large terms that cancel differ in float32 by their order; in float64 they agree."""
    torch.manual_seed(0)
    model = mlp(4, 4000, 1).eval()
    with torch.no_grad():
        model[0].weight[2000:] = model[0].weight[:2000]
        model[0].bias[2000:] = model[0].bias[:2000]
        model[2].weight[:, 2000:] = -model[2].weight[:, :2000] * (1 + 1e-5)
        model[2].bias.zero_()
        for place in (0, 2000):  # both of a pair
            model[0].weight[place : place + 1900] = 0
            model[0].bias[place : place + 1900] = 0
    x = torch.randn(8, 4)
    small = sl.compact(model, x)
    assert small[0].out_features == 200
    assert (small(x) - model(x)).abs().max() > 1e-5 * model(x).abs().max()
    agree(small.double(), model.double(), x.double(), 1e-9)


class Counted(nn.Module):
    """As many steps as the data say."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.sum() > 0) + 1):
            x = self.two(F.relu(self.one(x)))
        return x


def test_a_forward_that_nothing_can_follow_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(model: nn.Module, example_input: Tensor) -> None:
        raise ImportError("pip install 'sparselayers[prune]'")

    monkeypatch.setattr("sparselayers.sparsify.compact.prune_graph", missing)
    with pytest.raises(
        ValueError, match=r"torch.fx \(Counted: .*test_compact.py:\d+: .*\), nor otherwise: pip install"
    ):
        sl.compact(Counted(), torch.ones(3, 4))
    # Where some part of it was made smaller there is nothing to complain of.
    small = sl.compact(zero(Hidden(mlp(6, 8, 6)), blocks__0__0__weight=1), torch.ones(3, 6))
    assert small.blocks[0][0].out_features == 7


def test_torch_pruning_takes_over_where_torch_fx_gives_up() -> None:
    pytest.importorskip("torch_pruning")
    model = zero(drawn(Counted()), one__weight=[1, 2], one__bias=[1, 2])
    x = torch.randn(3, 4, dtype=torch.float64)
    small = sl.compact(model, x)
    agree(small, model, x)
    assert small.one.out_features == 4


def test_a_model_that_cannot_be_copied_is_an_error_that_names_the_tensor() -> None:
    model = mlp(4, 4, 4)
    prune.random_unstructured(model[2], "weight", amount=0.3)
    with pytest.raises(ValueError, match=r"cannot be copied.*2\.weight;.*prune.remove"):
        sl.compact(model, torch.randn(3, 4))
    prune.remove(model[2], "weight")
    sl.compact(model, torch.randn(3, 4))


def test_arguments_of_other_kinds() -> None:
    with pytest.raises(TypeError, match=r"model must be an nn.Module, got Tensor"):
        sl.compact(torch.zeros(3), torch.zeros(3))
    with pytest.raises(TypeError, match=r"example_input must be a tensor, a tuple of arguments or a dict"):
        sl.compact(nn.Linear(2, 2), [torch.zeros(3, 2)])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        sl.compact(nn.Linear(2, 2), torch.zeros(3, 5))


@pytest.mark.parametrize("dim", [1, -3])
def test_closed_gates_remove_their_neurons(dim: int) -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), sl.HardConcrete(6, dim), nn.Conv2d(6, 3, 3, padding=1))
    drawn(model)
    model[2].log_alpha.data[[1, 4]] = -5.0
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    small = sl.compact(model, x)
    agree(small, model, x)
    assert (small[0].out_channels, small[2].n, small[3].in_channels) == (4, 4, 4)
    assert small.train()(x).shape == (2, 3, 4, 4)
    agree(sl.load_compact(afresh(model), small.state_dict()), model, x)


class Remembers(nn.Module):
    """Keeps what it saw, as an attribute that was not there before."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(2, 6, 3), nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = F.relu(self.one(x))
        return self.two(self.seen.view(-1, 36))


def test_a_forward_that_keeps_what_it_saw() -> None:
    model = zero(drawn(Remembers()), one__weight=2)
    x = torch.randn(3, 2, 8, dtype=torch.float64)
    small = sl.compact(model, x)
    agree(small, model, x)
    assert small.two.in_features == 30
    copy.deepcopy(small)
    within = sl.compact(nn.Sequential(model, nn.Linear(3, 2, dtype=torch.float64)), x)
    assert pickle.loads(pickle.dumps(within))(x).shape == (3, 2)


class Auxiliary(nn.Module):
    """A head that only training has."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.one(x))
        y = self.three(F.relu(self.two(x)))
        return (y, self.head(x)) if self.training else y


def test_what_only_training_reads_stays() -> None:
    model = zero(drawn(Auxiliary()), one__weight=[1, 2], two__weight=3)
    x = torch.randn(3, 4, dtype=torch.float64)
    small = sl.compact(model, x)
    agree(small, model, x)
    assert (small.one.out_features, small.two.out_features) == (6, 4)
    assert [tuple(y.shape) for y in small.train()(x)] == [(3, 2), (3, 2)]


def test_small_convolutions_take_the_routine_without_set_up() -> None:
    convolutions = [nn.Conv2d(3, 4, 5), nn.Conv2d(3, 4, (4, 2), stride=(2, 1), padding=(2, 1), bias=False)]
    for conv in convolutions:
        rest = (nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(2, 2, 4, padding=1), nn.Flatten(), nn.LazyLinear(2))
        model = nn.Sequential(conv, *rest)
        x = torch.randn(2, 3, 9, 9)
        model(x)
        model = zero(drawn(model).float(), **{"0__weight": 1})
        if conv.bias is not None:
            conv.bias.data[1] = 0
        small = sl.compact(model, x)
        assert type(small[0]) is SmallConv2d
        assert type(small[2]) is type(small[3]) is nn.Conv2d
        for batch in (
            torch.randn(1, 3, 9, 9),
            torch.randn(500, 3, 9, 9),
            torch.empty(0, 3, 9, 9),
            x.to(memory_format=torch.channels_last),
        ):
            torch.testing.assert_close(small(batch), model(batch), rtol=1e-4, atol=1e-5)
        names = [name for name, _ in small.named_parameters()]
        ours = torch.autograd.grad(small(x).square().sum(), list(small.parameters()))
        wide = copy.deepcopy(small).double()
        theirs = torch.autograd.grad(wide(x.double()).square().sum(), list(wide.parameters()))
        for name, one, other in zip(names, ours, theirs, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-4, msg=name)
        torch.testing.assert_close(torch.func.vmap(small)(x.unsqueeze(1)).squeeze(1), small(x))
        torch.testing.assert_close(torch.compile(small, backend="eager", fullgraph=True)(x), small(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert small(x).dtype == torch.bfloat16
    large = sl.compact(
        zero(drawn(nn.Sequential(nn.Conv2d(64, 64, 5), nn.ReLU(), nn.Conv2d(64, 8, 1))), **{"0__weight": 1}),
        torch.randn(1, 64, 9, 9).double(),
    )
    assert type(large[0]) is nn.Conv2d


def afresh(model: nn.Module) -> nn.Module:
    """The model with other weights, none of them zero."""
    fresh = copy.deepcopy(model)
    for tensor in fresh.state_dict().values():
        tensor.fill_(0.5)
    return fresh


@pytest.mark.parametrize("name", CASES)
def test_a_state_dict_makes_the_small_model_from_the_class(name: str) -> None:
    model, shape, _ = CASES[name]
    x = torch.randn(shape, dtype=torch.float64)
    small = sl.compact(model, x)
    loaded = sl.load_compact(afresh(model), small.state_dict())
    agree(loaded, model, x)
    assert [repr(m).replace("Small", "") for m in loaded.children()] == [
        repr(m).replace("Small", "") for m in small.children()
    ]
    again = sl.load_compact(afresh(small), small.state_dict(), x)
    agree(again, model, x)


def test_a_state_dict_of_a_model_with_sizes_in_its_code() -> None:
    model = zero(drawn(LeNet(True)), conv2__weight=slice(35), fc1__weight=slice(300))
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    small = sl.compact(model, x)
    loaded = sl.load_compact(afresh(model).train(), small.state_dict(), x)
    assert loaded.training
    assert not torch.equal(loaded(x), loaded(x))
    agree(loaded.eval(), model, x)
    assert not sl.load_compact(afresh(model), small.state_dict(), x).training
    with pytest.raises(RuntimeError, match="shape"):
        sl.load_compact(afresh(model), small.state_dict())(x)


def test_the_example_of_a_state_dict_is_of_a_known_kind() -> None:
    with pytest.raises(TypeError, match="example_input must be"):
        sl.load_compact(mlp(4, 5, 2), mlp(4, 5, 2).state_dict(), [1])
