"""Unit-norm atoms: the projection, its derivatives, and life as a parametrization of every coding layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize

import sparselayers as sl

f64 = torch.float64
LAYERS = {
    "ISTA": lambda **o: sl.ISTA(6, 9, depth=3, **o),
    "FISTA": lambda **o: sl.FISTA(6, 9, depth=3, **o),
    "ConvISTA": lambda **o: sl.ConvISTA(2, 9, 3, depth=3, **o),
    "ConvFISTA": lambda **o: sl.ConvFISTA(2, 9, (3,), depth=3, stride=2, **o),
}
SIGNALS = {"ISTA": (5, 6), "FISTA": (5, 6), "ConvISTA": (5, 2, 7, 7), "ConvFISTA": (5, 2, 11)}


def signal(name: str) -> Tensor:
    return torch.randn(SIGNALS[name], dtype=f64, generator=torch.Generator().manual_seed(1))


def lengths(D: Tensor) -> Tensor:
    return D.norm(dim=0) if D.ndim == 2 else D.flatten(1).norm(dim=1)


@pytest.mark.parametrize("name", LAYERS)
def test_training_keeps_the_norm_and_the_gradient_is_tangent(name: str) -> None:
    torch.manual_seed(0)
    layer = sl.unit_norm(LAYERS[name](dtype=f64))
    x = signal(name)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    start = layer.dictionary.detach().clone()
    for _ in range(10):
        optimizer.zero_grad()
        (x - layer.decode(layer(x), *([x.shape] if "Conv" in name else []))).square().sum().backward()
        free = layer.parametrizations.dictionary.original
        axes = 0 if free.ndim == 2 else tuple(range(1, free.ndim))
        inner = (free * free.grad).sum(axes)
        torch.testing.assert_close(inner, torch.zeros_like(inner), atol=1e-10, rtol=0)
        optimizer.step()
        torch.testing.assert_close(lengths(layer.dictionary), torch.ones(9, dtype=f64))
    assert not torch.allclose(start, layer.dictionary)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("learn", [("dictionary",), ()], ids=["parameter", "buffer"])
def test_assignment_state_dict_copies_reset_and_removal(name: str, learn: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    layer, other = (sl.unit_norm(LAYERS[name](dtype=f64, learn=learn)) for _ in range(2))
    x = signal(name)
    D = torch.randn_like(layer.dictionary)
    unit = sl.UnitNorm(-1 if D.ndim == 2 else 0)(D)
    layer.dictionary = 3 * D
    torch.testing.assert_close(layer.dictionary, unit)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    layer.reset_parameters()
    assert not torch.allclose(layer.dictionary, unit)
    torch.testing.assert_close(lengths(layer.dictionary), torch.ones(9, dtype=f64))
    assert torch.equal(twin.dictionary, other.dictionary)
    parametrize.remove_parametrizations(other, "dictionary")
    torch.testing.assert_close(other.dictionary.detach(), unit)
    torch.testing.assert_close(other(x), twin(x))
    assert sorted(other.state_dict()) == ["dictionary"]


def test_a_zero_atom_stays_zero_and_finite() -> None:
    D = torch.randn(4, 5, dtype=f64)
    D[:, 2] = 0
    D.requires_grad_()
    unit = sl.UnitNorm()(D)
    assert (unit[:, 2] == 0).all()
    (gradient,) = torch.autograd.grad((unit * torch.arange(20.0).view(4, 5)).sum(), D, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), D)
    assert gradient.isfinite().all()
    assert second.isfinite().all()
    assert gradient[:, 2].any()  # so that a step can bring it back to life


def test_the_projection() -> None:
    D = torch.randn(3, 4, 2, dtype=f64, requires_grad=True)
    for dim in (0, 1, -1):
        unit = sl.UnitNorm(dim)(D)
        axes = tuple(axis for axis in range(3) if axis != dim % 3)
        torch.testing.assert_close(unit.square().sum(axes), torch.ones(D.shape[dim], dtype=f64))
        torch.testing.assert_close(unit, D / D.square().sum(axes, keepdim=True).sqrt())
    assert torch.autograd.gradcheck(sl.UnitNorm(1), D, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(sl.UnitNorm(1), D)
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(lengths(sl.UnitNorm()(scale * torch.ones(7, 2))), torch.ones(2))
    half = sl.UnitNorm()(torch.ones(4, 2).half())
    assert half.dtype == torch.float16
    assert (half == 0.5).all()
    assert repr(sl.UnitNorm(0)) == "UnitNorm(dim=0)"


def test_other_modules_and_their_tensors() -> None:
    linear = sl.unit_norm(torch.nn.Linear(5, 3), "weight", dim=0)
    torch.testing.assert_close(linear.weight.norm(dim=1), torch.ones(3))


def test_compiles() -> None:
    layer = sl.unit_norm(sl.ISTA(6, 9, depth=3, dtype=f64))
    x = signal("ISTA")
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


WRONG = [
    (lambda: sl.UnitNorm("0"), TypeError, "dim must be an int, got str"),
    (lambda: sl.UnitNorm(3)(torch.ones(2, 2)), ValueError, r"dim must lie in \[-2, 1\]"),
    (lambda: sl.UnitNorm()(torch.ones(2, 2).int()), TypeError, "D must be floating point"),
    (lambda: sl.unit_norm(torch.nn.Linear(2, 2)), ValueError, "Linear has no parameter or buffer 'dictionary'"),
    (
        lambda: sl.unit_norm(sl.unit_norm(sl.ISTA(2, 3, depth=1))),
        ValueError,
        "'dictionary' of .* has a parametrization",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:30] for w in WRONG])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("variant", ["lista", "cp", "alista", "hyper"])
def test_lista_takes_it_too(variant: str) -> None:
    layer = sl.unit_norm(sl.LISTA(6, 9, depth=3, variant=variant, dtype=f64))
    layer.dictionary = torch.randn(6, 9, dtype=f64)
    torch.testing.assert_close(lengths(layer.dictionary), torch.ones(9, dtype=f64))
    assert torch.equal(copy.deepcopy(layer)(signal("ISTA")), layer(signal("ISTA")))
