"""Least squares over the simplex and scale-free attention: against NNLS, Clarabel and the derivative on the support."""

from __future__ import annotations

import cvxpy
import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import sparselayers as sl
import sparselayers.functional as F

LOCALITY = pytest.mark.parametrize("locality", [0.0, 0.1, 1.0])
RIDGE = pytest.mark.parametrize("ridge", [0.0, 0.3])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outside(m: int = 8, n: int = 12, d: int = 4) -> tuple[Tensor, Tensor]:
    """Queries far outside the hull of the atoms, where the weights are unique."""
    x = random(m, d)
    return 6 * x / x.norm(dim=-1, keepdim=True), random(n, d, seed=1)


def inside(m: int = 6, n: int = 12, d: int = 3) -> tuple[Tensor, Tensor]:
    """Queries well inside the hull, where many weights explain them."""
    atoms = random(n, d, seed=1)
    mix = torch.softmax(0.3 * random(m, n, seed=2), -1)
    return mix @ atoms, atoms


def objective(x: np.ndarray, atoms: np.ndarray, y: np.ndarray, locality: float = 0.0, ridge: float = 0.0) -> float:
    far = ((x - atoms) ** 2).sum(-1)
    return 0.5 * ((x - y @ atoms) ** 2).sum() + 0.5 * locality * y @ far + 0.5 * ridge * y @ y


def true_gap(x: np.ndarray, atoms: np.ndarray, y: np.ndarray, locality: float = 0.0, ridge: float = 0.0) -> float:
    """The duality gap relative to the largest squared distance, from the definition."""
    far = ((x - atoms) ** 2).sum(-1)
    slope = atoms @ (y @ atoms - x) + 0.5 * locality * far + ridge * y
    return (slope @ y - slope.min()) / far.max() if far.max() > 0 else 0.0


def by_nnls(x: np.ndarray, atoms: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """Nonnegative least squares on a homogeneous form: its direction is the answer, its length is not."""
    n, s = len(atoms), 3.0
    rows = np.vstack([(atoms - x).T, np.sqrt(ridge) * np.eye(n), s * np.ones((1, n))])
    y = scipy.optimize.nnls(rows, np.append(np.zeros(len(rows) - 1), s))[0]
    return y / y.sum()


def by_clarabel(x: np.ndarray, atoms: np.ndarray, locality: float, ridge: float) -> np.ndarray:
    y = cvxpy.Variable(len(atoms), nonneg=True)
    cost = 0.5 * cvxpy.sum_squares(x - atoms.T @ y) + 0.5 * ridge * cvxpy.sum_squares(y)
    cost = cost + 0.5 * locality * (((x - atoms) ** 2).sum(-1) @ y)
    accuracy = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}
    cvxpy.Problem(cvxpy.Minimize(cost), [cvxpy.sum(y) == 1]).solve(solver=cvxpy.CLARABEL, **accuracy)
    best = np.maximum(y.value, 0)
    return best / best.sum()


def solve(x: Tensor, atoms: Tensor, **options) -> Tensor:
    return F.simplex_least_squares(x, atoms, **options).weights


@RIDGE
@pytest.mark.parametrize(("n", "d"), [(12, 4), (5, 20), (40, 6), (2, 1)])
def test_equals_nonnegative_least_squares(n: int, d: int, ridge: float) -> None:
    x, atoms = outside(8, n, d)
    found = F.simplex_least_squares(x, atoms, ridge=ridge, tol=1e-12, max_iter=20000)
    assert (found.gap <= 1e-12).all()
    for q, y in zip(x.numpy(), found.weights.numpy(), strict=True):
        expected = by_nnls(q, atoms.numpy(), ridge)
        assert objective(q, atoms.numpy(), expected) > 1e-3  # outside the hull
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
        best = objective(q, atoms.numpy(), expected, 0.0, ridge)
        assert abs(objective(q, atoms.numpy(), y, 0.0, ridge) - best) <= 1e-9


@pytest.mark.parametrize("locality", [0.05, 1.0])
@RIDGE
@pytest.mark.parametrize("problem", [outside, inside])
def test_equals_clarabel(problem, locality: float, ridge: float) -> None:
    x, atoms = problem(4)
    found = F.simplex_least_squares(x, atoms, locality=locality, ridge=ridge, tol=1e-12, max_iter=20000)
    for q, y in zip(x.numpy(), found.weights.numpy(), strict=True):
        best = by_clarabel(q, atoms.numpy(), locality, ridge)
        assert (
            abs(objective(q, atoms.numpy(), y, locality, ridge) - objective(q, atoms.numpy(), best, locality, ridge))
            < 1e-9
        )
        np.testing.assert_allclose(y, best, rtol=0, atol=1e-5)


@LOCALITY
@RIDGE
@pytest.mark.parametrize("problem", [outside, inside])
def test_the_gap_is_honest(problem, locality: float, ridge: float) -> None:
    x, atoms = problem()
    options = {"locality": locality, "ridge": ridge}
    best = solve(x, atoms, tol=1e-12, max_iter=20000, **options).numpy()
    for max_iter in (3, 30, 1000):
        found = F.simplex_least_squares(x, atoms, max_iter=max_iter, **options)
        for q, y, gap, least in zip(x.numpy(), found.weights.numpy(), found.gap.numpy(), best, strict=True):
            np.testing.assert_allclose(gap, true_gap(q, atoms.numpy(), y, **options), rtol=1e-6, atol=1e-13)
            excess = objective(q, atoms.numpy(), y, **options) - objective(q, atoms.numpy(), least, **options)
            assert -1e-10 <= excess <= gap * ((q - atoms.numpy()) ** 2).sum(-1).max() + 1e-12
        assert (found.iterations <= max_iter).all()
        assert (found.gap[found.iterations < max_iter] <= 1e-6).all()


def test_one_step_is_not_enough_and_says_so() -> None:
    x, atoms = inside()  # which takes four atoms; outside, the nearest one may be the answer
    found = F.simplex_least_squares(x, atoms, max_iter=1)
    assert (found.gap > 1e-6).all()
    assert (found.iterations == 1).all()
    for q, y, gap in zip(x.numpy(), found.weights.numpy(), found.gap.numpy(), strict=True):
        np.testing.assert_allclose(gap, true_gap(q, atoms.numpy(), y), rtol=1e-9)


