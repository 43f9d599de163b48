"""Convolutional layers: against the explicit matrix of their dictionary; adjoints, the norm's bound, shapes, errors."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sparselayers as sl
import sparselayers.functional as F
from sparselayers.coding.dictionaries import Conv
from sparselayers.ops import conv_norm

f64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=f64, generator=torch.Generator().manual_seed(seed))


def unit_filters(*shape: int, seed: int = 0) -> Tensor:
    w = randn(*shape, seed=seed)
    return w / w.flatten(1).norm(dim=1).view(-1, *(1,) * (len(shape) - 1))


def matrix(D: Conv) -> Tensor:
    """D as a matrix (channels * size, n_atoms * code size), one filter placed by hand at one position a column."""
    n_atoms, channels, *kernel = D.weight.shape
    columns = []
    for atom in range(n_atoms):
        for place in torch.cartesian_prod(*(torch.arange(n) for n in D.code_size)).reshape(-1, len(kernel)).tolist():
            canvas = torch.zeros(channels, *(n + 2 * p for n, p in zip(D.size, D.padding, strict=True)), dtype=f64)
            at = tuple(slice(i * s, i * s + k) for i, s, k in zip(place, D.stride, kernel, strict=True))
            canvas[(slice(None), *at)] = D.weight[atom]
            inside = tuple(slice(p, p + n) for p, n in zip(D.padding, D.size, strict=True))
            columns.append(canvas[(slice(None), *inside)].flatten())
    return torch.stack(columns, 1)


GEOMETRIES = [
    ((3, 2, 3), (1,), (0,), (9,)),
    ((3, 1, 4), (3,), (2,), (11,)),
    ((4, 2, 3, 3), (1, 1), (1, 1), (5, 6)),
    ((3, 1, 2, 4), (2, 3), (1, 0), (6, 9)),
    ((2, 3, 5, 5), (4, 4), (2, 2), (10, 11)),
    ((3, 2, 2, 2), (3, 3), (0, 0), (7, 8)),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("layer", [sl.ConvISTA, sl.ConvFISTA])
def test_a_layer_is_the_dense_one_on_its_explicit_matrix(geometry, layer) -> None:
    shape, stride, padding, size = geometry
    w, x = unit_filters(*shape), randn(4, shape[1], *size, seed=1)
    D = matrix(Conv(w, stride, padding, size))
    made = layer(
        shape[1], shape[0], shape[2:], stride=stride, padding=padding, depth=7, lam=0.2, dictionary=w, step=0.05
    )
    dense = F.ista if layer is sl.ConvISTA else F.fista
    expected = dense(x.flatten(1), D, 0.2, depth=7, step=0.05, schedule=sl.Homotopy())
    z = made(x)
    assert z.shape == (4, shape[0], *Conv(w, stride, padding, size).code_size)
    torch.testing.assert_close(z.flatten(1), expected)
    torch.testing.assert_close(made.decode(z, x.shape).flatten(1), z.flatten(1) @ D.T)
    torch.testing.assert_close(made(x[2]), z[2])
    found, trace = made(x, trace=True)
    assert len(trace) == 7
    assert torch.equal(trace[-1], found)
    assert trace[0].shape == z.shape


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_decode_and_adjoint_are_adjoint(data) -> None:
    dims = data.draw(st.integers(1, 2))
    draw = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    kernel, stride, padding = draw(1, 5), draw(1, 4), draw(0, 3)
    size = tuple(max(n, k - 2 * p, 1) for n, k, p in zip(draw(1, 9), kernel, padding, strict=True))
    n_atoms, channels = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    D = Conv(randn(n_atoms, channels, *kernel), stride, padding, size)
    z, x = randn(2, n_atoms, *D.code_size, seed=1), randn(2, channels, *size, seed=2)
    assert D.decode(z).shape == x.shape
    assert D.adjoint(x).shape == z.shape
    torch.testing.assert_close((D.decode(z) * x).sum(), (z * D.adjoint(x)).sum(), rtol=1e-12, atol=1e-11)
    layer = sl.ConvISTA(channels, n_atoms, kernel, stride=stride, padding=padding, depth=1, dictionary=D.weight)
    assert torch.equal(layer.decode(z, size), D.decode(z))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_norm_is_bounded_from_above_and_not_by_much(data) -> None:
    dims = data.draw(st.integers(1, 2))
    draw = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    kernel, stride = draw(1, 4), draw(1, 3)
    w = randn(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3)), *kernel, seed=data.draw(st.integers(0, 99)))
    size = (60,) if dims == 1 else (12, 12)
    D = matrix(Conv(w, stride, tuple(k // 2 for k in kernel), size))
    true, bound = torch.linalg.matrix_norm(D, 2) ** 2, conv_norm.conv_squared_norm(w, stride)
    assert true <= bound * (1 + 1e-12)
    # A short signal has a smaller norm than an endless one: in two dimensions 12 x 12 is short.
    assert bound <= true * (1.06 if dims == 1 else 1.6)


def test_the_norm_where_it_is_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    for shape, stride in (((5, 3, 7), (1,)), ((2, 4, 5, 5), (1, 2)), ((6, 3, 3, 3), (1, 1)), ((3, 2, 1, 1), (2, 2))):
        w = randn(*shape)
        certified = conv_norm.conv_squared_norm(w, stride)
        monkeypatch.setattr(conv_norm, "MOST_WORK", 0)
        estimate = conv_norm.conv_squared_norm(w, stride)
        monkeypatch.undo()
        assert certified / 1.05 <= estimate <= 1.15 * certified


def test_the_norm_of_special_weights() -> None:
    assert conv_norm.conv_squared_norm(torch.zeros(2, 1, 3, 3), (1, 1)) == 0
    assert conv_norm.conv_squared_norm(torch.full((2, 1, 3), torch.nan), (1,)).isnan()
    assert conv_norm.conv_squared_norm(torch.full((2, 1, 3), torch.inf), (1,)).isnan()
    for scale in (1e-15, 1.0, 1e15):  # squares that float32 still holds
        torch.testing.assert_close(
            conv_norm.conv_squared_norm(torch.full((1, 1, 2), scale), (1,)),
            torch.tensor(4 * scale**2 / math.cos(math.pi / 16)),
        )
    assert conv_norm.conv_squared_norm(torch.ones(1, 1, 2).bfloat16(), (1,)).dtype == torch.float32
    assert (sl.ConvISTA(1, 2, 3, depth=2, dictionary=torch.zeros(2, 1, 3, 3))(torch.ones(1, 5, 5)) == 0).all()


@pytest.mark.parametrize("stride", [(1, 1), (2, 1)], ids=str)
def test_the_norm_is_differentiable_twice(stride) -> None:
    w = randn(3, 2, 3, 2).requires_grad_()
    f = lambda w: conv_norm.conv_squared_norm(w, stride)  # noqa: E731
    assert torch.autograd.gradcheck(f, w, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, w, atol=1e-4)


@pytest.mark.parametrize("penalty", [sl.L1(), sl.Grouped(sl.GroupL2(), 3), sl.ElasticNet(0.4)], ids=repr)
@pytest.mark.parametrize("stride", [1, 2])
def test_the_default_step_never_increases_the_objective(penalty: sl.Penalty, stride: int) -> None:
    x, w = randn(3, 2, 9, 8), unit_filters(6, 2, 3, 3, seed=1)
    options = {"stride": stride, "padding": 1, "lam": 0.3, "penalty": penalty, "dictionary": w}
    layer = sl.ConvISTA(2, 6, 3, depth=25, schedule=sl.Constant(), **options)

    def objective(z: Tensor) -> Tensor:
        residual = (x - layer.decode(z, x.shape)).square().flatten(1).sum(-1) / 2
        return residual + 0.3 * penalty.value(z.movedim(1, -1)).flatten(1).sum(-1)

    values = torch.stack([objective(z) for z in layer(x, trace=True)[1]])
    assert (values.diff(dim=0) <= 1e-12).all()
    fast = objective(sl.ConvFISTA(2, 6, 3, depth=25, schedule=sl.Constant(), **options)(x))
    assert (fast <= values[-1]).all()


def test_a_group_is_at_one_position() -> None:
    x, w = randn(2, 1, 8, 8), unit_filters(6, 1, 3, 3, seed=1)
    z = sl.ConvISTA(1, 6, 3, depth=9, lam=0.4, penalty=sl.Grouped(sl.GroupL2(), 3), dictionary=w)(x)
    groups = z.unflatten(1, (2, 3)) != 0
    assert torch.equal(groups.any(2), groups.all(2))
    assert groups.any()
    assert not groups.all()


@pytest.mark.parametrize("layer", [sl.ConvISTA, sl.ConvFISTA])
def test_samples_are_on_their_own(layer) -> None:
    """lam_max, restart, NaN and strengths are per sample; a sample's scale is its own."""
    x, w = randn(4, 1, 9, 7), unit_filters(5, 1, 3, 3, seed=1)
    x = x * torch.tensor([1e-3, 1.0, 50.0, 0.0], dtype=f64).view(-1, 1, 1, 1)
    lam = torch.tensor([[1e-4], [0.3], [2.0], [0.1]], dtype=f64)
    made = layer(1, 5, 3, padding=1, depth=12, lam=lam, dictionary=w)
    z = made(x)
    alone = [layer(1, 5, 3, padding=1, depth=12, lam=float(s), dictionary=w)(e) for e, s in zip(x, lam, strict=True)]
    torch.testing.assert_close(z, torch.stack(alone))
    assert (z[3] == 0).all()
    x[1, 0, 2, 2] = torch.nan
    spoilt = made(x)
    assert spoilt[1].isnan().all()
    assert torch.equal(spoilt[[0, 2, 3]], z[[0, 2, 3]])


