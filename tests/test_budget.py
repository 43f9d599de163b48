"""Budget, weighted and top-k simplex against bisection, cvxpy, all subsets and entmax; gradients; conventions; hard rows."""

from __future__ import annotations

import itertools

import cvxpy
import entmax
import numpy as np
import pytest
import torch
from torch import Tensor

import sparselayers.functional as F

from . import oracles
from .test_ops import hard_rows


def entries(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def positive(*shape: int, low: float = 0.2, high: float = 3.0) -> Tensor:
    return low + (high - low) * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def budget_twin(v: np.ndarray, k: float) -> np.ndarray:
    """In long double, by bisection in tau relative to the largest entry."""
    v = v.astype(np.longdouble) - v.max()
    level = oracles.bisect(lambda tau: np.clip(v - tau, 0, 1).sum() - k, v.min() - 1, np.longdouble(0))
    return np.clip(v - level, 0, 1).astype(np.float64)


def weighted_twin(v: np.ndarray, w: np.ndarray, radius: float) -> np.ndarray:
    level = oracles.bisect(lambda tau: (w * np.maximum(v - tau * w, 0)).sum() - radius, -1e3, (v / w).max())
    return np.maximum(v - level * w, 0)


def minimiser(v: np.ndarray, constraints) -> np.ndarray:
    x = cvxpy.Variable(len(v))
    options = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-12)
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(x - v)), constraints(x)).solve(solver=cvxpy.CLARABEL, **options)
    return x.value


# ------------------------------------------------------------------------------------------------------------- budget


@pytest.mark.parametrize("scale", [1e-3, 0.5, 3.0, 100.0])
@pytest.mark.parametrize("k", [0, 0.3, 1, 2.5, 8, 16.9, 17])
def test_budget_equals_bisection_and_entmax(k: float, scale: float) -> None:
    v = entries(20, 17, scale=scale)
    x = F.project_budget(v, k)
    torch.testing.assert_close(
        x, torch.from_numpy(np.stack([budget_twin(row, k) for row in v.numpy()])), rtol=0, atol=1e-13 * max(1, scale)
    )
    torch.testing.assert_close(x, entmax.budget_bisect(v, k, n_iter=80), rtol=0, atol=1e-12 * max(1, scale))
    assert ((x >= 0) & (x <= 1)).all()