@LOCALITY
@pytest.mark.parametrize("problem", [outside, inside])
@pytest.mark.parametrize("n", [6, 100])
def test_weights_lie_on_the_simplex_with_exact_zeros(problem, n: int, locality: float) -> None:
    x, atoms = (t.float() for t in problem(50, n, 4))
    y = solve(x, atoms, locality=locality)
    assert y.dtype == torch.float32
    assert (y >= 0).all()
    assert (y.sum(-1) - 1).abs().max() <= 1e-6
    if problem is outside:
        assert (y == 0).any(-1).all()


@LOCALITY
@pytest.mark.parametrize("shift", [0.0, 10.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_single_precision_reaches_its_tolerance(shift: float, scale: float, locality: float) -> None:
    for problem in (outside, inside):
        x, atoms = (scale * (t + shift).float() for t in problem(20, 30, 8))
        found = F.simplex_least_squares(x, atoms, locality=locality)
        for q, y in zip(x.double().numpy(), found.weights.double().numpy(), strict=True):
            assert true_gap(q, atoms.double().numpy(), y / y.sum(), locality) <= 1e-5


@LOCALITY
def test_scale_shift_and_rotation_change_nothing(locality: float) -> None:
    x, atoms = outside()
    scale = torch.tensor([1.0, 1e-3, 1e3, 1.0, 1e-3, 1e3], dtype=torch.float64).view(6, 1, 1)
    shift = torch.tensor([0.0, 0.0, 0.0, 100.0, 100.0, 100.0], dtype=torch.float64).view(6, 1, 1) * random(4, seed=4)
    rotation = torch.linalg.qr(random(6, 4, 4, seed=3))[0]
    moved = scale * (x @ rotation + shift), (scale * (atoms @ rotation + shift)).unsqueeze(-3)
    options = {"locality": locality, "tol": 0.0, "max_iter": 1000}
    y = solve(*moved, **options)
    torch.testing.assert_close(y, solve(x, atoms, **options).expand_as(y), rtol=0, atol=1e-9)


@LOCALITY
def test_a_masked_atom_does_not_spoil_a_shift(locality: float) -> None:
    x, atoms = outside()
    seen = torch.arange(12) != 5
    expected = F.simplex_least_squares(x, atoms, mask=seen, locality=locality)
    moved = F.simplex_least_squares(x + 100, atoms + 100, mask=seen, locality=locality)
    assert (expected.gap <= 1e-6).all()
    assert (moved.gap <= 1e-6).all()
    torch.testing.assert_close(moved.weights, expected.weights, rtol=0, atol=1e-2)


@LOCALITY
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e200])
@pytest.mark.parametrize("shared", [True, False])
def test_a_mask_drops_columns_whatever_stands_there(shared: bool, junk: float, locality: float) -> None:
    x, atoms = outside()
    options = {"locality": locality, "tol": 1e-12, "max_iter": 5000}
    seen = torch.rand(12, generator=torch.Generator().manual_seed(7)) > 0.4
    expected = solve(x, atoms[seen], **options)
    dirty = atoms.masked_fill(~seen.unsqueeze(-1), junk)
    dirty = (dirty if shared else dirty.expand(8, 12, 4)).clone().requires_grad_()
    x = x.clone().requires_grad_()
    found = F.simplex_least_squares(x, dirty, mask=seen, **options)
    torch.testing.assert_close(found.weights[:, seen], expected, rtol=0, atol=1e-5)
    assert (found.weights[:, ~seen] == 0).all()
    assert found.gap.isfinite().all()
    for g in torch.autograd.grad((found.weights * random(8, 12, seed=5)).sum(), (x, dirty)):
        assert g.isfinite().all()
    assert (g[..., ~seen, :] == 0).all()