def test_lam_max_is_over_all_positions_and_gives_exactly_zero() -> None:
    for dtype in (torch.float32, f64):
        x, w = randn(20, 2, 8, 8).to(dtype), unit_filters(5, 2, 3, 3, seed=1).to(dtype)
        lam = Conv(w, (1, 1), (1, 1), (8, 8)).adjoint(x).flatten(1).abs().amax(-1, keepdim=True)
        for layer in (sl.ConvISTA, sl.ConvFISTA):
            assert not layer(2, 5, 3, padding=1, depth=8, lam=lam, dictionary=w)(x).any()
            assert layer(2, 5, 3, padding=1, depth=8, lam=0.99 * lam, dictionary=w)(x).flatten(1).any(-1).all()


def test_one_lam_an_atom() -> None:
    x, w = randn(3, 1, 9, 7), unit_filters(5, 1, 3, 3, seed=1)
    lam = torch.linspace(0.1, 0.6, 5, dtype=f64)
    D = matrix(Conv(w, (1, 1), (0, 0), (9, 7)))
    z = sl.ConvISTA(1, 5, 3, depth=6, lam=lam, dictionary=w, step=0.05)(x)
    each = lam.repeat_interleave(D.shape[1] // 5)
    torch.testing.assert_close(z.flatten(1), F.ista(x.flatten(1), D, each, depth=6, step=0.05, schedule=sl.Homotopy()))


def test_memory_layouts_dtypes_and_empty_batches() -> None:
    x, w = randn(3, 2, 8, 6).float(), unit_filters(5, 2, 3, 3, seed=1).float()
    layer = sl.ConvISTA(2, 5, 3, stride=2, padding=1, depth=5, dictionary=w)
    z = layer(x)
    kept = x.clone()
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), z)
    torch.testing.assert_close(layer(x.mT.contiguous().mT), z)
    torch.testing.assert_close(
        sl.ConvISTA(2, 5, 3, stride=2, padding=1, depth=5, dictionary=w.mT.contiguous().mT)(x), z
    )
    assert torch.equal(x, kept)
    assert layer(x[:0]).shape == (0, 5, 4, 3)
    assert layer.decode(z[:0], x.shape).shape == (0, 2, 8, 6)
    half = copy.deepcopy(layer).bfloat16()
    coded = half(x.bfloat16())
    assert coded.dtype == torch.bfloat16
    assert half.decode(coded, x.shape).dtype == torch.bfloat16
    torch.testing.assert_close(coded.float(), z, atol=0.05, rtol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).isfinite().all()


