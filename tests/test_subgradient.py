"""Steepest descent by the least subgradient: the direction, the line search, and where it ends."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import sparselayers.functional as F
from sparselayers.coding.subgradient import _descend, least_subgradient

LAM = 0.3


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    D = torch.randn(10, 20, dtype=torch.float64, generator=generator)
    x = torch.randn(6, 10, dtype=torch.float64, generator=generator)
    return x.to(dtype), (D / D.norm(dim=0)).to(dtype)


def objective(x: Tensor, D: Tensor, z: Tensor) -> Tensor:
    return (x - z @ D.mT).square().sum(-1) / 2 + LAM * z.abs().sum(-1)


def test_the_subgradient_is_the_least_of_all() -> None:
    """Against all subgradients on a grid of the interval that each zero entry allows."""
    z, slope = torch.tensor([0.0, 0.0, 1.0, -2.0]), torch.tensor([0.1, -0.9, 0.2, 0.2])
    g = least_subgradient(z, slope, torch.tensor(0.5))
    grid = torch.linspace(-0.5, 0.5, 1001)
    for i in range(4):
        allowed = slope[i] + (grid if z[i] == 0 else 0.5 * z[i].sign())
        least = torch.as_tensor(allowed).abs().min()
        assert abs(g[i].abs() - least) < 1e-3


def test_the_line_search_is_exact() -> None:
    x, D = problem()
    lam = torch.tensor(LAM, dtype=torch.float64)
    for depth in (1, 3, 8, 20):
        z = F.subgradient_descent(x, D, LAM, depth=depth)
        g = least_subgradient(z, (z @ D.mT - x) @ D, lam)
        got = objective(x, D, _descend(z, g, D, lam))
        grid = torch.linspace(0, 3, 3001, dtype=torch.float64)
        best = torch.stack([objective(x, D, z - alpha * g) for alpha in grid]).amin(0)
        assert (got <= best + 1e-12).all()


def test_it_descends_to_the_optimum_with_exact_zeros() -> None:
    x, D = problem()
    optimum = F.fista(x, D, LAM, depth=3000)
    costs = [objective(x, D, F.subgradient_descent(x, D, LAM, depth=k)) for k in (1, 2, 4, 8, 16, 64, 256)]
    assert all((b <= a + 1e-12).all() for a, b in itertools.pairwise(costs))
    z = F.subgradient_descent(x, D, LAM, depth=300)
    torch.testing.assert_close(z, optimum, atol=1e-8, rtol=1e-8)
    assert torch.equal(z == 0, optimum == 0)


def test_strengths_and_bad_values() -> None:
    x, D = problem(torch.float32)
    assert not F.subgradient_descent(x, D, (x @ D).abs().amax(-1, keepdim=True), depth=4).any()
    per_atom = F.subgradient_descent(x, D, torch.full((20,), LAM), depth=8)
    torch.testing.assert_close(per_atom, F.subgradient_descent(x, D, LAM, depth=8))
    assert F.subgradient_descent(x, D, 0.0, depth=50).isfinite().all()
    assert F.subgradient_descent(x[:0], D, LAM, depth=2).shape == (0, 20)
    assert F.subgradient_descent(x.half(), D.half(), LAM, depth=3).dtype == torch.float16
    zero = torch.zeros(2, 10, requires_grad=True)
    (grad,) = torch.autograd.grad(F.subgradient_descent(zero, D, LAM, depth=3).sum(), zero)
    assert grad.isfinite().all()
    spoilt = x.clone()
    spoilt[0, 0] = torch.nan
    z = F.subgradient_descent(spoilt, D, LAM, depth=3)
    assert z[0].isnan().all()
    torch.testing.assert_close(z[1:], F.subgradient_descent(x, D, LAM, depth=3)[1:])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"depth": 0}, ValueError, "depth must be at least 1, got 0"),
        ({"lam": -1.0}, ValueError, r"lam must lie in \[0, inf\], got -1.0"),
        ({"lam": torch.ones(6)}, ValueError, r"lam must be a number.*unsqueeze\(-1\)"),
        ({"x": torch.ones(6, 20)}, ValueError, "transpose D"),
        ({"x": torch.ones(6, 10).long()}, TypeError, "x must be floating point"),
    ],
)
def test_bad_arguments(change: dict, error: type, message: str) -> None:
    x, D = problem(torch.float32)
    arguments = {"x": x, "D": D, "lam": LAM, "depth": 2} | change
    with pytest.raises(error, match=message):
        F.subgradient_descent(**arguments)