@LOCALITY
def test_a_mask_of_each_query(locality: float) -> None:
    x, atoms = outside()
    seen = torch.rand(8, 12, generator=torch.Generator().manual_seed(7)) > 0.4
    options = {"locality": locality, "tol": 1e-12, "max_iter": 5000}
    y = solve(x, atoms, mask=seen, **options)
    for q, row, own in zip(x, y, seen, strict=True):
        torch.testing.assert_close(row[own], solve(q, atoms[own], **options), rtol=0, atol=1e-5)
        assert (row[~own] == 0).all()
    torch.testing.assert_close(solve(x, atoms.expand(8, 12, 4), mask=seen, **options), y, rtol=0, atol=1e-5)
    gap = F.simplex_least_squares(x, atoms, mask=seen, locality=locality).gap
    partial = F.simplex_least_squares(x, atoms, mask=seen, locality=locality).weights
    for q, own, row, value in zip(x.numpy(), seen.numpy(), partial.numpy(), gap.numpy(), strict=True):
        np.testing.assert_allclose(value, true_gap(q, atoms.numpy()[own], row[own], locality), rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("backward", ["implicit", "unroll"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_query_without_atoms_is_zero_with_zero_gradient(shared: bool, backward: str) -> None:
    x, atoms = outside()
    atoms = (atoms if shared else atoms.expand(8, 12, 4)).clone().requires_grad_()
    x = x.clone().requires_grad_()
    seen = torch.ones(8, 12, dtype=torch.bool)
    seen[2] = False
    found = F.simplex_least_squares(x, atoms, mask=seen, backward=backward, max_iter=100)
    assert (found.weights[2] == 0).all()
    assert found.gap[2] == 0
    assert found.iterations[2] == 0
    gx, gk = torch.autograd.grad((found.weights * random(8, 12, seed=5)).sum(), (x, atoms))
    assert (gx[2] == 0).all()
    assert gx.isfinite().all()
    assert gk.isfinite().all()
    assert shared or (gk[2] == 0).all()
    none = F.simplex_least_squares(x, torch.full_like(atoms, torch.nan), mask=torch.zeros(12, dtype=torch.bool))
    assert (none.weights == 0).all()
    assert (none.gap == 0).all()


@pytest.mark.parametrize("shared", [True, False])
@LOCALITY
def test_an_answer_does_not_depend_on_the_batch(shared: bool, locality: float) -> None:
    x, atoms = outside(8, 30, 10)
    x = torch.cat([x, inside(4, 30, 10)[0], atoms[:2]])
    found = F.simplex_least_squares(x, atoms if shared else atoms.expand(len(x), 30, 10), locality=locality)
    assert len(set(found.iterations.tolist())) > 2
    for i, q in enumerate(x):
        alone = F.simplex_least_squares(q, atoms, locality=locality)
        assert alone.weights.shape == (30,)
        assert alone.gap.shape == alone.iterations.shape == ()
        assert alone.iterations == found.iterations[i]
        torch.testing.assert_close(alone.weights, found.weights[i], rtol=1e-9, atol=1e-11)


def test_shared_atoms_equal_expanded_atoms() -> None:
    x, atoms = random(2, 3, 5, 4), random(12, 4, seed=1)
    options = {"locality": 0.5, "tol": 1e-14}

    def answer(keys: Tensor) -> tuple[Tensor, ...]:
        leaves = (x.clone().requires_grad_(), keys.clone().requires_grad_())
        y = solve(*leaves, **options)
        gx, gk = torch.autograd.grad((y * random(2, 3, 5, 12, seed=5)).sum(), leaves)
        return y, gx, gk.reshape(-1, 12, 4).sum(0)

    expected = answer(atoms.expand(2, 3, 5, 12, 4))
    for shape in ((12, 4), (1, 12, 4), (2, 3, 1, 12, 4), (3, 1, 12, 4), (5, 12, 4)):
        for a, b in zip(answer(atoms.expand(*shape)), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_one_query_against_many_sets_of_atoms() -> None:
    x, atoms = 4 * random(4), random(3, 12, 4, seed=1)
    y = solve(x, atoms, tol=1e-12)
    assert y.shape == (3, 12)
    for row, keys in zip(y, atoms, strict=True):
        torch.testing.assert_close(row, solve(x, keys, tol=1e-12), rtol=0, atol=1e-9)
    assert solve(x, atoms[:, None], tol=1e-12).shape == (3, 1, 12)


@pytest.mark.parametrize("backward", ["implicit", "unroll"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "problem",
    [
        lambda x, atoms: (atoms[:3], atoms),  # a query equal to an atom
        lambda x, atoms: (x, atoms.repeat(2, 1)),
        lambda x, atoms: (x, atoms[:1]),
        lambda x, atoms: (atoms[:1], atoms[:1]),
        lambda x, atoms: (x, atoms[:1].repeat(5, 1)),
        lambda x, atoms: (atoms[:1], atoms[:1].repeat(5, 1)),
        lambda x, atoms: (torch.zeros_like(x), torch.zeros_like(atoms)),
        lambda x, atoms: (x, torch.cat([atoms[:2], atoms[:2].mean(0, keepdim=True)])),  # three on one line
        lambda x, atoms: (atoms[:2].mean(0, keepdim=True), torch.cat([atoms[:2], atoms[:2].mean(0, keepdim=True)])),
    ],
    ids=["atom", "twice", "single", "single atom", "one five times", "atom five times", "zero", "line", "on a line"],
)
@pytest.mark.parametrize("locality", [0.0, 0.1])
def test_degenerate_problems_are_finite(problem, dtype: torch.dtype, locality: float, backward: str) -> None:
    x, atoms = (t.to(dtype).clone().requires_grad_() for t in problem(*outside()))
    found = F.simplex_least_squares(x, atoms, locality=locality, backward=backward, max_iter=200)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(len(x), dtype=dtype))
    assert (found.weights >= 0).all()
    assert (found.gap <= 1e-4).all()
    weight = random(*found.weights.shape, seed=5).to(dtype)
    loss = (found.weights * weight).sum() + 0 * x.sum() + 0 * atoms.sum()
    for g in torch.autograd.grad(loss, (x, atoms)):
        assert g.isfinite().all()
        assert g.abs().max() < 1e4


@pytest.mark.parametrize("backward", ["implicit", "unroll"])
def test_weights_that_are_right_from_the_start_have_a_gradient_too(backward: str) -> None:
    x, atoms = outside()
    leaves = (x.requires_grad_(), atoms[:1].clone().requires_grad_())
    found = F.simplex_least_squares(*leaves, backward=backward)
    assert (found.iterations == 0).all()
    assert found.weights.requires_grad
    for g in torch.autograd.grad(found.weights.sum(), leaves):
        assert (g == 0).all()


def test_a_query_equal_to_an_atom_is_that_atom() -> None:
    _, atoms = outside()
    corner = atoms[atoms.norm(dim=-1).argmax()]
    for locality in (0.0, 0.5):
        torch.testing.assert_close(solve(corner, atoms, locality=locality) @ atoms, corner, rtol=0, atol=1e-2)
    torch.testing.assert_close(
        solve(atoms, atoms, locality=0.5, tol=1e-12, max_iter=5000), torch.eye(12).double(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(), (2, 1)], ids=str)
def test_gradcheck_with_learned_strengths(shape: tuple[int, ...]) -> None:
    x, atoms = 0.5 * random(2, 2), random(4, 2, seed=1)
    locality, ridge = torch.full(shape, 0.2, dtype=torch.float64), torch.full(shape, 0.4, dtype=torch.float64)
    leaves = tuple(t.clone().requires_grad_() for t in (x, atoms, locality, ridge))
    options = {"tol": 0.0, "max_iter": 300}

    def answer(x: Tensor, atoms: Tensor, locality: Tensor, ridge: Tensor) -> Tensor:
        return solve(x, atoms, locality=locality, ridge=ridge, **options)

    y = answer(*leaves)
    assert ((y > 0).sum(-1) >= 2).any()
    assert torch.autograd.gradcheck(answer, leaves, fast_mode=shape != ())
    if shape == ():
        assert torch.autograd.gradgradcheck(answer, leaves, fast_mode=True)


@pytest.mark.parametrize(
    ("problem", "locality", "ridge"),
    [(outside, 0.0, 0.0), *((p, *s) for p in (outside, inside) for s in ((0.1, 0.0), (0.0, 0.3), (0.1, 0.3)))],
)
def test_the_derivative_is_the_one_on_the_support(problem, locality: float, ridge: float) -> None:
    """The bordered system of the support, in numpy; locality = ridge = 0 only where the weights are unique."""
    x, atoms = problem()
    strengths = [torch.full((len(x), 1), s, dtype=torch.float64, requires_grad=True) for s in (locality, ridge)]
    x, atoms = x.clone().requires_grad_(), atoms.expand(len(x), *atoms.shape).clone().requires_grad_()
    y = solve(x, atoms, locality=strengths[0], ridge=strengths[1], tol=0.0, max_iter=1000)
    v = random(*y.shape, seed=5)
    gx, gk, g_locality, g_ridge = (g.numpy() for g in torch.autograd.grad((y * v).sum(), (x, atoms, *strengths)))
    x, atoms, y, v = (t.detach().numpy() for t in (x, atoms, y, v))
    for i in range(len(x)):
        s = y[i] > 0
        k, ys = atoms[i][s], y[i][s]
        bordered = np.block([[k @ k.T + ridge * np.eye(s.sum()), np.ones((s.sum(), 1))], [np.ones((1, s.sum())), 0.0]])
        w = np.linalg.solve(bordered, np.append(v[i][s], 0.0))[:-1]
        pull, residual = w @ k, x[i] - ys @ k
        expected = np.zeros_like(atoms[i])
        expected[s] = w[:, None] * (residual + locality * (x[i] - k)) - ys[:, None] * pull
        np.testing.assert_allclose(gx[i], (1 + locality) * pull, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(gk[i], expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(g_locality[i], -0.5 * w @ ((x[i] - k) ** 2).sum(-1), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(g_ridge[i], -w @ ys, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("problem", [outside, inside])
def test_the_gradient_has_the_symmetries_of_the_problem(problem) -> None:
    x, atoms = problem()
    x, atoms = x.clone().requires_grad_(), atoms.expand(len(x), *atoms.shape).clone().requires_grad_()
    y = solve(x, atoms, locality=0.1, tol=0.0, max_iter=500)
    gx, gk = torch.autograd.grad((y * random(*y.shape, seed=5)).sum(), (x, atoms))
    assert gx.abs().max() > 1e-3
    close = {"rtol": 0, "atol": 1e-8}
    torch.testing.assert_close(gx + gk.sum(-2), torch.zeros_like(gx), **close)  # shifts
    torch.testing.assert_close((gx * x).sum(-1), -(gk * atoms).sum((-2, -1)), **close)  # scales
    moment = x.unsqueeze(-1) * gx.unsqueeze(-2) + atoms.mT @ gk
    torch.testing.assert_close(moment, moment.mT, **close)  # rotations


@pytest.mark.parametrize("problem", [outside, inside])
@LOCALITY
@RIDGE
def test_the_optimal_value_obeys_the_envelope_theorem(problem, locality: float, ridge: float) -> None:
    x, atoms = problem()
    strengths = [torch.tensor(s, dtype=torch.float64) for s in (locality, ridge)]
    leaves = [t.clone().requires_grad_() for t in (x, atoms, *strengths)]

    def value(y: Tensor, x: Tensor, atoms: Tensor, locality: Tensor, ridge: Tensor) -> Tensor:
        far = (x.unsqueeze(-2) - atoms).square().sum(-1)
        return ((x - y @ atoms).square().sum() + locality * (y * far).sum() + ridge * y.square().sum()) / 2

    y = solve(leaves[0], leaves[1], locality=leaves[2], ridge=leaves[3], tol=0.0, max_iter=600)
    found = torch.autograd.grad(value(y, *leaves), leaves)
    expected = torch.autograd.grad(value(y.detach(), *leaves), leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [5, 60])
def test_inside_the_hull_attention_is_the_identity(n: int) -> None:
    x, atoms = inside(n=n)
    x, atoms = x.clone().requires_grad_(), atoms.clone().requires_grad_()
    y = solve(x, atoms, tol=0.0, max_iter=1000)
    for out in (y @ atoms, F.scale_free_attention(x, atoms, atoms, tol=0.0)):
        torch.testing.assert_close(out, x, rtol=0, atol=1e-6)
        gx, gk = torch.autograd.grad(out.sum(), (x, atoms))
        torch.testing.assert_close(gx, torch.ones_like(x), rtol=0, atol=1e-6)
        torch.testing.assert_close(gk, torch.zeros_like(atoms), rtol=0, atol=1e-6)


@pytest.mark.parametrize("problem", [outside, inside])
@pytest.mark.parametrize("shared", [True, False])
def test_unrolled_and_implicit_derivatives_agree(problem, shared: bool) -> None:
    x, atoms = problem(4, 6, 3)
    atoms = atoms if shared else atoms.expand(4, 6, 3)
    leaves = [t.clone().requires_grad_() for t in (x, atoms, torch.tensor(0.1).double(), torch.tensor(0.05).double())]
    grads = []
    for backward in ("implicit", "unroll"):
        y = solve(*leaves[:2], locality=leaves[2], ridge=leaves[3], tol=0.0, max_iter=500, backward=backward)
        grads.append(torch.autograd.grad((y * random(4, 6, seed=5)).sum(), leaves))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_strengths_of_each_query() -> None:
    x, atoms = outside(3)
    locality = torch.tensor([[0.0], [0.1], [2.0]], dtype=torch.float64)
    ridge = torch.tensor([[0.3], [0.0], [0.1]], dtype=torch.float64)
    options = {"tol": 1e-12, "max_iter": 5000}
    each = [
        solve(q, atoms, locality=float(a), ridge=float(b), **options)
        for q, a, b in zip(x, locality, ridge, strict=True)
    ]
    for keys in (atoms, atoms.expand(3, 12, 4)):
        y = solve(x, keys, locality=locality, ridge=ridge, **options)
        torch.testing.assert_close(y, torch.stack(each), rtol=0, atol=1e-5)


def test_empty_and_no_atoms() -> None:
    for x, atoms, shape in (
        (torch.zeros(0, 4), torch.ones(7, 4), (0, 7)),
        (torch.zeros(0, 4), torch.ones(0, 7, 4), (0, 7)),
        (torch.zeros(3, 4), torch.ones(0, 4), (3, 0)),
        (torch.zeros(4), torch.ones(0, 4), (0,)),
    ):
        found = F.simplex_least_squares(x.requires_grad_(), atoms)
        assert found.weights.shape == shape
        assert found.gap.shape == found.iterations.shape == shape[:-1]
        assert (found.gap == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    x, atoms = (t.to(dtype) for t in outside())
    found = F.simplex_least_squares(x, atoms)
    exact = F.simplex_least_squares(x.double(), atoms.double())
    assert found.weights.dtype == dtype
    assert (found.gap <= 1e-6).all()
    torch.testing.assert_close(found.weights.double(), exact.weights, rtol=torch.finfo(dtype).eps, atol=5e-3)
    leaves = [t.clone().requires_grad_() for t in (x, atoms, atoms)]
    out = F.scale_free_attention(*leaves)
    assert out.dtype == dtype
    out.sum().backward()
    assert all(t.grad.dtype == dtype and t.grad.isfinite().all() for t in leaves)


def heads(H: int = 3, L: int = 5, S: int = 7, d: int = 4, width: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    q = random(2, H, L, d)
    return 5 * q / q.norm(dim=-1, keepdim=True), random(2, H, S, d, seed=1), random(2, H, S, width, seed=2)


def test_attention_reads_the_values_with_the_weights() -> None:
    q, k, v = heads()
    out = F.scale_free_attention(q, k, v, tol=1e-12)
    assert out.shape == (2, 3, 5, 6)
    for b in range(2):
        for h in range(3):
            y = np.stack([by_nnls(row, k[b, h].numpy()) for row in q[b, h].numpy()])
            torch.testing.assert_close(out[b, h], torch.from_numpy(y) @ v[b, h], rtol=0, atol=1e-4)
    for lead in ((), (0,), (0, 0)):
        sliced = [t[lead] for t in (q, k, v)] if lead else [q, k, v]
        torch.testing.assert_close(F.scale_free_attention(*sliced, tol=1e-12), out[lead] if lead else out)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("shape", [None, (5, 7), (2, 1, 5, 7), (2, 3, 5, 7), (2, 3, 1, 7), (5, 1), (7,)], ids=str)
def test_attention_masks(shape: tuple[int, ...] | None, is_causal: bool) -> None:
    q, k, v = heads()
    mask = None if shape is None else torch.rand(*shape, generator=torch.Generator().manual_seed(9)) > 0.3
    seen = torch.ones(2, 3, 5, 7, dtype=torch.bool) if mask is None else mask.expand(2, 3, 5, 7)
    seen = seen & torch.ones(5, 7, dtype=torch.bool).tril() if is_causal else seen
    out = F.scale_free_attention(q, k, v, mask, is_causal, locality=0.5, tol=1e-10)
    y = solve(q, k.unsqueeze(-3).expand(2, 3, 5, 7, 4), mask=seen, locality=0.5, tol=1e-10)
    torch.testing.assert_close(out, y @ v, rtol=0, atol=1e-4)
    assert (y[~seen] == 0).all()
    assert (out[~seen.any(-1)] == 0).all()


@pytest.mark.parametrize("fill", [-torch.inf, torch.finfo(torch.float64).min])
def test_a_floating_mask_of_zero_and_masked_is_boolean(fill: float) -> None:
    q, k, v = heads()
    seen = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(9)) > 0.5
    seen[0, 0, 0] = False
    added = torch.zeros(2, 3, 5, 7, dtype=torch.float64).masked_fill(~seen, fill)
    out = F.scale_free_attention(q, k, v, added)
    assert torch.equal(out, F.scale_free_attention(q, k, v, seen))
    assert (out[0, 0, 0] == 0).all()


def test_grouped_queries() -> None:
    q, k, v = heads(6)
    k, v = k[:, :2], v[:, :2]
    out = F.scale_free_attention(q, k, v, enable_gqa=True)
    expected = F.scale_free_attention(q, k.repeat_interleave(3, -3), v.repeat_interleave(3, -3))
    torch.testing.assert_close(out, expected)


def test_a_locality_a_head() -> None:
    q, k, v = heads()
    locality = torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64).view(3, 1, 1).requires_grad_()
    out = F.scale_free_attention(q, k, v, locality=locality, tol=1e-12)
    for h, strength in enumerate(locality.flatten().tolist()):
        alone = F.scale_free_attention(q[:, h], k[:, h], v[:, h], locality=strength, tol=1e-12)
        torch.testing.assert_close(out[:, h], alone, rtol=0, atol=1e-5)
    out.sum().backward()
    assert (locality.grad != 0).all()


X, ATOMS = torch.ones(5, 4), torch.ones(7, 4)
Q, K, V = torch.ones(2, 3, 5, 4), torch.ones(2, 3, 7, 4), torch.ones(2, 3, 7, 6)
nearest, attend = F.simplex_least_squares, F.scale_free_attention
BIASED = torch.zeros(5, 7).index_fill(1, torch.tensor([2]), 0.5)
WRONG = [
    (lambda: nearest([1.0], ATOMS), TypeError, r"x must be a torch.Tensor, got list; use torch.as_tensor\(x\)"),
    (lambda: nearest(X.int(), ATOMS), TypeError, r"x must be floating point, got torch.int32; use x.float\(\)"),
    (lambda: nearest(X, ATOMS.int()), TypeError, "atoms must be floating point"),
    (lambda: nearest(X, [1.0]), TypeError, "atoms must be a torch.Tensor, got list"),
    (lambda: nearest(X.double(), ATOMS), TypeError, r"x and atoms must have one dtype.*use x.to\(atoms.dtype\)"),
    (lambda: nearest(X[..., :3], ATOMS), ValueError, r"x must be \(..., d\) and atoms.*got \(5, 3\) and \(7, 4\)"),
    (lambda: nearest(X, ATOMS[0]), ValueError, r"x must be \(..., d\) and atoms \(..., n, d\) with one d"),
    (lambda: nearest(X[0, 0], ATOMS), ValueError, r"x must be \(..., d\) and atoms \(..., n, d\) with one d, got \(\)"),
    (lambda: nearest(X, torch.ones(3, 7, 4)), ValueError, r"leading axes must broadcast.*x \(5,\), atoms \(3,\)"),
    (lambda: nearest(X, ATOMS, tol=-1.0), ValueError, r"tol must lie in \[0, inf\], got -1.0"),
    (lambda: nearest(X, ATOMS, tol="small"), TypeError, "tol must be a number, got str"),
    (lambda: nearest(X, ATOMS, max_iter=0), ValueError, "max_iter must be at least 1, got 0"),
    (lambda: nearest(X, ATOMS, max_iter=1.5), TypeError, "max_iter must be an int, got float"),
    (lambda: nearest(X, ATOMS, backward="exact"), ValueError, 'backward must be "implicit" or "unroll", got \'exact\''),
    (lambda: nearest(X, ATOMS, locality=-0.1), ValueError, r"locality must lie in \[0, inf\], got -0.1"),
    (lambda: nearest(X, ATOMS, ridge=-0.1), ValueError, r"ridge must lie in \[0, inf\], got -0.1"),
    (lambda: nearest(X, ATOMS, ridge=None), TypeError, "ridge must be a number, got NoneType"),
    (lambda: nearest(X, ATOMS, locality=X[:, 0]), ValueError, r"locality must broadcast.*use locality.unsqueeze\(-1\)"),
    (lambda: nearest(X, ATOMS, ridge=X), ValueError, r"ridge must broadcast to \(..., 1\)"),
    (lambda: nearest(X, ATOMS, mask=torch.ones(7)), TypeError, r"mask must be a boolean tensor.*use mask.bool\(\)"),
    (lambda: nearest(X, ATOMS, mask=[True] * 7), TypeError, "mask must be a boolean tensor.*got list"),
    (
        lambda: nearest(X, ATOMS, mask=torch.ones(7, 5).bool()),
        ValueError,
        r"mask of shape \(7, 5\) does not broadcast to weights of shape \(5, 7\)",
    ),
    (lambda: attend(Q.int(), K, V), TypeError, r"query must be floating point, got torch.int32; use query.float\(\)"),
    (lambda: attend(Q, K, V.double()), TypeError, "query, key and value must have one dtype"),
    (lambda: attend(Q, K[..., :3], V), ValueError, "query and key must have the same last axis"),
    (lambda: attend(Q, K, V[..., :6, :]), ValueError, "key and value must have the same length"),
    (
        lambda: attend(Q, K[:, :2], V[:, :2], enable_gqa=True),
        ValueError,
        "query heads a multiple of key",
    ),
    (lambda: attend(Q, K[:, :2], V[:, :2]), ValueError, "leading axes must broadcast"),
    (
        lambda: attend(Q, K, V, BIASED),
        TypeError,
        "may hold only 0, -inf and finfo.min, got other values; use a boolean",
    ),
    (lambda: attend(Q, K, V, BIASED * torch.nan), TypeError, "may hold only 0, -inf and finfo.min"),
    (lambda: attend(Q, K, V, BIASED.int()), TypeError, "attn_mask must be boolean.*or floating"),
    (lambda: attend(Q, K, V, BIASED.T == 0), ValueError, r"attn_mask must broadcast to \(..., 5, 7\)"),
    (lambda: attend(Q, K, V, locality=-1.0), ValueError, r"locality must lie in \[0, inf\]"),
    (lambda: attend(Q, K, V, ridge=-1.0), ValueError, r"ridge must lie in \[0, inf\]"),
    (lambda: attend(Q, K, V, tol=-1.0), ValueError, r"tol must lie in \[0, inf\]"),
    (lambda: attend(Q, K, V, locality=torch.ones(3)), ValueError, "locality must broadcast"),
    # The conventions ask for a ValueError on shapes, with the remedy.
    (lambda: nearest(X, ATOMS, locality=torch.ones(3, 1)), ValueError, "locality"),
    (lambda: nearest(X, ATOMS, ridge=torch.ones(3, 1)), ValueError, "ridge"),
    (lambda: nearest(X, ATOMS, locality=torch.ones(2, 5, 1)), ValueError, "locality"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[f"{i}-{w[2][:40]}" for i, w in enumerate(WRONG)])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def seven(n: int, d: int, m: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Queries and atoms: three distances, a steep spectrum, clusters, a mean far from the origin, the unit sphere."""
    x, k = random(m, d, seed=10), random(n, d, seed=11)
    spectrum = 1 / torch.arange(1, d + 1, dtype=torch.float64)
    which = torch.randint(0, 16, (n,), generator=torch.Generator().manual_seed(12))
    clusters = 2 * random(16, d, seed=13)[which] + 0.1 * k
    return {
        "normal": (x, k),
        "near": (0.3 * x, k),
        "far": (2 * x, k),
        "spectrum": (x * spectrum, k * spectrum),
        "clusters": (x, clusters),
        "shifted": (x + 10, k + 10),
        "unit": (x / x.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)),
    }


CASES = pytest.mark.parametrize("case", list(seven(2, 2, 1)))
SIZES = pytest.mark.parametrize(("n", "d"), [(64, 16), (512, 64), (1024, 64)])
KERNELS = pytest.mark.parametrize("kernels", [True, False])


@KERNELS
@CASES
@SIZES
def test_exact_against_nonnegative_least_squares(case: str, n: int, d: int, kernels: bool) -> None:
    x, atoms = seven(n, d, 4)[case]
    with sl.kernels(kernels):
        found = F.simplex_least_squares(x, atoms, tol=1e-13)
    assert (found.gap <= 1e-12).all()
    for q, y in zip(x.numpy(), found.weights.numpy(), strict=True):
        assert true_gap(q - 10, atoms.numpy() - 10, y) <= 1e-12
        assert abs(y.sum() - 1) <= 1e-12
        assert (y >= 0).all()
        if np.linalg.norm(q - y @ atoms.numpy()) > 1e-6:  # outside the hull, where the weights are unique
            np.testing.assert_allclose(y, by_nnls(q, atoms.numpy()), rtol=0, atol=1e-9)


@KERNELS
@CASES
@SIZES
@pytest.mark.parametrize("locality", [0.0, 0.01])
def test_single_precision_keeps_its_promise(case: str, n: int, d: int, kernels: bool, locality: float) -> None:
    x, atoms = (t.float() for t in seven(n, d, 8)[case])
    with sl.kernels(kernels):
        found = F.simplex_least_squares(x, atoms, locality=locality)
    assert (found.gap <= 1e-6).all()
    assert ((found.weights > 0).sum(-1) <= d + 1).all()
    assert (found.weights.double().sum(-1) - 1).abs().max() <= 1e-6
    for q, y in zip(x.double().numpy(), found.weights.double().numpy(), strict=True):
        assert true_gap(q, atoms.double().numpy(), y / y.sum(), locality) <= 1e-6


@KERNELS
@pytest.mark.parametrize("locality", [1e-4, 1e-3, 1e-2])
def test_a_query_inside_the_hull_with_little_locality(locality: float, kernels: bool) -> None:
    """The support is full and every entering atom depends on it: one has to leave in exchange."""
    x, atoms = 0.1 * random(4, 12), random(60, 12, seed=1)
    with sl.kernels(kernels):
        found = F.simplex_least_squares(x, atoms, locality=locality, tol=1e-13)
    assert (found.gap <= 1e-13).all()
    assert ((found.weights > 0).sum(-1) == 13).any()
    for q, y in zip(x.numpy(), found.weights.numpy(), strict=True):
        np.testing.assert_allclose(y, by_clarabel(q, atoms.numpy(), locality, 0.0), rtol=0, atol=1e-5)


@KERNELS
@pytest.mark.parametrize("locality", [0.0, 1e-4, 0.01])
@pytest.mark.parametrize(("n", "d"), [(33, 8), (65, 2), (200, 5), (5, 3), (40, 1)])
@pytest.mark.parametrize("kind", ["twice", "lattice", "line", "point"])
def test_dependent_atoms_are_certified_with_few_weights(
    kind: str, n: int, d: int, locality: float, kernels: bool
) -> None:
    """Atoms that stand in one place, or on one line, must not fill the support: descent gives all of them weight."""
    atoms, x = random(n, d, seed=1), 0.3 * random(4, d)
    atoms = {
        "twice": atoms[torch.arange(n) % ((n + 1) // 2)],
        "lattice": atoms.round(),
        "line": atoms[:, :1] * torch.ones(d, dtype=torch.float64),
        "point": atoms[:1].expand(n, d),
    }[kind]
    with sl.kernels(kernels):
        found = F.simplex_least_squares(x, atoms, locality=locality, tol=1e-12)
    assert (found.gap <= 1e-12).all()
    assert ((found.weights > 0).sum(-1) <= d + 1).all()
    for q, y in zip(x.numpy(), found.weights.numpy(), strict=True):
        assert true_gap(q, atoms.numpy(), y, locality) <= 1e-12


@CASES
@pytest.mark.parametrize(("locality", "ridge"), [(0.0, 0.0), (0.05, 0.0), (0.05, 0.02)])
def test_the_derivative_against_differences_and_symmetries(case: str, locality: float, ridge: float) -> None:
    if case == "near" and locality == 0:
        case = "far"  # inside the hull the weights are not unique, and have no differences
    x, atoms = seven(40, 8, 4)[case]
    leaves = [t.clone().requires_grad_() for t in (x, atoms, torch.tensor(locality), torch.tensor(ridge))]
    leaves[2:] = [t.detach().double().requires_grad_() for t in leaves[2:]]
    pull, eps = random(4, 40, seed=5), 1e-6

    def loss(x: Tensor, atoms: Tensor, locality: Tensor, ridge: Tensor) -> Tensor:
        return (solve(x, atoms, locality=locality, ridge=ridge, tol=0.0) * pull).sum()

    grads = torch.autograd.grad(loss(*leaves), leaves)
    for i, (leaf, grad) in enumerate(zip(leaves, grads, strict=True)):
        along = random(leaf.numel(), seed=6 + i).view(leaf.shape)
        if i > 1 and (locality, ridge)[i - 2] == 0:
            continue  # a strength of 0 may not be lessened
        moved = [[t.detach() + (s * eps * along if t is leaf else 0) for t in leaves] for s in (1, -1)]
        difference = (loss(*moved[0]) - loss(*moved[1])) / (2 * eps)
        assert abs(difference - (grad * along).sum()) <= 1e-6 * max(1.0, float(grad.norm()))
    gx, gk = grads[:2]
    size = float(gx.norm() * x.norm() + gk.norm() * atoms.norm())
    assert (gx.sum(0) + gk.sum(0)).abs().max() <= 1e-12 * size
    if ridge == 0:
        assert abs((gx * x).sum() + (gk * atoms).sum()) <= 1e-12 * size
    moment = x.T @ gx + atoms.T @ gk
    assert (moment - moment.T).abs().max() <= 1e-12 * size


@pytest.mark.parametrize("locality", [0.0, 0.05])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_query_may_not_use_cannot_change_a_bit_of_its_answer(dtype: torch.dtype, locality: float) -> None:
    """Not the atoms that are hidden from it, not the other queries, not the shape of the batch."""
    x, atoms = random(12, 6).to(dtype), random(12, 6, seed=1).to(dtype)
    seen = torch.ones(12, 12, dtype=torch.bool).tril()
    with sl.kernels(True):
        expected = F.simplex_least_squares(x, atoms, mask=seen, locality=locality)
        for junk in (3.0, -1e4, torch.nan, torch.inf):
            other, later = x.clone(), atoms.clone()
            other[8:], later[8:] = 5 * random(4, 6, seed=2).to(dtype), junk
            found = F.simplex_least_squares(other, later, mask=seen, locality=locality)
            assert all(torch.equal(a[:8], b[:8]) for a, b in zip(found, expected, strict=True))
        for i in (0, 3, 7):
            alone = F.simplex_least_squares(x[i], atoms[: i + 1], locality=locality)
            assert torch.equal(alone.weights, expected.weights[i, : i + 1])


@pytest.mark.parametrize("locality", [0.0, 0.05])
def test_without_kernels_the_future_changes_nothing_either(locality: float) -> None:
    x, atoms, seen = random(12, 6), random(12, 6, seed=1), torch.ones(12, 12, dtype=torch.bool).tril()
    with sl.kernels(False):
        expected = F.simplex_least_squares(x, atoms, mask=seen, locality=locality).weights
        for junk in (3.0, -1e4, torch.nan, torch.inf):
            other, later = x.clone(), atoms.clone()
            other[8:], later[8:] = 5 * random(4, 6, seed=2), junk
            found = F.simplex_least_squares(other, later, mask=seen, locality=locality).weights
            # Not to the bit: the projection makes as many passes as the slowest row of the batch needs.
            torch.testing.assert_close(found[:8], expected[:8], rtol=0, atol=1e-15)


@KERNELS
def test_nan_spoils_the_queries_that_may_use_it(kernels: bool) -> None:
    x, atoms = random(3, 4), random(6, 4, seed=1)
    x[0, 1], atoms[2, 3] = torch.nan, torch.nan
    seen = torch.ones(3, 6, dtype=torch.bool)
    seen[2, 2] = False
    with sl.kernels(kernels):
        found = F.simplex_least_squares(x, atoms, mask=seen, tol=1e-12)
    assert found.weights[:2].isnan().all()
    assert found.gap[:2].isnan().all()
    kept = [0, 1, 3, 4, 5]
    torch.testing.assert_close(found.weights[2, kept], solve(x[2], atoms[kept], tol=1e-12), rtol=0, atol=1e-9)


def test_the_memory_of_the_backward_does_not_grow_with_the_steps() -> None:
    x, atoms = (t.requires_grad_() for t in inside(20, 60, 12))

    def kept(most: int, backward: str) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            F.simplex_least_squares(x, atoms, tol=0.0, max_iter=most, backward=backward)
        return sum(sizes)

    assert kept(10, "implicit") == kept(100, "implicit")
    assert kept(100, "unroll") > 5 * kept(10, "unroll")


def test_a_query_that_is_nan_spoils_no_gradient_but_its_own_and_that_of_atoms_it_may_use() -> None:
    x, atoms = outside()
    seen = torch.ones(8, 12, dtype=torch.bool)
    seen[3, :4] = False
    expected = torch.autograd.grad((solve(q := x.requires_grad_(), atoms, mask=seen) * random(8, 12, seed=5)).sum(), q)
    bad = x.detach().clone()
    bad[3] = torch.nan
    leaves = bad.requires_grad_(), atoms.clone().requires_grad_()
    gx, gk = torch.autograd.grad((solve(*leaves, mask=seen) * random(8, 12, seed=5)).sum(), leaves)
    others = torch.arange(8) != 3
    assert torch.equal(gx[others], expected[0][others])
    assert gx[3].isnan().all()
    assert gk[:4].isfinite().all()
    assert gk[4:].isnan().all()


@pytest.mark.parametrize("axes", [(2, 1), (2, 3), (1, 3)])
def test_threads_add_up_the_same_gradient(axes: tuple[int, int]) -> None:
    x, pull, atoms = random(2, 3, 40, 8), random(2, 3, 40, 30, seed=1), random(*axes, 1, 30, 8, seed=2)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            leaves = x.clone().requires_grad_(), atoms.clone().requires_grad_()
            found.append(torch.autograd.grad((solve(*leaves, locality=0.1) * pull).sum(), leaves))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [-30, 0, 30])
def test_the_unit_of_the_points_does_not_matter(power: int, dtype: torch.dtype) -> None:
    x, atoms = (t.to(dtype) for t in outside())
    scale = 10.0 ** (power if dtype == torch.float32 else 5 * power)
    found = F.simplex_least_squares(scale * x, scale * atoms)
    assert (found.gap <= 1e-6).all()
    torch.testing.assert_close(found.weights, solve(x, atoms), rtol=0, atol=1e-5)


@KERNELS
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_far_from_one_under_a_causal_mask(scale: float, kernels: bool) -> None:
    """The one atom that all queries may use says nothing of the size of the others."""
    x, atoms = random(6, 3), random(6, 3, seed=1)
    seen = torch.ones(6, 6, dtype=torch.bool).tril()
    leaves = [(scale * t).float().requires_grad_() for t in (x, atoms)]
    with sl.kernels(kernels):
        expected = solve(x.float(), atoms.float(), mask=seen, locality=0.1)
        found = F.simplex_least_squares(*leaves, mask=seen, locality=0.1)
    assert (found.gap <= 1e-6).all()
    torch.testing.assert_close(found.weights, expected, rtol=0, atol=1e-3)
    for g in torch.autograd.grad((found.weights * random(6, 6, seed=5).float()).sum(), leaves):
        assert g.isfinite().all()


def test_no_atoms_have_a_gradient_of_zero() -> None:
    x, atoms = random(2, 5, 3).requires_grad_(), random(0, 3).requires_grad_()
    found = F.simplex_least_squares(x, atoms)
    assert found.weights.shape == (2, 5, 0)
    gx, gk = torch.autograd.grad(found.weights.sum(), (x, atoms))
    assert (gx == 0).all()
    assert gk.shape == (0, 3)
    query, key, value = random(5, 3).requires_grad_(), random(0, 3), random(0, 4)
    (g,) = torch.autograd.grad(F.scale_free_attention(query, key, value).sum(), (query,))
    assert (g == 0).all()
