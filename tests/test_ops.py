"""Floor 0: the waterline on hard rows, the root, the norm, spectral facts, and the errors of the functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import sparselayers as sl
import sparselayers.functional as F
from sparselayers.ops import soft, spectral
from sparselayers.ops.norm import norm
from sparselayers.ops.root import newton_root
from sparselayers.ops.waterline import newton_passes, waterline

from . import oracles


def peeling(n: int, share: float, dtype: torch.dtype) -> Tensor:
    """A row made against Newton: every pass removes only `share` of the support, by lying just under the next level."""
    row, size, level = [], n, -1.0 / n
    drop = 0.5 / n
    while size > 1 and abs(drop) > 1e-300:
        removed = max(1, int(share * size))
        row += [level - drop] * min(removed, size - 1)
        size -= removed
        if size < 1:
            break
        level += removed * drop / size
        drop *= share / (1 - share) * 0.999
    return torch.tensor([0.0] * max(1, n - len(row)) + row, dtype=torch.float64).to(dtype)[:n]


def hard_rows(n: int, dtype: torch.dtype) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    k = torch.arange(n, dtype=torch.float64)
    made = {
        "randn": torch.randn(n, generator=g, dtype=torch.float64),
        "large": 100 * torch.randn(n, generator=g, dtype=torch.float64),
        "small": 1e-3 * torch.randn(n, generator=g, dtype=torch.float64),
        "geometric": -(0.5 ** (k % 50)),
        "geometric slow": -(0.999**k),
        "harmonic": -1 / (k + 1),
        "clusters": -torch.floor(k / max(1, n // 8)) / 16 + 1e-6 * torch.randn(n, generator=g, dtype=torch.float64),
        "ties": torch.zeros(n, dtype=torch.float64),
        "two values": -(k % 2) / n,
        "near uniform": 1e-7 * torch.rand(n, generator=g, dtype=torch.float64),
        "one large": torch.cat([torch.full((1,), 1e4, dtype=torch.float64), torch.zeros(n - 1, dtype=torch.float64)]),
        "shifted": 1e4 + torch.randn(n, generator=g, dtype=torch.float64),
        "powers": -(2.0 ** -(k % 60)) / (k + 1).sqrt(),
        "log spaced": -torch.logspace(-12, 0, n, dtype=torch.float64),
    }
    made |= {f"peeling {share}": peeling(n, share, torch.float64) for share in (0.2, 0.25, 0.3, 0.34, 0.4)}
    return {name: row.to(dtype) for name, row in made.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 7, 64, 1000, 20000])
@pytest.mark.parametrize("eager", [True, False])
def test_sparsemax_is_exact_on_hard_rows(n: int, dtype: torch.dtype, eager: bool, monkeypatch) -> None:
    """Against the sorted solution in long double, on the eager path and on the one with a fixed number of passes."""
    if not eager:
        monkeypatch.setattr("sparselayers.ops.waterline.may_branch", lambda x: False)
    rounding = torch.finfo(dtype).eps
    for name, row in hard_rows(n, dtype).items():
        u = row.double().numpy()
        level = oracles.sorted_waterline(u - u.max(), np.ones(n), 1.0, 0.0)
        expected = np.maximum((u - u.max()) - level, 0).astype(np.float64)
        found = F.sparsemax(row)
        spread = max(1.0, float(row.abs().max()))  # a row of 1e4s is itself only given to eps 1e4
        assert abs(found.double().numpy() - expected).max() <= 8 * rounding * spread, name
        assert abs(found.double().sum() - 1) <= 4 * rounding * max(4, n**0.5), name


@pytest.mark.parametrize("n", [3, 50, 2000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eager", [True, False])
def test_weighted_waterline_on_hard_rows(n: int, dtype: torch.dtype, eager: bool, monkeypatch) -> None:
    if not eager:
        monkeypatch.setattr("sparselayers.ops.waterline.may_branch", lambda x: False)
    a = 10 ** (6 * torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 3)
    for name, row in hard_rows(n, dtype).items():
        for b, c in ((1.0, 0.0), (0.0, 1.0), (0.5, 2.0)):
            u = row - row.min() if c else row  # c > 0 is used with u >= 0
            found = waterline(u, a.to(dtype), b, c)
            exact = oracles.sorted_waterline(u.double().numpy(), a.to(dtype).double().numpy(), b, c)
            spread = max(1.0, float(u.abs().max()))
            assert abs(float(found.tau) - float(exact)) <= 1e3 * torch.finfo(dtype).eps * spread, (name, b, c)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_row_all_minus_inf_stands_out_nowhere_under_any_weights(enabled: bool) -> None:
    u = torch.tensor([[-torch.inf] * 3, [1.0, -torch.inf, 0.5]])
    with sl.kernels(enabled):
        for weights in (1.0, torch.tensor([1.0, 2.0, 0.5])):
            above = waterline(u, weights, 1.0).above
            assert not above[0].any()
            torch.testing.assert_close((weights * above)[1].sum(), torch.tensor(1.0))


def test_the_pass_bound_is_never_reached_on_hard_rows() -> None:
    for n in (64, 1000, 20000):
        for dtype in (torch.float32, torch.float64):
            for row in hard_rows(n, dtype).values():
                w, tau, size = row - row.max(), -torch.ones(1, dtype=dtype), None
                for _ in range(newton_passes(row) - 1):
                    above = torch.relu(w - tau)
                    members = int((above > 0).sum())
                    if members == size:
                        break
                    size, tau = members, tau + (above.sum() - 1) / members
                else:
                    raise AssertionError(f"{newton_passes(row)} passes were not enough for n = {n}")


def test_waterline_of_nothing() -> None:
    for row in (torch.full((2, 3), -torch.inf), torch.zeros(2, 3)):
        assert (waterline(row, 1.0, 0.0).above == 0).all()
    assert (waterline(torch.full((2, 3), -torch.inf), 1.0, 1.0).above == 0).all()


def test_newton_root_has_two_exact_derivatives() -> None:
    """s² = p: s = sqrt(p), with its first and second derivative, from a start below the root of a convex rise."""
    p = torch.tensor([[2.0], [9.0], [0.3]], dtype=torch.float64, requires_grad=True)

    def equation(p: Tensor):
        return lambda s: (1 - p / s.square(), 2 * p / s**3)

    def root(p: Tensor) -> Tensor:
        return newton_root(equation(p), equation(p.detach()), p.detach().clamp(max=1.0) * 0.5)

    torch.testing.assert_close(root(p), p.sqrt())
    assert torch.autograd.gradcheck(root, p)
    assert torch.autograd.gradgradcheck(root, p)


def test_norm_at_zero_and_at_the_ends_of_the_range() -> None:
    v = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3e30, 4e30], [3e-30, 4e-30]], requires_grad=True)
    torch.testing.assert_close(norm(v).squeeze(-1), torch.tensor([0.0, 5.0, 5e30, 5e-30]))
    (grad,) = torch.autograd.grad(norm(v).sum(), v, create_graph=True)
    torch.testing.assert_close(grad, torch.tensor([[0.0, 0.0]] + [[0.6, 0.8]] * 3))
    assert torch.autograd.grad(grad.sum(), v)[0].isfinite().all()
    assert norm(torch.full((2, 40960), 600.0, dtype=torch.float16)).isfinite().all()
    assert norm(torch.zeros(2, 0)).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (600, 900), (1, 4)])
def test_squared_norm_is_a_safe_bound(shape: tuple[int, int]) -> None:
    D = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    exact = float(torch.linalg.matrix_norm(D.detach(), 2)) ** 2
    found = spectral.squared_norm(D)
    assert (
        exact * (1 - 1e-12)
        <= float(found.detach())
        <= exact * (1.0501 if min(shape) > spectral.EXACT_UP_TO else 1 + 1e-12)
    )
    assert torch.autograd.grad(found, D)[0].isfinite().all()


def test_analytic_weight_is_the_constrained_least_squares() -> None:
    D = torch.randn(6, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    D = D / D.norm(dim=0)
    W = F.analytic_weight(D)
    torch.testing.assert_close((W * D).sum(0), torch.ones(15, dtype=torch.float64))
    # optimality: D D^T w_i is parallel to d_i, the gradient of the constraint
    gradient = D @ D.T @ W
    torch.testing.assert_close(gradient, D * (gradient * D).sum(0), rtol=1e-9, atol=1e-9)
    assert (W.T @ D).square().sum() <= (D.T @ D).square().sum()
    assert spectral.coherence(D) == (D.T @ D - torch.eye(15, dtype=torch.float64)).abs().max()


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_dim_is_any_axis(dim: int) -> None:
    v = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.rand(3, 4, 5, dtype=torch.float64).narrow(dim, 0, 1)
    for f in (F.group_soft_threshold, F.exclusive_threshold, F.project_simplex, F.project_l1_ball):
        torch.testing.assert_close(f(v, t, dim), f(v.movedim(dim, -1), t.movedim(dim, -1)).movedim(-1, dim))
        torch.testing.assert_close(f(v, 0.5, dim=dim), f(v.movedim(dim, -1), 0.5).movedim(-1, dim))


def test_sigshrink_limits() -> None:
    v = torch.linspace(-3, 3, 602, dtype=torch.float64)
    torch.testing.assert_close(F.sigshrink(v, 1.0, 1e6), F.hard_threshold(v, 1.0))
    torch.testing.assert_close(F.ssbs(v, 1.0, 1e6, 1.0), F.soft_threshold(v, 1.0))
    torch.testing.assert_close(F.ssbs(v, 1.0, 4.0, 0.0), F.sigshrink(v, 1.0, 4.0))
    assert (F.sigshrink(v, 1.0, 10.0) != 0).all()
    far = torch.tensor([1e-3, 500.0, -500.0], requires_grad=True)
    (grad,) = torch.autograd.grad(F.sigshrink(far, 100.0, 10.0).sum(), far)
    assert grad.isfinite().all()


def test_shrink_functions_keep_nan_and_infinities_to_their_entry() -> None:
    v = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0])
    for out in (F.soft_threshold(v, 0.5), F.hard_threshold(v, 0.5)):
        assert out[0].isnan()
        assert out[1] == torch.inf
        assert out[2] == -torch.inf
        assert out[3].isfinite()


V = torch.ones(2, 4)
WRONG = [
    (lambda: F.soft_threshold(V.int(), 1.0), TypeError, "v must be floating point, got torch.int32"),
    (lambda: F.soft_threshold(V, -1.0), ValueError, r"t must lie in \[0, inf\]"),
    (lambda: F.soft_threshold(V, True), TypeError, "t must be a number, got bool"),
    (lambda: F.hard_threshold(V, -1.0), ValueError, r"threshold must lie in \[0, inf\]"),
    (lambda: F.hard_threshold(V.int(), 1.0), TypeError, "v must be floating point"),
    (
        lambda: F.group_soft_threshold(V, 1.0, dim=2),
        IndexError,
        r"dim must lie in \[-2, 1\] for v of shape \(2, 4\), got 2",
    ),
    (lambda: F.group_soft_threshold(V, 1.0, dim=-3), ValueError, "got -3"),
    (lambda: F.exclusive_threshold(V, torch.ones(4)), ValueError, r"t must broadcast to \(\.\.\., 1\)"),
    (lambda: F.sigshrink(V.int(), 1.0, 1.0), TypeError, "v must be floating point"),
    (lambda: F.ssbs(V.int(), 1.0, 1.0, 1.0), TypeError, "v must be floating point"),
    (lambda: F.project_simplex(V, -1.0), ValueError, r"radius must lie in \[0, inf\], got -1.0"),
    (lambda: F.project_simplex(V, torch.ones(4)), ValueError, "radius must broadcast"),
    (lambda: F.project_simplex(V, mask=V), TypeError, r"mask must be a boolean tensor.*use mask.bool\(\)"),
    (lambda: F.project_simplex(V, mask=torch.ones(3, dtype=torch.bool)), ValueError, r"mask of shape \(3,\) does not"),
    (lambda: F.project_l1_ball(V, -1.0), ValueError, "radius must lie"),
    (lambda: F.analytic_weight(V.int()), TypeError, "D must be floating point"),
    (lambda: F.analytic_weight(torch.ones(3)), ValueError, "D must be a matrix"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("spread", [6, 8, 10, 12])
def test_weights_of_many_scales_in_float32(spread: int) -> None:
    """The largest entry may have the least weight, and would stand alone far below the level."""
    g = torch.Generator().manual_seed(0)
    v = torch.randn(60, 50, generator=g)
    d = 10 ** (-spread * torch.rand(60, 50, generator=g))
    for radius in (1.0, 10.0):
        found = sl.L1Ball(radius).prox(v, 1.0, d)
        assert (found.abs().sum(-1) <= radius * 1.001).all()
        exact = sl.L1Ball(radius).prox(v.double(), 1.0, d.double())
        torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            sl.LInf().prox(v, radius, d), sl.LInf().prox(v.double(), radius, d.double()).float(), rtol=1e-3, atol=1e-3
        )
    level = waterline(d.double() * v.double().abs(), 1 / d.double(), 1.0).tau
    for row, metric, tau in zip(v.double().abs().numpy(), d.double().numpy(), level, strict=True):
        assert abs(float(tau) / float(oracles.sorted_waterline(metric * row, 1 / metric, 1.0, 0.0)) - 1) < 1e-6


def test_strengths_at_the_ends_of_the_range() -> None:
    for t in (1e-46, 1e-300):
        assert (F.group_soft_threshold(torch.zeros(2), t) == 0).all()
        assert (sl.SparseGroup().prox(torch.zeros(2), t) == 0).all()
    v = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    for penalty in (sl.SparseGroup(1.0), sl.SparseGroup(0.0), sl.SparseGroup(), sl.Exclusive(), sl.GroupL2(), sl.L1()):
        assert (penalty.prox(v, float("inf")) == 0).all()
    c = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert (sl.SparseGroup().prox(c, sl.SparseGroup().lam_max(c).unsqueeze(-1)) == 0).all()


@pytest.mark.parametrize("t", [0.7, [[0.3], [0.9], [2.0]], [0.1, 0.5, 1.5, 0.2]], ids=["all", "rows", "columns"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_eager_soft_threshold_is_the_plain_one(t, dtype: torch.dtype) -> None:
    """Values, first and second derivatives, against the formula that every transform uses; also at NaN and inf."""

    def plain(v: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return v - v.clamp(-t, t)

    t = torch.tensor(t, dtype=dtype, requires_grad=True)
    v = torch.tensor([[0.0, -0.5, 2.0, 0.2], [3.0, torch.inf, -torch.inf, -0.9], [-4.0, 1.0, 2.5, 0.1]], dtype=dtype)
    v[0, 3] = torch.nan
    v.requires_grad_()
    assert soft.serves(v, t)
    weight = torch.linspace(-1, 2, 12, dtype=dtype).view(3, 4)
    results = []
    for f in (F.soft_threshold, plain):
        out = f(v, t)
        first = torch.autograd.grad(
            (weight * out.nan_to_num(posinf=0, neginf=0).square()).sum(), (v, t), create_graph=True
        )
        second = torch.autograd.grad(sum(g.nan_to_num().sin().sum() for g in first), (v, t))
        results.append((out, *first, *second))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True)


def test_where_the_eager_soft_threshold_does_not_serve() -> None:
    v = torch.ones(3, 2)
    for t in (torch.tensor(0.0), torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor(torch.nan), torch.tensor(-1.0)):
        assert not soft.serves(v, t)
    assert not soft.serves(v, torch.ones(2, dtype=torch.float64))
    v = torch.zeros(3, requires_grad=True)
    assert torch.autograd.grad(F.soft_threshold(v, torch.tensor(0.0)).sum(), v)[0].tolist() == [1.0, 1.0, 1.0]