def test_what_is_learned_and_how_it_shows() -> None:
    layer = sl.ConvFISTA(2, 5, (3, 2), depth=3, learn=("dictionary", "lam", "step"), dtype=f64)
    assert sorted(dict(layer.named_parameters())) == ["dictionary", "log_lam", "log_step"]
    torch.testing.assert_close(layer.dictionary.flatten(1).norm(dim=1), torch.ones(5, dtype=f64))
    x = randn(3, 2, 7, 7)
    layer(x).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())
    twin = sl.ConvFISTA(2, 5, (3, 2), depth=3, learn=("dictionary", "lam", "step"), dtype=f64)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    before = layer.dictionary.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(before, layer.dictionary)
    assert sl.ConvISTA(2, 5, 3, depth=3, learn=()).state_dict().keys() == {"dictionary"}
    assert "2, 5, kernel_size=(3, 2), stride=(1, 1), padding=(0, 0), depth=3, lam=learned" in repr(layer)
    assert "restart='sample'" in repr(layer)


def test_the_smallest_size_is_the_default_of_decode() -> None:
    layer = sl.ConvISTA(1, 2, 3, stride=2, padding=1, depth=1)
    z = torch.ones(1, 2, 4, 4)
    assert layer.decode(z).shape == (1, 1, 7, 7)
    assert layer.decode(z, (8, 7)).shape == (1, 1, 8, 7)
    assert layer.decode(z[0], torch.Size([1, 8, 8])).shape == (1, 8, 8)


