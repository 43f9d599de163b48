"""The converged Lasso solver and its certificate, against coordinate descent written out and a gap taken as primal - dual."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor

import sparselayers as sl
from sparselayers.coding.certificate import duality_gap
from sparselayers.coding.solver import Solved, solve

PENALTIES = [sl.L1(), sl.NonnegativeL1(), sl.ElasticNet(0.7), sl.ElasticNet(0.0)]
SHAPES = [(8, 20), (12, 8), (10, 19)]


def problem(m: int = 8, n: int = 20, *batch: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    D = torch.randn(m, n, dtype=torch.float64, generator=g)
    return torch.randn(*batch, m, dtype=torch.float64, generator=g), D / D.norm(dim=0)


def split(penalty: sl.L1 | sl.NonnegativeL1 | sl.ElasticNet, lam: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ratio = penalty.ratio if isinstance(penalty, sl.ElasticNet) else 1.0
    return ratio * lam, (1 - ratio) * lam


def coordinate_descent(x: Tensor, D: Tensor, lam: float | Tensor, penalty, passes: int = 6000) -> Tensor:
    """The minimum of 1/2 ‖x - D z‖² + sum a abs(z) + b/2 z², one entry of every sample after the other, in float64."""
    atoms, r = D.double().numpy(), x.double().reshape(-1, x.shape[-1]).numpy().copy()
    n, square = atoms.shape[1], (atoms**2).sum(0)
    a, b = split(penalty, np.broadcast_to(np.asarray(lam, np.float64), (*x.shape[:-1], n)).reshape(-1, n))
    z = np.zeros((len(r), n))
    for _ in range(passes):
        moved = 0.0
        for j in np.flatnonzero(square):
            c = r @ atoms[:, j] + square[j] * z[:, j]
            size = c if isinstance(penalty, sl.NonnegativeL1) else np.abs(c)
            step = np.sign(c) * np.maximum(size - a[:, j], 0) / (square[j] + b[:, j]) - z[:, j]
            moved = max(moved, np.abs(step).max())
            r -= np.outer(step, atoms[:, j])
            z[:, j] += step
        if moved < 1e-13:
            break
    return torch.from_numpy(z).reshape(*x.shape[:-1], n)


def objective(x: Tensor, D: Tensor, z: Tensor, lam: float | Tensor, penalty) -> Tensor:
    a, b = (torch.as_tensor(q) for q in split(penalty, np.asarray(lam, np.float64)))
    z = z.double()
    r = x.double() - z @ D.double().T
    return 0.5 * r.square().sum(-1) + (a * z.abs()).sum(-1) + (b * z.square()).sum(-1) / 2


def gap_by_hand(x: Tensor, D: Tensor, z: Tensor, lam: float | Tensor, penalty) -> Tensor:
    """Primal less dual at the scaled residual, over 1/2 ‖x‖², as the textbook has it."""
    x, D, z = x.double(), D.double(), z.double()
    a, b = (torch.as_tensor(q) for q in split(penalty, np.asarray(lam, np.float64)))
    r = x - z @ D.T
    c = r @ D - b * z
    c = c if isinstance(penalty, sl.NonnegativeL1) else c.abs()
    s = (a / c.clamp_min(1e-300)).amin(-1).clamp(max=1)
    half = 0.5 * x.square().sum(-1)
    dual = half - 0.5 * (x - s[..., None] * r).square().sum(-1) - 0.5 * s.square() * (b * z.square()).sum(-1)
    return (objective(x, D, z, lam, penalty) - dual) / half


def solved(
    x: Tensor, D: Tensor, lam: float | Tensor, penalty=PENALTIES[0], tol: float = 1e-6, most: int = 2000
) -> Solved:
    return solve(x, D, lam, penalty, tol=tol, max_iter=most)


@pytest.fixture(params=["kernels", "torch"])
def path(request):
    with sl.kernels(request.param == "kernels"):
        yield request.param


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_code_is_that_of_coordinate_descent(path: str, shape: tuple[int, int], penalty) -> None:
    x, D = problem(*shape, 2, 3)
    found = solved(x, D, 0.1, penalty, tol=1e-13)
    torch.testing.assert_close(found.code, coordinate_descent(x, D, 0.1, penalty), rtol=1e-5, atol=1e-5)
    assert found.gap.shape == found.iterations.shape == (2, 3)
    assert float(found.gap.max()) <= 1e-13


def test_the_code_is_that_of_scikit_learn(path: str) -> None:
    x, D = problem(8, 20, 4)
    expected = [Lasso(0.1 / 8, fit_intercept=False, tol=1e-14, max_iter=10**6).fit(D, s).coef_ for s in x]
    found = solved(x, D, 0.1, tol=1e-14)
    torch.testing.assert_close(found.code, torch.from_numpy(np.stack(expected)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("penalty", PENALTIES[:3], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_certificate_is_primal_less_dual_and_bounds_the_excess(path: str, penalty, dtype: torch.dtype) -> None:
    x, D = problem(8, 20, 6)
    x, D = x.to(dtype), D.to(dtype)
    best = objective(x, D, coordinate_descent(x, D, 0.1, penalty), 0.1, penalty)
    for most in (1, 5, 2000):
        found = solved(x, D, 0.1, penalty, most=most)
        by_hand = gap_by_hand(x, D, found.code, 0.1, penalty)
        excess = (objective(x, D, found.code, 0.1, penalty) - best) / (0.5 * x.double().square().sum(-1))
        assert bool((found.gap <= by_hand * (1 + 1e-5) + 1e-12).all())
        assert bool((found.gap >= excess - 1e-12).all())
        if not isinstance(penalty, sl.ElasticNet):
            torch.testing.assert_close(found.gap.double(), by_hand, rtol=1e-4, atol=1e-11)
        torch.testing.assert_close(found.gap, duality_gap(x, D, found.code, 0.1, penalty))
        assert found.gap.dtype == dtype
        assert most < 2000 or float(found.gap.max()) <= 2e-6


def test_too_few_passes_come_with_an_honest_gap(path: str) -> None:
    x, D = problem(8, 20, 6)
    found = solved(x, D, 0.05, most=1)
    assert float(found.gap.max()) > 1e-3
    assert int(found.iterations.max()) == 1
    torch.testing.assert_close(found.gap, gap_by_hand(x, D, found.code, 0.05, sl.L1()))


@pytest.mark.parametrize("penalty", PENALTIES[:3], ids=repr)
def test_every_shape_of_lam(path: str, penalty) -> None:
    x, D = problem(8, 20, 2, 3)
    g = torch.Generator().manual_seed(1)
    for shape in ((), (1,), (3, 1), (2, 3, 1), (20,), (3, 20)):
        lam = 0.05 + 0.2 * torch.rand(shape, dtype=torch.float64, generator=g)
        found = solved(x, D, lam, penalty, tol=1e-12)
        assert float(found.gap.max()) <= 1e-12
        torch.testing.assert_close(found.code, coordinate_descent(x, D, lam, penalty), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("penalty", PENALTIES[:3], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_past_lam_max_the_code_is_exactly_zero(path: str, penalty, dtype: torch.dtype) -> None:
    x, D = problem(8, 20, 5)
    x, D = x.to(dtype), D.to(dtype)
    found = solved(x, D, penalty.lam_max(x @ D).unsqueeze(-1), penalty)
    assert not found.code.any()
    assert not found.iterations.any()
    assert float(found.gap.max()) < 1e-6


def test_without_strength_the_residual_vanishes(path: str) -> None:
    x, D = problem(8, 20, 5)
    found = solved(x, D, 0.0)
    assert float(found.gap.max()) <= 1e-6
    assert float((x - found.code @ D.T).norm(dim=-1).max()) < 1e-2


def test_atoms_without_strength_are_certified_too(path: str) -> None:
    x, D = problem(12, 8, 5)
    found = solved(x, D, 0.0, tol=1e-10)
    assert float(found.gap.max()) <= 1e-10
    torch.testing.assert_close(found.code, torch.linalg.lstsq(D, x.T).solution.T, rtol=1e-4, atol=1e-4)
    lam = torch.full((20,), 0.1, dtype=x.dtype)
    lam[3] = 0
    x, D = problem(8, 20, 5)
    found = solved(x, D, lam, tol=1e-10)
    assert float(found.gap.max()) <= 1e-10
    torch.testing.assert_close(found.code, coordinate_descent(x, D, lam, sl.L1()), rtol=1e-4, atol=1e-4)
    some = torch.tensor([[0.0], [0.1], [0.0], [0.2], [0.1]], dtype=x.dtype)
    assert float(solved(x, D, some).gap.max()) <= 1e-6


def test_a_zero_sample_has_a_zero_code_and_no_gap(path: str) -> None:
    x, D = problem(8, 20, 3)
    x[1] = 0
    found = solved(x, D, 0.1)
    assert not found.code[1].any()
    assert found.gap[1] == 0
    assert found.iterations[1] == 0
    assert found.code[0].any()
    assert float(solved(x, D * 0, 0.1).gap.max()) == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("penalty", [*PENALTIES[:3], sl.Grouped(sl.GroupL2(), 4)], ids=repr)
def test_a_bad_sample_spoils_itself_alone(path: str, bad: float, penalty) -> None:
    x, D = problem(8, 20, 4)
    expected = solved(x, D, 0.1, penalty)
    x[2, 3] = bad
    found = solved(x, D, 0.1, penalty)
    assert bool(found.code[2].isnan().all())
    assert bool(found.gap[2].isnan())
    good = [0, 1, 3]
    torch.testing.assert_close(found.code[good], expected.code[good], rtol=1e-4, atol=1e-4)


def test_a_bad_strength_spoils_its_sample_alone(path: str) -> None:
    x, D = problem(8, 20, 3)
    found = solved(x, D, torch.tensor([[0.1], [torch.nan], [0.1]], dtype=x.dtype))
    assert bool(found.code[1].isnan().all())
    assert bool(found.code[[0, 2]].isfinite().all())


def test_no_samples_one_sample_and_samples_out_of_order(path: str) -> None:
    x, D = problem(8, 20, 4, 6)
    assert solved(x[:0], D, 0.1).code.shape == (0, 6, 20)
    before = x.clone(), D.clone()
    found = solved(x, D, 0.1)
    assert torch.equal(x, before[0])
    assert torch.equal(D, before[1])
    torch.testing.assert_close(solved(x[1, 2], D, 0.1).code, found.code[1, 2], rtol=1e-9, atol=1e-9)
    turned = solved(x.transpose(0, 1), D.T.contiguous().T, 0.1)
    torch.testing.assert_close(turned.code, found.code.transpose(0, 1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_code_does_not_depend_on_its_batch(path: str, dtype: torch.dtype) -> None:
    """To rounding: matrix products of another size round otherwise."""
    x, D = (q.to(dtype) for q in problem(8, 20, 40))
    together = solved(x, D, 0.05)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-3
    for k in (0, 7, 39):
        alone = solved(x[k : k + 1], D, 0.05)
        torch.testing.assert_close(alone.code[0], together.code[k], rtol=0, atol=tolerance)


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e6, 1e20])
@pytest.mark.parametrize("penalty", PENALTIES[:2], ids=repr)
def test_scales(path: str, penalty, scale: float) -> None:
    x, D = (q.float() for q in problem(8, 20, 5))
    expected = coordinate_descent(x, D, 0.1, penalty)
    for found in (
        solved(x * scale, D, 0.1 * scale, penalty).code.double() / scale,
        solved(x, D * scale, 0.1 * scale, penalty).code.double() * scale,
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)
    assert float(solved(x * scale, D, 0.1 * scale, penalty).gap.max()) <= 1e-6


def test_twin_atoms_and_zero_atoms(path: str) -> None:
    x, D = problem(8, 20, 5)
    D = torch.cat([D, D[:, :6], -D[:, 6:9], 0 * D[:, :2]], 1)
    found = solved(x, D, 0.1)
    assert float(found.gap.max()) <= 1e-6
    assert not found.code[:, -2:].any()
    expected = objective(x, D, coordinate_descent(x, D, 0.1, sl.L1()), 0.1, sl.L1())
    torch.testing.assert_close(objective(x, D, found.code, 0.1, sl.L1()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_computed_in_32(path: str, dtype: torch.dtype) -> None:
    x, D = (q.to(dtype) for q in problem(8, 20, 5))
    found = solved(x, D, 0.1)
    assert found.code.dtype == dtype
    assert found.gap.dtype == torch.float32
    torch.testing.assert_close(found.code, solved(x.float(), D.float(), 0.1).code.to(dtype))


@pytest.mark.parametrize(
    "penalty",
    [sl.Grouped(sl.GroupL2(), 4), sl.SparseGroup(0.5), sl.LInf(), sl.Exclusive(), sl.Simplex(), sl.Ridge()],
    ids=repr,
)
def test_other_penalties_end_at_a_fixed_point(path: str, penalty) -> None:
    x, D = problem(8, 20, 2, 3)
    found = solved(x, D, 0.1, penalty, tol=1e-10, most=5000)
    assert float(found.gap.max()) <= 1e-10
    step = 1 / float(torch.linalg.matrix_norm(D, 2)) ** 2
    moved = penalty.prox(found.code - step * (found.code @ D.T - x) @ D, step * 0.1)
    torch.testing.assert_close(moved, found.code, rtol=0, atol=1e-8)


def test_transforms_and_compilers_see_one_operator_with_the_same_answer(path: str) -> None:
    x, D = problem(8, 20, 3)
    lam = torch.tensor([[0.1], [0.2], [0.3]], dtype=x.dtype)
    atomwise = torch.linspace(0.1, 0.3, 60, dtype=x.dtype).view(3, 20)
    for penalty in PENALTIES[:3]:

        def codes(x: Tensor, D: Tensor, lam: float | Tensor, penalty=penalty) -> Tensor:
            return solved(x, D, lam, penalty).code

        together = codes(x, D, lam)
        near = {"rtol": 0, "atol": 1e-2}  # with and without kernels: both are certified, not the same
        torch.testing.assert_close(torch.func.vmap(codes, (0, None, 0))(x, D, lam), together, **near)
        torch.testing.assert_close(torch.func.vmap(codes)(x, D.expand(3, 8, 20), lam), together, **near)
        torch.testing.assert_close(torch.func.vmap(codes, (0, None, 0))(x, D, atomwise), codes(x, D, atomwise), **near)
        assert torch.func.vmap(codes, (None, None, 0))(x, D, atomwise).shape == (3, 3, 20)
        for jacobian in (torch.func.jacrev, torch.func.jacfwd):
            assert not jacobian(lambda x: codes(x, D, 0.1) + 0 * x.sum())(x).any()
    compiled = torch.compile(lambda x, D: solved(x, D, 0.1), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, D).code, solved(x, D, 0.1).code, rtol=0, atol=1e-2)


def test_the_exact_optimum_of_the_support_is_taken_where_it_is_better() -> None:
    """Far below what the descent alone would reach in these steps."""
    x, D = problem(20, 40, 6)
    with sl.kernels(False):
        found = solved(x, D, 0.3)
    assert float(found.gap.max()) < 1e-12
    assert int(found.iterations.max()) < 200
