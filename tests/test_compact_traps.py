"""compact() on code that leads a reader of its graph astray: sizes, aliases, mutations, values of the example."""

from __future__ import annotations

import dataclasses
import sys
import threading

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


def test_one_row_may_be_taken_for_another_axis() -> None:
    net = Net(through(lambda h: h.view(10, -1).t().reshape(-1, 10)))  # with one row, the axis of the neurons
    small = sl.compact(net, torch.randn(1, 6, dtype=torch.float64))
    for rows in (1, 2, 3):
        x = torch.randn(rows, 6, dtype=torch.float64)
        torch.testing.assert_close(small(x), net(x), rtol=0, atol=1e-10)


class Block(nn.Module):
    """An MLP by its names, whose activation is `act`."""

    def __init__(self, act, seed: int = 0) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(6, 10), act, nn.Linear(10, 4)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in (self.fc1, self.fc2):
                for p in layer.parameters():
                    p.copy_(torch.randn(p.shape, generator=generator))
            self.fc1.weight[:3] = 0
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


@pytest.mark.parametrize(
    "act", [nn.ReLU(inplace=True), nn.SiLU(inplace=True), nn.PReLU(10), nn.PReLU(), nn.BatchNorm1d(10), nn.Softmax(-1)]
)
def test_activations_of_any_kind_by_the_name(act: nn.Module) -> None:
    block = Block(act)
    x = torch.randn(3, 6, dtype=torch.float64)
    small = sl.compact(block, x)
    assert small.fc1.out_features == (10 if isinstance(act, nn.Softmax) else 7)
    torch.testing.assert_close(small(x), block(x), rtol=0, atol=1e-10)


class Training(nn.Module):
    """A tensor of the hidden size that training alone reads, state that forward keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("noise", torch.ones(6))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        h = self.first(x).relu()
        if self.training:
            h = h + self.noise * torch.randn_like(h)
        return self.last(h)


def test_what_training_reads_and_what_forward_keeps() -> None:
    model = Training()
    with torch.no_grad():
        model.last.weight[:, :2] = 0
    x = torch.randn(3, 4)
    small = sl.compact(model, x)
    assert model.calls == small.calls == 0
    assert small.training
    assert small(x).shape == (3, 2)  # in training mode
    torch.testing.assert_close(small.eval()(x), model.eval()(x))


def test_models_that_cannot_be_looked_at() -> None:
    x = torch.randn(3, 4)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"0.weight is on the meta device and has no values.* load the weights first"):
        sl.compact(nn.Sequential(nn.Linear(4, 3, device="meta")), x.to("meta"))
    with pytest.raises(ValueError, match=r"0.weight is not initialised yet; call the model once"):
        sl.compact(nn.Sequential(nn.LazyLinear(3)), x)
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"the model cannot be copied: cannot pickle .*; take what that is out"):
        sl.compact(model, x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_scripted_modules() -> None:
    x = torch.randn(3, 6, dtype=torch.float64)
    scripted = torch.jit.script(Block(nn.ReLU()))
    with pytest.raises(ValueError, match=r"compact the model first, then use torch\.jit"):
        sl.compact(scripted, x)
    net = Net(through(F.relu))
    model = nn.Sequential(net, nn.Linear(4, 6).double(), scripted).eval()
    small = sl.compact(model, x)
    assert small[0].first.out_features == 5
    torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
def test_complex_numbers() -> None:
    model = nn.Sequential(nn.Conv1d(2, 6, 3), nn.Tanh(), nn.Conv1d(6, 6, 1, groups=6), nn.Conv1d(6, 3, 1))
    model = model.to(torch.complex128)
    with torch.no_grad():
        model[0].weight[:2] = 0
    x = torch.randn(2, 2, 8, dtype=torch.complex128)
    small = sl.compact(model, x)
    assert small[0].out_channels == 4
    torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-10)


def test_a_smaller_encoder_shrinks_again_in_finite_time() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 4, 6, batch_first=True), 1).double().eval()
    with torch.no_grad():
        encoder.layers[0].self_attn.out_proj.weight[:, :4] = 0
        encoder.layers[0].linear1.weight[:, 0] = 0
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    small = sl.compact(encoder, x)
    assert small.layers[0].self_attn.num_heads == 2
    again = sl.compact(small, x)
    torch.testing.assert_close(again(x), encoder(x), rtol=0, atol=1e-10)


def test_attention_that_can_lose_nothing_comes_back_whole() -> None:
    attention = nn.MultiheadAttention(8, 4, batch_first=True).double().eval()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    with torch.no_grad():
        attention.out_proj.weight[:, :4] = 0  # but the weights of these heads are given back
    assert sl.compact(attention, (x, x, x)).num_heads == 4
    quiet = {"query": x, "key": x, "value": x, "need_weights": False}
    small = sl.compact(attention, quiet)
    assert small.num_heads == sl.compact(small, quiet).num_heads == 2
    torch.testing.assert_close(small(**quiet)[0], attention(**quiet)[0], rtol=0, atol=1e-10)


class Groups(nn.Module):
    """Grouped queries behind control flow: a dead head that only fills its group stays."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = 4, 2
        self.q_proj, self.o_proj = nn.Linear(8, 8), nn.Linear(8, 8)
        self.k_proj, self.v_proj = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, 2)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        k, v = (t.repeat_interleave(self.num_heads // self.num_kv_heads, 1) for t in (k, v))
        if x.isnan().all():
            raise ValueError("no number")
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_known_blocks_that_can_lose_nothing_are_no_error(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    model = Groups().double().eval()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    with torch.no_grad():
        model.o_proj.weight[:, :2] = 0
    small = sl.compact(model, x)
    assert small.num_heads == 4
    torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-10)


def test_a_depthwise_convolution_of_one_channel_left_is_a_plain_one() -> None:
    def made() -> nn.Sequential:
        last = (nn.Flatten(), nn.Linear(8 * 9, 2))
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3, groups=4), *last).double().eval()

    model = made()
    with torch.no_grad():
        model[0].weight[1:] = 0
        model[0].bias[1:] = 0
        model[1].bias[2:] = 0
        model[3].weight[:, 9:18] = 0  # one of the two outputs of the channel that is left
    x = torch.randn(2, 1, 7, 7, dtype=torch.float64)
    small = sl.compact(model, x)
    assert tuple(small[1].weight.shape) == (1, 1, 3, 3)
    torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-10)
    assert torch.equal(sl.load_compact(made(), small.state_dict())(x), small(x))


def test_a_graph_that_does_not_go_back_into_code(monkeypatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no code for this")

    monkeypatch.setattr("sparselayers.sparsify.compaction.shrink.rewritten", fails)
    x = torch.randn(3, 6, dtype=torch.float64)
    assert sl.compact(Net(through(F.relu)), x).first.out_features == 5
    with pytest.raises(ValueError, match=r"Net has sizes written in its code .* no code for this; compute them"):
        sl.compact(Net(through(lambda h: h.view(-1, 10))), x)