@pytest.mark.parametrize("k", [0.4, 1, 2.7, 5])
def test_budget_is_the_argmin(k: float) -> None:
    for row in entries(4, 6, seed=2).numpy():
        expected = minimiser(row, lambda x: [x >= 0, x <= 1, cvxpy.sum(x) == k])
        np.testing.assert_allclose(F.project_budget(torch.from_numpy(row), k).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 7, 64, 1000, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_budget_on_hard_rows(n: int, dtype: torch.dtype) -> None:
    """Rows that peel slowly, ties, and staircases on which Newton's method in tau goes round in circles."""
    steps = torch.arange(n, dtype=torch.float64)
    rows = hard_rows(n, torch.float64) | {
        "staircase": -steps,
        "half stairs": -0.5 * steps,
        "gaps": -10.0 * steps,
        "three heights": -5.0 * (steps % 3),
        "two crowds": -0.9 * (steps % 2) - 1e-6 * steps,
    }
    rounding = torch.finfo(dtype).eps
    for (name, exact), share in itertools.product(rows.items(), (0.0, 0.1, 0.5, 0.75, 1.0)):
        row, k = exact.to(dtype), share * n if share == 0.1 else float(round(share * n))
        x = F.project_budget(row, k).double().numpy()
        spread = max(1.0, float(row.abs().max()))
        assert abs(x - budget_twin(row.double().numpy(), k)).max() <= 8 * rounding * (
            n**0.5 if name == "ties" else 1
        ), (name, k)
        assert abs(x.sum() - k) <= 8 * rounding * max(1.0, k) * max(1, spread if n == 1 else 1), (name, k)


def test_budget_jacobian_is_the_published_one() -> None:
    v, k = entries(9, seed=3), torch.tensor(3.3, dtype=torch.float64)
    x = F.project_budget(v, k)
    s = ((x > 0) & (x < 1)).double()
    by_v, by_k = torch.func.jacrev(F.project_budget, (0, 1))(v, k)
    torch.testing.assert_close(by_v, torch.diag(s) - torch.outer(s, s) / s.sum())
    torch.testing.assert_close(by_k, s / s.sum())


def test_budget_k_broadcasts_and_gets_its_gradient_where_an_axis_has_size_one() -> None:
    v = entries(2, 1, 4).requires_grad_()
    for shape in ((), (1,), (1, 1), (2, 1, 1)):
        k = torch.full(shape, 2.3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(F.project_budget, (v, k))
    k = torch.tensor([[[1.2], [0.7]]], dtype=torch.float64)
    across = F.project_budget(v.movedim(-1, 1).expand(2, 4, 2), k.movedim(-1, 1), dim=1)
    torch.testing.assert_close(across.movedim(1, -1), F.project_budget(v.expand(2, 2, 4), k))


def test_more_than_there_is_gives_all_that_takes_part() -> None:
    v, mask = entries(3, 5), torch.tensor([[True, True, False, False, True]])
    assert torch.equal(F.project_budget(v, 4, mask=mask), mask.double().expand(3, 5))
    asked = torch.tensor([[9.0], [-2.0], [2.0]], dtype=torch.float64)
    x = F.project_budget(v, asked)
    assert x[0].tolist() == [1.0] * 5
    assert x[1].tolist() == [0.0] * 5
    torch.testing.assert_close(x[2], F.project_budget(v[2], 2))
    assert F.project_budget(v.masked_fill(~mask, -torch.inf), 5)[0].tolist() == [1.0, 1.0, 0.0, 0.0, 1.0]


# ---------------------------------------------------------------------------------------------------- weighted simplex


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("radius", [0.1, 1.0, 20.0])
def test_weighted_simplex_equals_bisection(scale: float, radius: float) -> None:
    v, w = entries(20, 9, scale=scale), positive(20, 9)
    expected = np.stack([weighted_twin(a, b, radius) for a, b in zip(v.numpy(), w.numpy(), strict=True)])
    torch.testing.assert_close(
        F.project_simplex(v, radius, weight=w), torch.from_numpy(expected), rtol=1e-10, atol=1e-11
    )
    torch.testing.assert_close(
        F.project_simplex(v.T, radius, dim=0, weight=w.T), torch.from_numpy(expected.T), rtol=1e-10, atol=1e-11
    )


def test_weighted_simplex_is_the_argmin() -> None:
    v, w = entries(6, seed=2), positive(6)
    expected = minimiser(v.numpy(), lambda x: [x >= 0, w.numpy() @ x == 1.3])
    np.testing.assert_allclose(F.project_simplex(v, 1.3, weight=w).numpy(), expected, atol=1e-6)


def test_weight_may_be_a_number_or_broadcast() -> None:
    v, w = entries(3, 5), positive(5)
    torch.testing.assert_close(F.project_simplex(v, 1.0, weight=2.0), F.project_simplex(v, 0.5))
    torch.testing.assert_close(F.project_simplex(v, 1.0, weight=w), F.project_simplex(v, 1.0, weight=w.expand(3, 5)))
    torch.testing.assert_close(F.project_simplex(v, weight=torch.ones(())), F.project_simplex(v))
    mask = torch.tensor([True, False, True, True, True])
    spoilt = torch.where(mask, w, torch.nan).requires_grad_()
    x = F.project_simplex(v, weight=spoilt, mask=mask)
    torch.testing.assert_close(x[:, mask], F.project_simplex(v[:, mask], weight=w[mask]))
    (grad,) = torch.autograd.grad((x * v).sum(), spoilt)
    assert grad.isfinite().all()
    assert grad[1] == 0


# ----------------------------------------------------------------------------------------------------- top-k simplex


def best_of_all_subsets(v: np.ndarray, k: int) -> np.ndarray:
    candidates = []
    for chosen in itertools.combinations(range(len(v)), min(k, len(v))):
        x = np.zeros_like(v)
        x[list(chosen)] = oracles.simplex(v[list(chosen)], np.ones(len(chosen)), 1.0)
        candidates.append(x)
    return min(candidates, key=lambda x: ((x - v) ** 2).sum())


@pytest.mark.parametrize("k", [1, 2, 3, 6, 9])
def test_topk_is_the_best_of_all_subsets(k: int) -> None:
    v = entries(15, 6, scale=0.3)
    expected = torch.from_numpy(np.stack([best_of_all_subsets(row, k) for row in v.numpy()]))
    torch.testing.assert_close(F.topk_simplex(v, k), expected)
    torch.testing.assert_close(F.topk_simplex(v.T, k, dim=0), expected.T)
    assert (F.topk_simplex(v, k) > 0).sum(-1).max() <= k


def test_topk_keeps_the_first_of_equals() -> None:
    assert F.topk_simplex(torch.zeros(2, 4), 2).tolist() == [[0.5, 0.5, 0.0, 0.0]] * 2
    assert F.topk_simplex(torch.tensor([0.0, 1.0, 1.0, 1.0]), 2).tolist() == [0.0, 0.5, 0.5, 0.0]
    assert (F.topk_simplex(torch.zeros(1, 5000), 7)[0, :7] > 0).all()
    v = entries(4, 9)
    torch.testing.assert_close(F.topk_simplex(v, 9), F.sparsemax(v))


# --------------------------------------------------------------------------------------------------------- conventions

ALL = pytest.mark.parametrize(
    "f",
    [
        lambda v, **rest: F.project_budget(v, 1.6, **rest),
        lambda v, **rest: F.project_budget(v, torch.tensor(1.6), **rest),
        lambda v, **rest: F.topk_simplex(v, 2, **rest),
        lambda v, **rest: F.project_simplex(v, weight=2.0, **rest),
    ],
    ids=["budget", "budget of a tensor", "topk", "weighted"],
)


@ALL
def test_masked_is_dropped_whatever_stands_there(f) -> None:
    v = entries(5, 9)
    mask = torch.rand(5, 9, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[3], v[4] = False, -torch.inf
    dirty = torch.where(
        mask, v, torch.tensor([torch.nan, torch.inf, 1e30])[torch.arange(9) % 3].double()
    ).requires_grad_()
    x = f(dirty, mask=mask)
    for row, seen, out in zip(v[:3], mask, x, strict=False):
        torch.testing.assert_close(out[seen], f(row[seen]))
    assert (x[~mask] == 0).all()
    assert (x[4] == 0).all()
    (grad,) = torch.autograd.grad((x.square() * torch.arange(9)).sum(), dirty, create_graph=True)
    assert grad.isfinite().all()
    assert (grad[~mask] == 0).all()
    assert (grad[4] == 0).all()
    assert torch.autograd.grad(grad.square().sum(), dirty)[0].isfinite().all()
    torch.testing.assert_close(f(v.masked_fill(~mask, -torch.inf)), x.detach())


@ALL
def test_nan_inf_shapes_strides(f) -> None:
    v = entries(4, 5)
    v[1, 2], v[2, 0] = torch.nan, torch.inf
    x = f(v)
    assert x[1:3].isnan().all()
    torch.testing.assert_close(x[[0, 3]], f(v[[0, 3]]))
    assert f(torch.zeros(0, 5)).shape == (0, 5)
    assert f(torch.zeros(5, 0)).shape == (5, 0)
    z = entries(2, 3, 4)
    before, strided = z.clone(), z.transpose(0, 2)
    torch.testing.assert_close(f(strided, dim=0), f(strided.contiguous(), dim=0))
    torch.testing.assert_close(f(z, dim=-3), f(z.movedim(0, -1)).movedim(-1, 0))
    assert torch.equal(z, before)


@ALL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [64, 16384])
def test_sixteen_bits(f, dtype: torch.dtype, n: int) -> None:
    v = entries(4, n).to(dtype)
    x, exact = f(v), f(v.double())
    assert x.dtype == dtype
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert ((x.double() - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact + smallest + 1e-6).all()


@pytest.mark.parametrize(
    "f",
    [
        lambda v: F.project_budget(v, 2),
        lambda v: F.project_budget(v, torch.tensor(2.3)),
        lambda v: F.topk_simplex(v, 3),
        lambda v: F.project_simplex(v, weight=2.0),
    ],
)
def test_export_with_dynamic_shapes(f) -> None:
    class Wrapped(torch.nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return f(z)

    dynamic = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(Wrapped(), (torch.randn(4, 6),), dynamic_shapes=dynamic)
    z = torch.randn(9, 300, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(program.module()(z), f(z))


V = torch.ones(2, 4)
WRONG = [
    (lambda: F.project_budget(V, -1), ValueError, r"k must lie in \[0, inf\], got -1"),
    (
        lambda: F.project_budget(V, 4.5),
        ValueError,
        "k must be at most 4, the length of the rows, since no entry exceeds 1; got 4.5",
    ),
    (lambda: F.project_budget(V, "2"), TypeError, "k must be a number, got str"),
    (
        lambda: F.project_budget(V, torch.ones(4)),
        ValueError,
        r"k must be a number or broadcast .* with size 1 at dim -1, got shape \(4,\)",
    ),
    (lambda: F.project_budget(V, torch.ones(1, 4, 1)), ValueError, "k must be a number or broadcast"),
    (lambda: F.project_budget(V.int(), 1), TypeError, "v must be floating point, got torch.int32"),
    (lambda: F.project_budget(V, 1, dim=2), IndexError, r"dim must lie in \[-2, 1\]"),
    (lambda: F.project_budget(V, 1, mask=V), TypeError, "mask must be a boolean tensor"),
    (lambda: F.topk_simplex(V, 0), ValueError, "k must be at least 1, got 0"),
    (lambda: F.topk_simplex(V, 1.5), TypeError, "k must be an int, got float"),
    (lambda: F.topk_simplex(V.int(), 1), TypeError, "v must be floating point"),
    (lambda: F.topk_simplex(V, 1, dim=2), ValueError, "dim must lie"),
    (lambda: F.topk_simplex(V, 1, mask=torch.ones(3, 4, dtype=torch.bool)), ValueError, "mask of shape"),
    (lambda: F.project_simplex(V, weight=0.0), ValueError, r"weight must lie in \(0, inf\], got 0.0"),
    (lambda: F.project_simplex(V, weight="w"), TypeError, "weight must be a number, got str"),
    (
        lambda: F.project_simplex(V, weight=torch.ones(3)),
        ValueError,
        r"weight of shape \(3,\) does not broadcast to v of shape \(2, 4\)",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
