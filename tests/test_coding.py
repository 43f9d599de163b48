"""ISTA, FISTA, homotopy and ridge: against scikit-learn, the naive loop, and what the design promises of the layers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet, Lasso
from torch import Tensor

import sparselayers as sl
import sparselayers.functional as F
from sparselayers.proxgrad import proximal_gradient


def problem(m: int = 8, n: int = 20, batch: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    D = torch.randn(m, n, dtype=torch.float64, generator=g)
    return torch.randn(batch, m, dtype=torch.float64, generator=g).to(dtype), (D / D.norm(dim=0)).to(dtype)


def naive_ista(x: Tensor, D: Tensor, lam: float, depth: int, step: float, homotopy: bool = False) -> Tensor:
    """The definition, sample by sample, in a plain loop."""
    codes = []
    for sample in x:
        z = torch.zeros(D.shape[1], dtype=x.dtype)
        start = max(float((D.T @ sample).abs().max()), lam)
        for k in range(1, depth + 1):
            lam_k = start * (lam / start) ** (k / depth) if homotopy else lam
            v = z + step * D.T @ (sample - D @ z)
            z = v.sign() * (v.abs() - step * lam_k).clamp_min(0)
        codes.append(z)
    return torch.stack(codes)


@pytest.mark.parametrize("shape", [(8, 20), (8, 10), (20, 8)])
@pytest.mark.parametrize("homotopy", [False, True])
def test_ista_is_its_definition(shape: tuple[int, int], homotopy: bool) -> None:
    x, D = problem(*shape)
    step = 1 / float(torch.linalg.matrix_norm(D, 2)) ** 2
    schedule = sl.Homotopy() if homotopy else sl.Constant()
    for depth in (1, 2, 7):
        expected = naive_ista(x, D, 0.1, depth, step, homotopy)
        torch.testing.assert_close(F.ista(x, D, 0.1, depth=depth, schedule=schedule), expected)
        torch.testing.assert_close(F.ista(x, D, 0.1, depth=depth, schedule=schedule, step=step), expected)


@pytest.mark.parametrize(("code", "depth"), [(F.ista, 40000), (F.fista, 3000)])
def test_converges_to_the_lasso_of_scikit_learn(code, depth: int) -> None:
    x, D = problem()
    expected = [
        Lasso(0.1 / 8, fit_intercept=False, tol=1e-14, max_iter=10**6).fit(D.numpy(), s.numpy()).coef_ for s in x
    ]
    torch.testing.assert_close(code(x, D, 0.1, depth=depth), torch.from_numpy(np.stack(expected)), rtol=1e-6, atol=1e-6)


def test_converges_to_the_elastic_net_of_scikit_learn() -> None:
    x, D = problem()
    peer = ElasticNet(0.2 / 8, l1_ratio=0.3, fit_intercept=False, tol=1e-14, max_iter=10**6)
    expected = np.stack([peer.fit(D.numpy(), s.numpy()).coef_ for s in x])
    found = F.fista(x, D, 0.2, depth=2000, penalty=sl.ElasticNet(ratio=0.3))
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "penalty",
    [
        sl.L1(),
        sl.NonnegativeL1(),
        sl.Grouped(sl.GroupL2(), 4),
        sl.Grouped(sl.SparseGroup(), 4),
        sl.Grouped(sl.Exclusive(), 4),
        sl.LInf(),
        sl.Simplex(),
        sl.L1Ball(),
        sl.Ridge(),
    ],
    ids=repr,
)
def test_every_convex_penalty_reaches_a_fixed_point(penalty: sl.Penalty) -> None:
    x, D = problem()
    z = F.fista(x, D, 0.15, depth=4000, penalty=penalty)
    step = 1 / float(torch.linalg.matrix_norm(D, 2)) ** 2
    again = penalty.prox(z + step * (x - z @ D.T) @ D, step * 0.15)
    torch.testing.assert_close(again, z, rtol=1e-9, atol=1e-9)


def test_plain_fista_is_beck_and_teboulle() -> None:
    x, D = problem()
    step = 1 / float(torch.linalg.matrix_norm(D, 2)) ** 2
    z = y = torch.zeros(5, 20, dtype=torch.float64)
    t = 1.0
    for _ in range(9):
        v = y + step * (x - y @ D.T) @ D
        new = v.sign() * (v.abs() - step * 0.1).clamp_min(0)
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        z, y, t = new, new + (t - 1) / following * (new - z), following
    torch.testing.assert_close(F.fista(x, D, 0.1, depth=9, restart=None), z)


def test_restart_helps_and_is_per_sample() -> None:
    """On planted codes at 0.1 lam_max; on dense codes of an ill-conditioned dictionary it need not."""
    g = torch.Generator().manual_seed(0)
    D = torch.randn(50, 100, dtype=torch.float64, generator=g)
    D = D / D.norm(dim=0)
    planted = torch.rand(30, 100, generator=g) < 0.05
    x = (torch.randn(30, 100, dtype=torch.float64, generator=g) * planted) @ D.T
    lam = 0.1 * (x @ D).abs().amax(-1, keepdim=True)
    best = F.fista(x, D, lam, depth=3000)

    def excess(z: Tensor) -> Tensor:
        def value(z: Tensor) -> Tensor:
            return 0.5 * (x - z @ D.T).square().sum(-1) + (lam * z.abs()).sum(-1)

        return (value(z) - value(best)).clamp_min(1e-16)

    ratio = excess(F.fista(x, D, lam, depth=60)) / excess(F.fista(x, D, lam, depth=60, restart=None))
    assert ratio.median() < 0.1
    alone = torch.cat([F.fista(s[None], D, float(strength), depth=60) for s, strength in zip(x, lam, strict=True)])
    torch.testing.assert_close(F.fista(x, D, lam, depth=60), alone, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("code", [F.ista, F.fista])
@pytest.mark.parametrize("schedule", [sl.Constant(), sl.Homotopy()], ids=repr)
def test_lam_at_lam_max_is_exactly_zero(dtype: torch.dtype, code, schedule) -> None:
    for shape in ((8, 20), (20, 8)):
        x, D = problem(*shape, batch=200, dtype=dtype)
        lam = (x @ D).abs().amax(-1, keepdim=True)
        assert (code(x, D, lam, depth=12, schedule=schedule) == 0).all()
        assert (code(x, D, float(lam.max()), depth=12, schedule=schedule) == 0).all()
        assert (code(x, D, lam * 0.99, depth=12, schedule=schedule) != 0).any(-1).all()


@pytest.mark.parametrize("penalty", [sl.L1(), sl.Grouped(sl.GroupL2(), 4), sl.LInf()], ids=repr)
def test_homotopy_is_scale_equivariant(penalty: sl.Penalty) -> None:
    x, D = problem()
    scale = torch.tensor([1e-3, 0.1, 1.0, 7.0, 1e4], dtype=torch.float64).unsqueeze(-1)
    lam = 0.1 * penalty.lam_max(x @ D).unsqueeze(-1)
    code = F.ista(x, D, lam, depth=8, schedule=sl.Homotopy(), penalty=penalty)
    scaled = F.ista(scale * x, D, scale * lam, depth=8, schedule=sl.Homotopy(), penalty=penalty)
    torch.testing.assert_close(scaled, scale * code)


@pytest.mark.parametrize("penalty", [sl.L1(), sl.Grouped(sl.SparseGroup(), 4), sl.Grouped(sl.Exclusive(), 4)], ids=repr)
def test_ista_never_increases_the_objective(penalty: sl.Penalty) -> None:
    x, D = problem()
    layer = sl.ISTA(8, 20, depth=30, lam=0.1, penalty=penalty, dictionary=D, schedule=sl.Constant())
    _, trace = layer(x, trace=True)
    values = torch.stack([0.5 * (x - layer.decode(z)).square().sum(-1) + 0.1 * penalty.value(z) for z in trace])
    assert (values.diff(dim=0) <= 1e-12).all()


def test_homotopy_gets_further_in_few_steps() -> None:
    g = torch.Generator().manual_seed(0)
    D = torch.randn(100, 200, generator=g)
    D = D / D.norm(dim=0)
    z = torch.randn(40, 200, generator=g) * (torch.rand(40, 200, generator=g) < 0.03)
    error = {
        s: (F.ista(z @ D.T, D, 0.02, depth=16, schedule=s) - z).square().mean() for s in (sl.Constant(), sl.Homotopy())
    }
    assert error[sl.Homotopy()] < error[sl.Constant()]


def test_a_zero_sample_has_a_zero_code_and_finite_gradients() -> None:
    x, _ = problem()
    x[1] = 0
    for layer in (sl.ISTA(8, 20, depth=6), sl.FISTA(8, 20, depth=6), sl.ISTA(8, 20, depth=6, penalty=sl.GroupL2())):
        layer = layer.double()
        inputs = x.clone().requires_grad_()
        z = layer(inputs)
        assert (z[1] == 0).all()
        grads = torch.autograd.grad(z.square().sum() + z.sum(), (inputs, layer.dictionary))
        assert all(g.isfinite().all() for g in grads)


def test_lam_per_sample_and_per_atom() -> None:
    x, D = problem()
    per_sample = torch.linspace(0.05, 0.4, 5, dtype=torch.float64).unsqueeze(-1)
    per_atom = torch.linspace(0.05, 0.4, 20, dtype=torch.float64)
    for schedule in (sl.Constant(), sl.Homotopy()):
        each = torch.cat(
            [F.ista(s[None], D, float(lam), depth=6, schedule=schedule) for s, lam in zip(x, per_sample, strict=True)]
        )
        torch.testing.assert_close(F.ista(x, D, per_sample, depth=6, schedule=schedule), each)
        same = F.ista(x, D, torch.full((20,), 0.2, dtype=torch.float64), depth=6, schedule=schedule)
        torch.testing.assert_close(same, F.ista(x, D, 0.2, depth=6, schedule=schedule))
    step = 1 / float(torch.linalg.matrix_norm(D, 2)) ** 2
    z = torch.zeros(5, 20, dtype=torch.float64)
    ratio = ((x @ D).abs() / per_atom).amax(-1, keepdim=True).clamp_min(1)  # the homotopy's start, from the design
    for k in range(1, 7):
        v = z + step * (x - z @ D.T) @ D
        z = v.sign() * (v.abs() - step * per_atom * ratio ** (1 - k / 6)).clamp_min(0)
    torch.testing.assert_close(F.ista(x, D, per_atom, depth=6, schedule=sl.Homotopy()), z)


def test_shapes_leading_axes_and_single_samples() -> None:
    x, D = problem(batch=6)
    z = F.ista(x, D, 0.1, depth=4)
    torch.testing.assert_close(F.ista(x.view(2, 3, 8), D, 0.1, depth=4), z.view(2, 3, 20))
    torch.testing.assert_close(F.ista(x[0], D, 0.1, depth=4), z[0])
    assert F.ista(x[:0], D, 0.1, depth=4).shape == (0, 20)
    assert F.fista(x[:0], D, 0.1, depth=4, schedule=sl.Homotopy()).shape == (0, 20)
    assert F.ridge(x[:0], D, 0.1).shape == (0, 20)


def test_nan_stays_in_its_sample() -> None:
    x, D = problem()
    clean = F.fista(x, D, 0.1, depth=5, schedule=sl.Homotopy())
    x[2, 0] = torch.nan
    z = F.fista(x, D, 0.1, depth=5, schedule=sl.Homotopy())
    assert z[2].isnan().all()
    torch.testing.assert_close(z[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


@pytest.mark.parametrize("layer", [sl.ISTA, sl.FISTA])
def test_layers_are_their_functions(layer) -> None:
    x, D = problem()
    made = layer(8, 20, depth=5, lam=0.2, dictionary=D)
    f = F.ista if layer is sl.ISTA else F.fista
    torch.testing.assert_close(made(x), f(x, D, 0.2, depth=5, schedule=sl.Homotopy()))
    z, trace = made(x, trace=True)
    assert len(trace) == 5
    assert torch.equal(trace[-1], z)
    torch.testing.assert_close(trace[0].shape, z.shape)
    torch.testing.assert_close(made.decode(z), z @ D.T)
    shrunk = layer(8, 20, depth=5, lam=0.2, dictionary=D, shrink=sl.SigShrink(0.2, 10.0), schedule=sl.Constant())
    torch.testing.assert_close(shrunk(x), f(x, D, 0.2, depth=5, penalty=sl.SigShrink(0.2, 10.0)))
    assert list(shrunk.state_dict()) == ["dictionary"]


def test_what_is_learned() -> None:
    x, D = problem()
    names = lambda layer: sorted(name for name, _ in layer.named_parameters())  # noqa: E731
    assert names(sl.ISTA(8, 20, depth=2)) == ["dictionary"]
    assert names(sl.ISTA(8, 20, depth=2, learn=())) == []
    assert sorted(sl.ISTA(8, 20, depth=2, learn=()).state_dict()) == ["dictionary"]
    layer = sl.ISTA(8, 20, depth=3, lam=0.2, dictionary=D, learn=("dictionary", "lam", "step"))
    assert names(layer) == ["dictionary", "log_lam", "log_step"]
    torch.testing.assert_close(layer(x), sl.ISTA(8, 20, depth=3, lam=0.2, dictionary=D)(x))
    layer(x).square().sum().backward()
    assert all(p.grad.isfinite().all() and (p.grad != 0).any() for p in layer.parameters())
    again = sl.ISTA(8, 20, depth=3, lam=0.7, learn=("dictionary", "lam", "step"), dtype=torch.float64)
    again.load_state_dict(layer.state_dict())
    torch.testing.assert_close(again(x), layer(x))
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))


def test_atoms_start_at_unit_norm_and_are_copied() -> None:
    layer = sl.ISTA(8, 20, depth=2, dtype=torch.float64)
    torch.testing.assert_close(layer.dictionary.norm(dim=0), torch.ones(20, dtype=torch.float64))
    before = layer.dictionary.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(before, layer.dictionary)
    _, D = problem()
    layer = sl.ISTA(8, 20, depth=2, dictionary=D)
    with torch.no_grad():
        layer.dictionary.zero_()
    assert (D != 0).any()
    assert "depth=2, lam=0.1, penalty=L1(), schedule=Homotopy(), step=None" in repr(layer)


def test_the_step_carries_its_gradient() -> None:
    x, D = problem()
    D.requires_grad_()
    through = torch.autograd.grad(F.ista(x, D, 0.1, depth=3).sum(), D)[0]
    fixed = torch.autograd.grad(
        F.ista(x, D, 0.1, depth=3, step=1 / torch.linalg.matrix_norm(D.detach(), 2) ** 2).sum(), D
    )[0]
    assert not torch.allclose(through, fixed)


def test_a_zero_dictionary_gives_zero_codes_not_nan() -> None:
    x, D = problem()
    assert (F.ista(x, torch.zeros_like(D), 0.1, depth=3) == 0).all()


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_ridge_solves_its_normal_equations(shape: tuple[int, int]) -> None:
    x, D = problem(*shape)
    n = shape[1]
    lams = [
        0.3,
        torch.tensor(0.3),
        torch.rand(5, 1, dtype=torch.float64) + 0.1,
        torch.rand(n, dtype=torch.float64) + 0.1,
    ]
    for lam in lams:
        z = F.ridge(x, D, lam)
        torch.testing.assert_close((z @ D.T - x) @ D + lam * z, torch.zeros_like(z), rtol=0, atol=1e-9)
    assert F.ridge(x[0], D, 0.3).shape == (n,)
    torch.testing.assert_close(F.ridge(x.view(1, 5, -1), D, 0.3)[0], F.ridge(x, D, 0.3))


def test_the_loop_stops_sample_by_sample() -> None:
    """Gradient descent on 1/2 (z - target)²: samples nearer to their target stop earlier, and stay where they stopped."""
    target = torch.tensor([[0.0], [1.0], [100.0]])
    run = lambda target: proximal_gradient(  # noqa: E731
        torch.zeros_like(target),
        grad=lambda z: z - target,
        prox=lambda v, k: v,
        step=0.3,
        depth=200,
        stop=lambda z: (z - target).abs() < 1e-2,
    )
    found = run(target)
    assert found.steps.squeeze(-1).tolist() == sorted(found.steps.squeeze(-1).tolist())
    assert found.steps[0] == 0
    alone = torch.cat([run(t[None]).z for t in target])
    assert torch.equal(found.z, alone)


X, DICT = torch.ones(3, 4), torch.ones(4, 6)
WRONG = [
    (lambda: F.ista(X.int(), DICT, 0.1, depth=1), TypeError, "x must be floating point"),
    (lambda: F.ista(X, DICT.int(), 0.1, depth=1), TypeError, "D must be floating point"),
    (lambda: F.ista(X, DICT.double(), 0.1, depth=1), TypeError, r"one dtype.*use x.to\(D.dtype\)"),
    (lambda: F.ista(X, DICT[0], 0.1, depth=1), ValueError, r"D must be a matrix \(n_features, n_atoms\)"),
    (lambda: F.ista(X, DICT[:, :0], 0.1, depth=1), ValueError, "D must be a matrix"),
    (lambda: F.ista(X, DICT.T, 0.1, depth=1), ValueError, r"x must be \(..., 6\).*transpose D"),
    (lambda: F.ista(X[:, :2], DICT, 0.1, depth=1), ValueError, r"x must be \(..., 4\)"),
    (lambda: F.ista(X, DICT, -0.1, depth=1), ValueError, r"lam must lie in \[0, inf\]"),
    (lambda: F.ista(X, DICT, torch.ones(3), depth=1), ValueError, r"lam must be a number.*\(6,\).*lam.unsqueeze\(-1\)"),
    (
        lambda: F.ista(X, DICT, torch.ones(6), depth=1, penalty=sl.GroupL2()),
        ValueError,
        "one lam an atom needs a separable",
    ),
    (lambda: F.ista(X, DICT, 0.1, depth=0), ValueError, "depth must be at least 1, got 0"),
    (lambda: F.ista(X, DICT, 0.1, depth=1.5), TypeError, "depth must be an int, got float"),
    (lambda: F.ista(X, DICT, 0.1, depth=1, step=0.0), ValueError, r"step must lie in \(0, inf\]"),
    (lambda: F.ista(X, DICT, 0.1, depth=1, penalty="l1"), TypeError, "penalty must be a Penalty such as L1"),
    (lambda: F.ista(X, DICT, 0.1, depth=1, schedule="homotopy"), TypeError, "schedule must be an object such as"),
    (lambda: F.ista(X, DICT, 0.1, depth=1, schedule=sl.Homotopy), TypeError, "schedule must be an object such as"),
    (lambda: F.fista(X, DICT, 0.1, depth=1, restart="batch"), ValueError, 'restart must be "sample" or None'),
    (
        lambda: F.ista(X, DICT, 0.0, depth=1, schedule=sl.Homotopy()),
        ValueError,
        r"needs lam > 0.*schedule=Constant\(\)",
    ),
    (lambda: sl.ISTA(4, 6, depth=2, penalty=sl.Ridge()), ValueError, r"no finite lam_max.*Constant\(\)"),
    (lambda: sl.ISTA(4, 6, depth=2, penalty=sl.Grouped(sl.Exclusive(), 2)), ValueError, "no finite lam_max"),
    (lambda: sl.ISTA(4, 6, depth=2, lam=0.0), ValueError, "needs lam > 0"),
    (lambda: sl.ISTA(4, 6, depth=2, penalty=sl.SigShrink(1.0, 2.0)), TypeError, "pass a callable as shrink="),
    (lambda: sl.ISTA(4, 6, depth=2, shrink=3), TypeError, r"shrink must be a callable \(v, t\)"),
    (lambda: sl.ISTA(4, 6, depth=2, learn="dictionary"), ValueError, "learn must be a sequence of names out of"),
    (lambda: sl.ISTA(4, 6, depth=2, learn=("atoms",)), ValueError, "learn must be a sequence"),
    (lambda: sl.ISTA(4, 6, depth=2, dictionary=torch.ones(6, 4)), ValueError, r"dictionary must be \(4, 6\)"),
    (lambda: sl.ISTA(4, 6, depth=2, dictionary=torch.ones(4, 6).int()), TypeError, "dictionary must be floating point"),
    (lambda: sl.ISTA(0, 6, depth=2), ValueError, "n_features must be at least 1"),
    (
        lambda: sl.ISTA(4, 6, depth=2, lam=0.0, schedule=sl.Constant(), learn=("lam",)),
        ValueError,
        "cannot start at 0.0",
    ),
    (lambda: sl.ISTA(4, 6, depth=2).decode(torch.ones(4)), ValueError, r"z must be \(..., 6\)"),
    (lambda: F.ridge(X, DICT, 0.0), ValueError, r"lam must lie in \(0, inf\]"),
    (lambda: F.ridge(X, DICT, torch.ones(5)), ValueError, "lam must be a number"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