LAYER = sl.ConvISTA(2, 5, 3, stride=2, depth=2)
SIGNAL = sl.ConvISTA(1, 5, (3,), depth=2, lam=torch.ones(5, 1, 1))
WRONG = [
    (
        lambda: sl.ConvISTA(2, 5, (3, 3, 3), depth=2),
        ValueError,
        r"kernel_size must be an int or a tuple of 1 \(signals\)",
    ),
    (lambda: sl.ConvISTA(2, 5, 0, depth=2), ValueError, "kernel_size must be at least 1, got 0"),
    (lambda: sl.ConvISTA(2, 5, "3", depth=2), TypeError, "kernel_size must be an int or a tuple"),
    (lambda: sl.ConvISTA(2, 5, 3.0, depth=2), TypeError, "kernel_size must be an int or a tuple"),
    (lambda: sl.ConvISTA(2, 5, (3.0, 3), depth=2), TypeError, "kernel_size must be an int, got float"),
    (lambda: sl.ConvISTA(2, 5, 3, stride=0, depth=2), ValueError, "stride must be at least 1, got 0"),
    (lambda: sl.ConvISTA(2, 5, 3, stride=(1, 1, 1), depth=2), ValueError, "stride must be an int or a tuple of 2"),
    (lambda: sl.ConvISTA(2, 5, 3, padding=-1, depth=2), ValueError, "padding must be at least 0, got -1"),
    (lambda: sl.ConvISTA(2, 5, 3, padding="same", depth=2), TypeError, "padding must be an int.*kernel_size // 2"),
    (lambda: sl.ConvISTA(0, 5, 3, depth=2), ValueError, "in_channels must be at least 1"),
    (lambda: sl.ConvISTA(2, 0, 3, depth=2), ValueError, "n_atoms must be at least 1"),
    (
        lambda: sl.ConvISTA(2, 5, 3, depth=2, dictionary=torch.ones(2, 5, 3, 3)),
        ValueError,
        r"dictionary must be \(5, 2, 3, 3\) \(n_atoms, in_channels, \*kernel_size\), got \(2, 5, 3, 3\)",
    ),
    (lambda: sl.ConvISTA(2, 5, 3, depth=2, penalty=sl.Ridge()), ValueError, "no finite lam_max"),
    (lambda: sl.ConvFISTA(2, 5, 3, depth=2, restart="batch"), ValueError, "restart must be"),
    (
        lambda: LAYER(torch.ones(3, 5, 8, 8)),
        ValueError,
        r"x must be \(2, height, width\) or \(batch, 2, height, width\)",
    ),
    (lambda: LAYER(torch.ones(8, 8)), ValueError, "x must be .2, height, width"),
    (lambda: sl.ConvISTA(1, 5, 3, depth=2)(torch.ones(4, 8, 8)), ValueError, r"got \(4, 8, 8\); use x.unsqueeze\(-3\)"),
    (lambda: LAYER(torch.ones(3, 2, 2, 8)), ValueError, r"kernel \(3, 3\) does not fit.*\(2, 8\).*raise padding"),
    (lambda: LAYER(torch.ones(3, 2, 8, 8).int()), TypeError, r"x must be floating point.*x.float\(\)"),
    (lambda: LAYER(torch.ones(3, 2, 8, 8).double()), TypeError, r"one dtype, got torch.float64 and torch.float32"),
    (lambda: LAYER([1.0]), TypeError, "x must be a torch.Tensor"),
    (lambda: LAYER.decode(torch.ones(3, 4, 3, 3)), ValueError, r"z must be \(\[batch,\] 5, height, width\)"),
    (lambda: LAYER.decode(torch.ones(3, 5, 3, 3), (9, 9)), ValueError, r"between \(7, 7\) and \(8, 8\).*got \(9, 9\)"),
    (lambda: LAYER.decode(torch.ones(3, 5, 3, 3), (8,)), ValueError, "output_size must lie between"),
    (lambda: SIGNAL(torch.ones(3, 1, 9)), ValueError, r"lam must be a number, \(\), \(5,\).*use lam.flatten\(\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
