"""The converged code and its derivatives: against scikit-learn, closed forms on the support and finite differences."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet, Lasso, lars_path
from torch import Tensor

import sparselayers as sl
import sparselayers.functional as F
from sparselayers.coding.certificate import duality_gap

EXACT = {"tol": 1e-11, "max_iter": 3000}  # the optimum on the support then has all digits


@pytest.mark.parametrize("penalty", [sl.L1(), sl.NonnegativeL1(), sl.ElasticNet(0.5), sl.ElasticNet(1.0)], ids=repr)
@pytest.mark.parametrize("kernels", [True, False])
def test_infinite_strength_gives_certified_zeros(penalty: sl.Penalty, kernels: bool) -> None:
    x, D = 1e-3 * torch.randn(3, 6), torch.randn(6, 9)
    x.requires_grad_()
    for lam in (torch.inf, 1e300, torch.tensor(torch.inf), torch.full((3, 1), torch.inf)):
        with sl.kernels(kernels):
            found = F.lasso(x, D, lam, penalty=penalty)
        assert not found.code.any()
        assert found.gap.tolist() == [0.0] * 3
        assert found.iterations.tolist() == [0] * 3
        found.code.sum().backward()
        assert not x.grad.any()


def test_each_sample_may_leave_other_atoms_free() -> None:
    generator = torch.Generator().manual_seed(0)
    x, D = (torch.randn(m, n, dtype=torch.float64, generator=generator) for m, n in ((5, 6), (6, 9)))
    lam = torch.full((5, 9), 0.3, dtype=torch.float64)
    lam[0, 0] = lam[1, 1] = lam[1, 4] = 0
    together = F.lasso(x, D, lam)
    alone = [F.lasso(x[i], D, lam[i]) for i in range(5)]
    assert (together.gap <= 1e-6).all()
    torch.testing.assert_close(together.code, torch.stack([each.code for each in alone]))
    torch.testing.assert_close(duality_gap(x, D, together.code, lam, sl.L1()), together.gap, rtol=0, atol=1e-12)
    folded = duality_gap(x.view(5, 1, 6), D, together.code.view(5, 1, 9), lam.view(5, 1, 9), sl.L1())
    torch.testing.assert_close(folded.view(5), together.gap, rtol=0, atol=1e-12)


def problem(m: int = 4, n: int = 8, batch: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    D = torch.randn(m, n, dtype=torch.float64, generator=g)
    return torch.randn(batch, m, dtype=torch.float64, generator=g), D / D.norm(dim=0)


def strengths(batch: int, n: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    rand = lambda *shape: 0.1 + 0.3 * torch.rand(*shape, dtype=torch.float64, generator=g)  # noqa: E731
    return {"()": rand(()), "(..., 1)": rand(batch, 1), "(n_atoms,)": rand(n), "(..., n_atoms)": rand(batch, n)}


LAMS = strengths(3, 8)
CERTIFIED = [sl.L1(), sl.NonnegativeL1(), sl.ElasticNet(0.3)]
GENERIC = [sl.Grouped(sl.GroupL2(), 4), sl.Grouped(sl.SparseGroup(), 4), sl.LInf(), sl.Simplex(), sl.Ridge()]


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [q.detach().clone().requires_grad_() for q in tensors]


def weighted(code: Tensor) -> Tensor:
    """A loss that tells all entries apart."""
    return (code * torch.linspace(0.5, 1.5, code.numel(), dtype=code.dtype).view(code.shape)).sum()


def grads(x: Tensor, D: Tensor, lam: Tensor, **options: object) -> tuple[Tensor, ...]:
    inputs = leaves(x, D, lam)
    return torch.autograd.grad(weighted(F.lasso(*inputs, **EXACT | options).code), inputs, materialize_grads=True)


def check_slopes(code: Callable[..., Tensor], tensors: tuple[Tensor, ...], rtol: float = 1e-6) -> None:
    """The gradient of a loss of the code along random directions of all inputs at once, against central differences."""
    inputs = leaves(*tensors)
    found = torch.autograd.grad(weighted(code(*inputs)), inputs, materialize_grads=True)
    g = torch.Generator().manual_seed(7)
    for _ in range(3):
        moves = [1e-6 * torch.randn(q.shape, dtype=q.dtype, generator=g) for q in tensors]
        there, back = (weighted(code(*(q + sign * m for q, m in zip(tensors, moves, strict=True)))) for sign in (1, -1))
        slope = sum((f * m).sum() for f, m in zip(found, moves, strict=True))
        torch.testing.assert_close(slope, (there - back) / 2, rtol=rtol, atol=1e-11)


PEERS = {
    "L1": (sl.L1(), lambda lam, m: Lasso(lam / m, fit_intercept=False, tol=1e-14, max_iter=10**6)),
    "NonnegativeL1": (
        sl.NonnegativeL1(),
        lambda lam, m: Lasso(lam / m, positive=True, fit_intercept=False, tol=1e-14, max_iter=10**6),
    ),
    "ElasticNet": (
        sl.ElasticNet(0.3),
        lambda lam, m: ElasticNet(lam / m, l1_ratio=0.3, fit_intercept=False, tol=1e-14, max_iter=10**6),
    ),
}


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_codes_are_those_of_scikit_learn(name: str, shape: tuple[int, int]) -> None:
    x, D = problem(*shape, batch=5)
    penalty, peer = PEERS[name]
    lam = torch.linspace(0.05, 0.6, 5, dtype=torch.float64).unsqueeze(-1)
    expected = torch.from_numpy(
        np.stack([peer(float(w), shape[0]).fit(D.numpy(), s.numpy()).coef_ for s, w in zip(x, lam, strict=True)])
    )
    found = F.lasso(x, D, lam, penalty=penalty, tol=1e-13, max_iter=20000)
    torch.testing.assert_close(found.code, expected, rtol=1e-5, atol=1e-5)
    assert (found.gap <= 1e-13).all()
    assert found.gap.shape == found.iterations.shape == (5,)

    def value(z: Tensor) -> Tensor:
        return 0.5 * (x - z @ D.mT).square().sum(-1) + lam.squeeze(-1) * penalty.value(z)

    loose = F.lasso(x, D, lam, penalty=penalty, tol=1e-3)
    assert (loose.gap <= 1e-3).all()
    assert ((value(loose.code) - value(expected)) <= loose.gap * 0.5 * x.square().sum(-1) + 1e-12).all()


@pytest.mark.parametrize("penalty", GENERIC, ids=repr)
def test_other_convex_penalties_reach_their_fixed_point(penalty: sl.Penalty) -> None:
    x, D = problem()
    found = F.lasso(x, D, 0.15, penalty=penalty, tol=1e-10, max_iter=5000)
    step = 1 / float(torch.linalg.matrix_norm(D, 2)) ** 2
    again = penalty.prox(found.code + step * (x - found.code @ D.mT) @ D, step * 0.15)
    torch.testing.assert_close(again, found.code, rtol=1e-8, atol=1e-8)
    assert (found.gap <= 1e-10).all()


@pytest.mark.parametrize("shape", LAMS)
@pytest.mark.parametrize("penalty", CERTIFIED, ids=repr)
def test_implicit_gradients_are_finite_differences(penalty: sl.Penalty, shape: str) -> None:
    code = lambda x, D, lam: F.lasso(x, D, lam, penalty=penalty, **EXACT).code  # noqa: E731
    for kernels in (True, False):
        with sl.kernels(kernels):
            check_slopes(code, (*problem(), LAMS[shape]))


@pytest.mark.parametrize("penalty", GENERIC, ids=repr)
def test_gradients_at_a_fixed_point_are_finite_differences(penalty: sl.Penalty) -> None:
    code = lambda x, D, lam: F.lasso(x, D, lam, penalty=penalty, tol=1e-15, max_iter=1000).code  # noqa: E731
    for shape in ("()", "(..., 1)"):
        check_slopes(code, (*problem(), LAMS[shape]))


@pytest.mark.parametrize("penalty", [*CERTIFIED, sl.Grouped(sl.GroupL2(), 4)], ids=repr)
def test_second_derivatives(penalty: sl.Penalty) -> None:
    """Of the gradient of a loss along the inputs, by differences of that gradient."""
    tensors = (*problem(), torch.tensor(0.2, dtype=torch.float64))

    def slopes(*inputs: Tensor) -> Tensor:
        inputs = inputs if all(q.requires_grad for q in inputs) else leaves(*inputs)
        loss = F.lasso(*inputs, penalty=penalty, tol=1e-15, max_iter=1000).code.square().sum()
        return torch.cat([q.reshape(-1) for q in torch.autograd.grad(loss, inputs, create_graph=True)])

    check_slopes(slopes, tensors)


@pytest.mark.parametrize("shape", LAMS)
@pytest.mark.parametrize("penalty", CERTIFIED, ids=repr)
def test_all_backwards_agree_when_they_are_long(penalty: sl.Penalty, shape: str) -> None:
    """To the root of the last gap that can be told from 0: a gap sees the error of a code squared."""
    x, D = problem(4, 6)
    lam = strengths(3, 6)[shape]
    expected = grads(x, D, lam, penalty=penalty)
    for backward in ("unroll", "truncated"):
        found = grads(x, D, lam, penalty=penalty, backward=backward, tol=1e-15, backward_steps=600)
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=3e-5)


def test_unroll_is_the_derivative_of_its_steps() -> None:
    inputs = leaves(*problem(3, 5, 2), torch.tensor(0.2, dtype=torch.float64))
    few = {"tol": 0.0, "max_iter": 6, "backward": "unroll"}
    code = lambda x, D, lam: F.lasso(x, D, lam, **few).code  # noqa: E731
    torch.autograd.gradcheck(code, inputs)
    torch.autograd.gradgradcheck(code, inputs, atol=1e-4)


def test_truncated_by_one_step_is_one_step_of_ista() -> None:
    x, D = problem()
    lam = LAMS["()"]
    found = grads(x, D, lam, backward="truncated", backward_steps=1)
    fixed = F.lasso(x, D, lam, **EXACT).code
    inputs = leaves(x, D, lam)
    step = 1 / torch.linalg.matrix_norm(D, 2) ** 2
    v = fixed + step * (inputs[0] - fixed @ inputs[1].mT) @ inputs[1]
    expected = torch.autograd.grad(weighted(F.soft_threshold(v, step * inputs[2])), inputs)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("shape", ["()", "(..., 1)", "(n_atoms,)"])
def test_danskin_is_the_gradient_of_the_value(shape: str) -> None:
    """At the optimum the value's gradient is that with the code held fixed: for x it is x - D z, for D -(x - D z) z^T."""
    inputs = leaves(*problem(), LAMS[shape])

    def value(x: Tensor, D: Tensor, lam: Tensor, backward: str = "danskin") -> Tensor:
        z = F.lasso(x, D, lam, backward=backward, **EXACT).code
        assert z.requires_grad == (backward != "danskin" and x.requires_grad)
        return 0.5 * (x - z @ D.mT).square().sum() + (lam * z.abs()).sum()

    check_slopes(value, tuple(inputs))
    x, D, lam = inputs
    danskin = torch.autograd.grad(value(x, D, lam), inputs)
    for got, want in zip(danskin, torch.autograd.grad(value(x, D, lam, "implicit"), inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    z = F.lasso(x, D, lam, **EXACT).code
    residual = x - z @ D.mT
    torch.testing.assert_close(danskin[0], residual)
    torch.testing.assert_close(danskin[1], -residual.mT @ z)


def closed_form(x: Tensor, D: Tensor, z: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dD and dlam (one a sample) of sum(g z), sample by sample, by the pseudoinverse on the support."""
    dx, dD, dlam = torch.zeros_like(x), torch.zeros_like(D), x.new_zeros(x.shape[0], 1)
    for i in range(x.shape[0]):
        S = z[i] != 0
        v = torch.zeros_like(z[i])
        v[S] = torch.linalg.pinv(D[:, S].mT @ D[:, S], hermitian=True, rtol=1e-8) @ g[i, S]
        r = x[i] - D @ z[i]
        dx[i] = D @ v
        dD += torch.outer(r, v) - torch.outer(D @ v, z[i])
        dlam[i] = -z[i].sign() @ v
    return dx, dD, dlam


def test_a_wide_dictionary_with_a_small_support() -> None:
    """100 x 1000 with about four atoms active, where conjugate gradients on all atoms fail (jaxopt issue 274)."""
    g = torch.Generator().manual_seed(0)
    D = torch.randn(100, 1000, dtype=torch.float64, generator=g)
    planted = torch.zeros(3, 1000, dtype=torch.float64)
    planted[:, [5, 300, 301, 999]] = torch.tensor([1.0, -2.0, 1.5, 3.0], dtype=torch.float64)
    x = planted @ D.mT + 0.01 * torch.randn(3, 100, dtype=torch.float64, generator=g)
    lam = torch.full((3, 1), 20.0, dtype=torch.float64)
    for kernels in (True, False):
        inputs = leaves(x, D, lam)
        with sl.kernels(kernels):
            found = F.lasso(*inputs, tol=1e-12)
            assert (found.gap <= 1e-12).all()
            pull = torch.randn(3, 1000, dtype=torch.float64, generator=g)
            got = torch.autograd.grad((found.code * pull).sum(), inputs)
        assert ((found.code != 0).sum(-1) == 4).all()
        for a, b in zip(got, closed_form(x, D, found.code.detach(), pull), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_dependent_atoms_give_the_derivative_of_least_norm() -> None:
    """A dictionary with every atom twice: any split of a weight is optimal, and H is singular on both halves."""
    x, D = problem(4, 5, 3)
    twice = torch.cat([D, D], 1)
    once = F.lasso(x, D, 0.1, **EXACT).code
    z = torch.cat([0.3 * once, 0.7 * once], 1)
    pull = torch.linspace(-1, 2, z.numel(), dtype=z.dtype).view(z.shape)
    from sparselayers.coding.implicit import with_derivative

    for kernels in (True, False):
        inputs = leaves(x, twice, torch.full((3, 1), 0.1, dtype=torch.float64))
        with sl.kernels(kernels):
            got = torch.autograd.grad((with_derivative(z, *inputs, sl.L1()) * pull).sum(), inputs)
        for a, b in zip(got, closed_form(x, twice, z, pull), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_and_plain_operations_give_one_gradient(dtype: torch.dtype) -> None:
    x, D = (q.to(dtype) for q in problem(12, 30, 50))
    for penalty in CERTIFIED:
        found = []
        for kernels in (True, False):
            z = F.lasso(x, D, 0.1, penalty=penalty, **EXACT).code
            from sparselayers.coding.implicit import with_derivative

            inputs = leaves(x, D, torch.full((30,), 0.1, dtype=dtype))
            with sl.kernels(kernels):
                code = with_derivative(z.detach(), *inputs, penalty)
                found.append(torch.autograd.grad(weighted(code), inputs))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-4 if dtype == torch.float32 else 1e-8, atol=1e-4)


def saved_bytes(max_iter: int, backward: str, penalty: sl.Penalty = sl.L1()) -> int:
    total = 0

    def pack(q: Tensor) -> Tensor:
        nonlocal total
        total += q.numel() * q.element_size()
        return q

    x, D = leaves(*problem(10, 20, 8))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda q: q):
        F.lasso(x, D, 0.1, tol=0.0, max_iter=max_iter, backward=backward, penalty=penalty)
    return total


def test_memory_is_flat_in_iterations() -> None:
    for backward in ("implicit", "truncated", "danskin"):
        assert saved_bytes(50, backward) == saved_bytes(500, backward)
    assert saved_bytes(50, "implicit", sl.LInf()) == saved_bytes(500, "implicit", sl.LInf())
    assert saved_bytes(500, "unroll") > 5 * saved_bytes(50, "unroll")
    x, D = problem(10, 20, 8)
    inputs_and_code = 8 * (x.numel() + D.numel() + 8 * 20 + 1)
    assert saved_bytes(500, "implicit") == inputs_and_code


def test_a_zero_sample() -> None:
    x, D = problem()
    x[1] = 0
    for backward in ("implicit", "unroll", "truncated"):
        inputs = leaves(x, D, LAMS["(..., 1)"])
        found = F.lasso(*inputs, backward=backward)
        assert (found.code[1] == 0).all()
        assert found.gap[1] == 0
        assert all(g.isfinite().all() for g in torch.autograd.grad(found.code.square().sum(), inputs))
    inputs = leaves(torch.zeros_like(x), D, LAMS["()"])
    for backward in ("implicit", "unroll", "truncated"):
        gradients = torch.autograd.grad(F.lasso(*inputs, backward=backward).code.sum(), inputs)
        assert not any(g.any() for g in gradients)


def test_a_weak_dual_has_a_derivative_from_one_side() -> None:
    """On orthonormal atoms at abs(x_j) = lam the code is 0, and so is its derivative from inside."""
    x, lam = leaves(torch.tensor([1.0, 0.5, -0.5]), torch.tensor(0.5))
    found = F.lasso(x, torch.eye(3), lam, tol=1e-12)
    assert found.code[1:].eq(0).all()
    gx, gl = torch.autograd.grad(found.code.sum(), (x, lam))
    torch.testing.assert_close(gx, torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(gl, torch.tensor(-1.0))


def test_nan_stays_in_its_sample() -> None:
    x, D = problem()
    clean = F.lasso(x, D, 0.1)
    spoilt = x.clone()
    spoilt[1, 0] = torch.nan
    for penalty in (sl.L1(), sl.Grouped(sl.GroupL2(), 4)):
        found = F.lasso(spoilt, D, 0.1, penalty=penalty)
        assert found.code[1].isnan().all()
        assert found.gap[1].isnan()
        assert found.code[[0, 2]].isfinite().all()
    torch.testing.assert_close(F.lasso(spoilt, D, 0.1).code[[0, 2]], clean.code[[0, 2]])
    leaf = spoilt.requires_grad_()
    (gx,) = torch.autograd.grad(F.lasso(leaf, D, 0.1).code.sum(), leaf)
    assert gx[[0, 2]].isfinite().all()


@pytest.mark.parametrize("backward", ["implicit", "unroll", "truncated", "danskin"])
def test_shapes(backward: str) -> None:
    x, D = problem(batch=6)
    options = {"backward": backward, "tol": 1e-10}
    found = F.lasso(x, D, 0.1, **options)
    assert found.code.shape == (6, 8)
    nested = F.lasso(x.view(2, 3, 4), D, 0.1, **options)
    torch.testing.assert_close(nested.code, found.code.view(2, 3, 8), rtol=1e-4, atol=1e-4)
    assert nested.gap.shape == nested.iterations.shape == (2, 3)
    single = F.lasso(x[0], D, 0.1, **options)
    assert single.code.shape == (8,)
    assert single.gap.shape == single.iterations.shape == ()
    empty, atoms = leaves(x[:0], D)
    nothing = F.lasso(empty, atoms, 0.1, **options)
    assert nothing.code.shape == (0, 8)
    assert nothing.gap.shape == nothing.iterations.shape == (0,)
    if backward != "danskin":
        nothing.code.sum().backward()
        assert not atoms.grad.any()
    several = F.lasso(x[0], D, torch.tensor([[0.1], [0.5]], dtype=x.dtype), **options)
    assert several.code.shape == (2, 8)
    assert not F.lasso(x, D, 0.1, **options).code.requires_grad


def test_at_lam_max_nothing_is_active_and_max_iter_is_honest() -> None:
    x, D = problem(8, 20, 5)
    lam_max = (x @ D).abs().amax(-1, keepdim=True)
    assert not F.lasso(x, D, lam_max).code.any()
    early = F.lasso(x, D, 0.05, tol=1e-9, max_iter=1, backward="unroll")
    assert (early.gap > 1e-9).all()
    assert (early.iterations == 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_computed_in_float32(dtype: torch.dtype) -> None:
    x, D = (q.to(dtype) for q in problem())
    for backward in ("implicit", "unroll"):
        leaf = D.clone().requires_grad_()
        found = F.lasso(x, leaf, 0.1, backward=backward)
        assert found.code.dtype == dtype
        assert found.gap.dtype == torch.float32
        wide = F.lasso(x.float(), D.float(), 0.1, backward=backward)
        torch.testing.assert_close(found.code.float(), wide.code, rtol=1e-2, atol=1e-3)
        found.code.sum().backward()
        assert leaf.grad.dtype == dtype
        assert leaf.grad.isfinite().all()


def test_autocast_changes_nothing() -> None:
    x, D = (q.float() for q in problem())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = F.lasso(x, D, 0.1)
        mixed = F.lasso(x.bfloat16(), D, 0.1)
    assert found.code.dtype == mixed.code.dtype == torch.float32
    torch.testing.assert_close(found.code, F.lasso(x, D, 0.1).code)


def test_inputs_are_left_alone_and_may_be_strided() -> None:
    x, D = problem()
    wide, tall = torch.stack([x, x], -1)[..., 0], D.T.contiguous().T
    before = x.clone(), D.clone()
    torch.testing.assert_close(F.lasso(wide, tall, 0.1).code, F.lasso(x, D, 0.1).code)
    assert torch.equal(x, before[0])
    assert torch.equal(D, before[1])


def test_the_layer_is_the_function() -> None:
    x, D = problem()
    coder = sl.SparseCoder(4, 8, 0.2, 1e-8, "implicit", dictionary=D)
    expected = F.lasso(x, D, 0.2, tol=1e-8)
    found = coder(x, certificate=True)
    assert isinstance(found, F.LassoResult)
    torch.testing.assert_close(found.code, expected.code)
    assert torch.equal(found.iterations, expected.iterations)
    torch.testing.assert_close(coder(x), expected.code)
    torch.testing.assert_close(coder.decode(coder(x)), expected.code @ D.mT)
    assert list(coder.state_dict()) == ["dictionary"]
    assert "4, 8, lam=0.2, tol=1e-08, backward='implicit', penalty=L1()" in repr(coder)
    with torch.no_grad():
        coder.dictionary.zero_()
    assert (D != 0).any()


def test_what_the_layer_learns() -> None:
    x, D = problem()
    coder = sl.SparseCoder(4, 8, lam=0.2, dictionary=D, learn=("dictionary", "lam"), penalty=sl.ElasticNet(0.5))
    assert sorted(name for name, _ in coder.named_parameters()) == ["dictionary", "log_lam"]
    coder(x).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in coder.parameters())
    again = sl.SparseCoder(4, 8, lam=0.7, learn=("dictionary", "lam"), penalty=sl.ElasticNet(0.5), dtype=torch.float64)
    again.load_state_dict(coder.state_dict())
    torch.testing.assert_close(again(x), coder(x))
    torch.testing.assert_close(copy.deepcopy(coder)(x), coder(x))
    before = again.dictionary.detach().clone()
    again.reset_parameters()
    assert not torch.equal(before, again.dictionary)
    torch.testing.assert_close(again.dictionary.norm(dim=0), torch.ones(8, dtype=torch.float64))


def test_a_dictionary_is_learned_through_the_implicit_derivative() -> None:
    """A few steps on a loss of the code itself, which no Danskin gradient knows, bring it down."""
    x, D = problem(6, 10, 20)
    coder = sl.SparseCoder(6, 10, lam=0.2, dictionary=D)
    target = F.lasso(x, problem(6, 10, 20, seed=5)[1], 0.2).code
    optimizer = torch.optim.Adam(coder.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (coder(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def first_stretch(x: Tensor, D: Tensor, k: int, positive: bool) -> float | None:
    """The middle of the first stretch with k active atoms of scikit-learn's path; None where there is none."""
    alphas, _, codes = lars_path(D.numpy(), x.numpy(), method="lasso", positive=positive)
    for j in range(len(alphas) - 1):
        if np.count_nonzero(codes[:, j] + codes[:, j + 1]) == k:
            return float(alphas[j] + alphas[j + 1]) / 2 * len(x)
    return None


@pytest.mark.parametrize("penalty", [sl.L1(), sl.NonnegativeL1()], ids=repr)
@pytest.mark.parametrize("k", [1, 4, 10])
def test_target_k_is_on_the_path_of_scikit_learn(penalty: sl.Penalty, k: int) -> None:
    x, D = problem(10, 25, 12)
    found = F.lasso_target_k(x, D, k, penalty=penalty)
    for i in range(12):
        lam = first_stretch(x[i], D, k, isinstance(penalty, sl.NonnegativeL1))
        if lam is None:
            assert (found.code[i] != 0).sum() != k
        else:
            assert (found.code[i] != 0).sum() == k
            assert float(found.lam[i]) == pytest.approx(lam, rel=1e-8)
    assert (found.gap <= 1e-12).all()
    again = F.lasso(x, D, found.lam, penalty=penalty, tol=1e-14)
    torch.testing.assert_close(again.code, found.code, rtol=1e-7, atol=1e-9)


def test_target_k_of_every_kind() -> None:
    x, D = problem(10, 25, 4)
    each = torch.tensor([[0], [2], [5], [7]])
    found = F.lasso_target_k(x, D, each)
    assert (found.code != 0).sum(-1).tolist() == [0, 2, 5, 7]
    torch.testing.assert_close(found.lam[0], (x[0] @ D).abs().max().unsqueeze(0))
    torch.testing.assert_close(F.lasso_target_k(x[2], D, 5).code, found.code[2])
    assert F.lasso_target_k(x[:0], D, 3).code.shape == (0, 25)
    nothing = F.lasso_target_k(torch.zeros_like(x), D, 3)
    assert not nothing.code.any()
    assert not nothing.gap.any()
    spoilt = x.clone()
    spoilt[1, 0] = torch.nan
    beside = F.lasso_target_k(spoilt, D, 3)
    assert beside.code[1].isnan().all()
    torch.testing.assert_close(beside.code[[0, 2, 3]], F.lasso_target_k(x, D, 3).code[[0, 2, 3]])
    # Two equal atoms: one of them joins, the other depends on it and cannot.
    twins = F.lasso_target_k(x, torch.cat([D, D], 1), 6)
    assert ((twins.code != 0).sum(-1) == 6).all()
    assert (twins.gap < 1e-12).all()
    short = F.lasso_target_k(x, D, 8, max_iter=3)
    assert ((short.code != 0).sum(-1) <= 3).all()
    assert (short.gap < 1e-12).all()
    over = F.lasso_target_k(x, D, 20)  # more than n_features: not reached
    assert ((over.code != 0).sum(-1) <= 10).all()
    narrow = F.lasso_target_k(x.bfloat16(), D.bfloat16(), 3)
    assert narrow.code.dtype == torch.bfloat16
    assert ((narrow.code != 0).sum(-1) == 3).all()


def test_target_k_is_differentiable_at_the_lam_it_found() -> None:
    x, D = leaves(*problem(10, 25, 4))
    found = F.lasso_target_k(x, D, 4)
    assert not found.lam.requires_grad
    got = torch.autograd.grad(weighted(found.code), (x, D))
    expected = torch.autograd.grad(weighted(F.lasso(x, D, found.lam, tol=1e-14).code), (x, D))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert not F.lasso_target_k(x, D, 4, backward="danskin").code.requires_grad
    rows = torch.func.vmap(lambda s: F.lasso_target_k(s, D, 2, max_iter=6).code)(x)
    torch.testing.assert_close(rows, F.lasso_target_k(x, D, 2).code)


def test_the_layer_with_a_target() -> None:
    x, D = problem(10, 25, 4)
    coder = sl.SparseCoder(10, 25, target_k=3, dictionary=D)
    found = coder(x, certificate=True)
    assert ((coder(x) != 0).sum(-1) == 3).all()
    assert found.lam.shape == (4, 1)
    coder(x).square().sum().backward()
    assert coder.dictionary.grad.isfinite().all()
    assert repr(coder).startswith("SparseCoder(10, 25, target_k=3, backward=")  # lam and tol have no say


X, DICT = torch.ones(3, 4), torch.ones(4, 6)
WRONG = [
    (lambda: F.lasso(X.int(), DICT, 0.1), TypeError, r"x must be floating point.*x.float\(\)"),
    (lambda: F.lasso(X, DICT.int(), 0.1), TypeError, "D must be floating point"),
    (lambda: F.lasso(X, DICT.double(), 0.1), TypeError, r"one dtype.*use x.to\(D.dtype\)"),
    (lambda: F.lasso(X, DICT[0], 0.1), ValueError, r"D must be a matrix \(n_features, n_atoms\)"),
    (lambda: F.lasso(X, DICT.T, 0.1), ValueError, r"x must be \(..., 6\).*transpose D"),
    (lambda: F.lasso(X, DICT, -0.1), ValueError, r"lam must lie in \[0, inf\]"),
    (lambda: F.lasso(X, DICT, "0.1"), TypeError, "lam must be a number"),
    (lambda: F.lasso(X, DICT, torch.ones(3)), ValueError, r"lam must be a number.*lam.unsqueeze\(-1\)"),
    (lambda: F.lasso(X, DICT, torch.ones(2, 1)), ValueError, "leading axes must broadcast"),
    (
        lambda: F.lasso(X, DICT, torch.ones(6), penalty=sl.Grouped(sl.GroupL2(), 2)),
        ValueError,
        "one lam an atom needs a separable",
    ),
    (lambda: F.lasso(X, DICT, 0.1, penalty=sl.L0()), ValueError, "penalty must be convex.*use fista with a depth"),
    (lambda: F.lasso(X, DICT, 0.1, penalty=sl.SigShrink(0.1, 1.0)), TypeError, "penalty must be a Penalty"),
    (lambda: F.lasso(X, DICT, 0.1, tol=-1.0), ValueError, r"tol must lie in \[0, inf\]"),
    (lambda: F.lasso(X, DICT, 0.1, max_iter=0), ValueError, "max_iter must be at least 1"),
    (lambda: F.lasso(X, DICT, 0.1, backward="exact"), ValueError, "backward must be one of 'implicit', 'unroll'"),
    (lambda: F.lasso(X, DICT, 0.1, backward="truncated", backward_steps=0), ValueError, "backward_steps must be at"),
    (lambda: F.lasso_target_k(X, DICT, 7), ValueError, "k must be at most n_atoms, 6, got 7"),
    (lambda: F.lasso_target_k(X, DICT, -1), ValueError, "k must be at least 0"),
    (lambda: F.lasso_target_k(X, DICT, 2.0), TypeError, "k must be an int"),
    (
        lambda: F.lasso_target_k(X, DICT, torch.ones(3)),
        ValueError,
        r"k must broadcast to \(..., 1\).*k.unsqueeze\(-1\)",
    ),
    (lambda: F.lasso_target_k(X, DICT, 2, penalty=sl.ElasticNet()), ValueError, "whose path is straight.*use lasso"),
    (lambda: F.lasso_target_k(X, DICT, 2, backward="unroll"), ValueError, "has no steps to go through here"),
    (lambda: F.lasso_target_k(X.int(), DICT, 2), TypeError, "x must be floating point"),
    (lambda: sl.SparseCoder(4, 6, target_k=7), ValueError, "k must be at most"),
    (lambda: sl.SparseCoder(4, 6, target_k=2, learn=("lam",)), ValueError, "cannot be learned with a target_k"),
    (lambda: sl.SparseCoder(4, 6, target_k=2, penalty=sl.Ridge()), ValueError, "whose path is straight"),
    (lambda: sl.SparseCoder(4, 6, penalty=sl.L0()), ValueError, "penalty must be convex"),
    (lambda: sl.SparseCoder(4, 6, lam=-1.0), ValueError, "lam must lie in"),
    (lambda: sl.SparseCoder(4, 6, lam=torch.ones(5)), ValueError, "lam must be a number"),
    (lambda: sl.SparseCoder(4, 6, backward="exact"), ValueError, "backward must be one of"),
    (lambda: sl.SparseCoder(4, 6, learn=("step",)), ValueError, "learn must be a sequence of names out of"),
    (lambda: sl.SparseCoder(4, 6, lam=0.0, learn=("lam",)), ValueError, "cannot start at 0.0"),
    (lambda: sl.SparseCoder(4, 6, dictionary=torch.ones(6, 4)), ValueError, r"dictionary must be \(4, 6\)"),
    (lambda: sl.SparseCoder(0, 6), ValueError, "n_features must be at least 1"),
    (lambda: sl.SparseCoder(4, 0), ValueError, "n_atoms must be at least 1"),
    (lambda: sl.SparseCoder(4, 6).decode(torch.ones(4)), ValueError, r"z must be \(..., 6\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
