"""Entmax with any alpha against brentq, long double, 50 digits and entmax itself; alpha's derivatives; conventions."""

from __future__ import annotations

import entmax
import mpmath
import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

import sparselayers as sl
import sparselayers.functional as F

from .test_ops import hard_rows

ALPHAS = (1.0, 1 + 1e-9, 1 + 1e-4, 1.01, 1.1, 1.3, 1.5, 1.9, 2.0, 2.01, 2.5, 3.0, 4.0)
FORMS = pytest.mark.parametrize(
    "form", [float, lambda a: torch.tensor(a, dtype=torch.float64)], ids=["number", "tensor"]
)
SOME = pytest.mark.parametrize(
    "alpha", [1.0, 1.3, 1.5, 2.0, 3.0, torch.tensor(1.0), torch.tensor(1.5), torch.tensor(3.0)], ids=str
)


def scores(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).to(dtype)


def at_level(z: np.ndarray, a: float, tau: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.exp(z - tau) if a == 0 else np.exp(np.log1p(np.maximum(a * (z - tau), -1)) / a)


def by_brentq(z: np.ndarray, alpha: float) -> np.ndarray:
    a = alpha - 1
    high = z.max() + (np.log(len(z)) if a < 1e-12 else -np.expm1(-a * np.log(len(z))) / a) + 1e-9
    return at_level(
        z, a, brentq(lambda tau: at_level(z, a, tau).sum() - 1, z.max() - 1e-9, high, xtol=1e-15, rtol=1e-15)
    )


def by_bisection(z: np.ndarray, alpha: float) -> np.ndarray:
    """In long double; above alpha = 2 in q = 1 - (alpha - 1) tau, which may be tiny, since the edge magnifies rounding."""
    z, a = z.astype(np.longdouble) - z.max(), np.longdouble(alpha) - 1
    low, high = (np.longdouble(0), np.log(np.longdouble(len(z)))) if a <= 1 else (np.longdouble(1), np.longdouble(0))
    p = (lambda tau: at_level(z, a, tau)) if a <= 1 else (lambda q: np.maximum(q + a * z, 0) ** (1 / a))
    for _ in range(130):
        middle = (low + high) / 2
        low, high = (middle, high) if p(middle).sum() > 1 else (low, middle)
    return p(high).astype(np.float64)


@FORMS
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_equals_brentq(form, alpha: float, scale: float) -> None:
    z = scale * scores(20, 17)
    expected = torch.from_numpy(np.stack([by_brentq(row, alpha) for row in z.numpy()]))
    torch.testing.assert_close(
        F.entmax(z, form(alpha)), expected, rtol=0, atol=2e-11 * max(1, scale) if alpha <= 2 else 1e-6
    )


@pytest.mark.parametrize("alpha", [1.05, 1.25, 1.5, 1.75, 2.0, 2.5, 4.0])
def test_equals_entmax(alpha: float) -> None:
    z = scores(50, 40)
    torch.testing.assert_close(F.entmax(z, alpha), entmax.entmax_bisect(z, alpha, n_iter=90), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 7, 64, 1000, 5000])
@pytest.mark.parametrize("eager", [True, False])
def test_hard_rows(n: int, eager: bool, monkeypatch) -> None:
    """On the path that may stop early and on the one with a fixed number of passes."""
    if not eager:
        monkeypatch.setattr("sparselayers.ops.entmax.may_branch", lambda x: False)
    alphas = ALPHAS if n < 1000 else (1.3, 4.0)
    rows = hard_rows(n, torch.float64)
    rows |= {f"randn {s}": s * rows["randn"] for s in (1e-4, 1e4)}
    crowd = torch.rand(n - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.logspace(
        -9, -1, n - 1
    )
    rows |= {
        f"crowd at the edge for {a + 1}": torch.cat([torch.full((1,), 0.3), 0.3 - 1 / a + crowd]) for a in (1.5, 3.0)
    }
    if n > 1000:
        rows = {
            name: rows[name] for name in ("randn", "randn 10000.0", "ties", "clusters", "log spaced", "peeling 0.3")
        }
    for name, exact in rows.items():
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-11)):
            row = exact.to(dtype)
            found = F.entmax(row.expand(len(alphas), n), torch.tensor(alphas, dtype=torch.float64)[:, None]).double()
            assert (abs(found.sum(-1) - 1) <= (2e-6 if dtype is torch.float32 else 2e-15)).all(), name
            for p, alpha in zip(found, alphas, strict=True):
                assert abs(p.numpy() - by_bisection(row.double().numpy(), alpha)).max() <= tolerance, (
                    name,
                    dtype,
                    alpha,
                )


@pytest.mark.parametrize("alpha", [1.0, 1.2, 1.7, 2.5, 4.0, torch.tensor(1.2, dtype=torch.float64)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [64, 16384])
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
def test_sixteen_bits(alpha, dtype: torch.dtype, n: int, scale: float) -> None:
    z = (scale * torch.randn(4, n, generator=torch.Generator().manual_seed(0))).to(dtype)
    p, exact = F.entmax(z, alpha), F.entmax(z.double(), alpha)
    assert p.dtype == dtype
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert ((p.double() - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact + smallest + 1e-7).all()


def digits(z: list[float], alpha, i: int):
    """Entry i of entmax in 60 digits; the formula goes on smoothly below alpha = 1, so that differences can be central."""
    a = alpha - 1

    def p(tau, x):
        inside = 1 + a * (x - tau)
        return mpmath.exp(x - tau) if a == 0 else inside ** (1 / a) if inside > 0 else mpmath.mpf(0)

    low = max(z) - mpmath.mpf("0.1")
    high = max(z) + mpmath.log(len(z)) + mpmath.mpf("0.1")
    tau = mpmath.findroot(
        lambda t: mpmath.fsum(p(t, x) for x in z) - 1, (low, high), solver="anderson", tol=1e-100, maxsteps=300
    )
    return p(tau, z[i])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("above", [0.0, 1e-12, 1e-9, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.3])
def test_value_and_both_derivatives_as_alpha_tends_to_one(above: float, dtype: torch.dtype) -> None:
    z = torch.tensor([0.3, -1.1, 0.9, -8.0, 0.0], dtype=dtype)
    alpha = torch.tensor(1 + above, dtype=torch.float64)
    value, slope, bend = (
        f(alpha)
        for f in (
            lambda a: F.entmax(z, a).double(),
            torch.func.jacrev(lambda a: F.entmax(z, a).double()),
            torch.func.jacfwd(torch.func.jacrev(lambda a: F.entmax(z, a).double())),
        )
    )
    exact_z, h = [mpmath.mpf(float(x)) for x in z], mpmath.mpf("1e-12")
    with mpmath.workdps(60):
        for i in range(5):
            low, middle, high = (digits(exact_z, mpmath.mpf(float(alpha)) + k * h, i) for k in (-1, 0, 1))
            expected = [float(middle), float((high - low) / (2 * h)), float((high - 2 * middle + low) / h**2)]
            for got, wanted in zip((value[i], slope[i], bend[i]), expected, strict=True):
                assert abs(float(got) - wanted) <= 200 * torch.finfo(dtype).eps * max(1, abs(wanted))


def test_derivative_at_one_is_that_from_the_right() -> None:
    z = scores(4, 6)
    alpha = torch.ones(4, 1, dtype=torch.float64, requires_grad=True)
    p = F.entmax(z, alpha)
    torch.testing.assert_close(p, torch.softmax(z, -1), rtol=0, atol=1e-15)
    (got,) = torch.autograd.grad((p * scores(6)).sum(), alpha)
    h = 1e-6
    torch.testing.assert_close(
        got, (((F.entmax(z, 1 + h) - F.entmax(z, 1.0)) / h) * scores(6)).sum(-1, keepdim=True), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("alpha", [1.05, 1.3, 1.9, 2.1, 2.7, 3.5])
def test_gradients_against_finite_differences(alpha: float) -> None:
    z = scores(3, 6).requires_grad_()
    a = torch.full((3, 1), alpha, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(F.entmax, (z, a))
    assert torch.autograd.gradgradcheck(F.entmax, (z, a), atol=1e-4)
    assert torch.autograd.gradcheck(lambda z: F.entmax(z, alpha), z)
    assert torch.autograd.gradgradcheck(lambda z: F.entmax(z, alpha), z, atol=1e-4)


@pytest.mark.parametrize("alpha", [2.25, 3.0, 4.0, torch.tensor(4.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivatives_of_an_entry_at_the_very_edge_are_no_noise(alpha, dtype: torch.dtype) -> None:
    """With two in the support the Jacobian is s [[1, -1], [-1, 1]], s = 1 / (p_1^(alpha - 2) + p_2^(alpha - 2))."""
    power = float(alpha) - 2
    for distance in (1e-12, 1e-9, 1e-7, 1e-5, 1e-3, 1e-1):
        z = torch.tensor([0.0, -1 / (1 + power) + distance, -1.0], dtype=dtype)
        p = F.entmax(z, alpha).double()
        expected = torch.zeros(3, 3, dtype=torch.float64)
        if p[1] > 0:
            s = 1 / (p[0] ** power + p[1] ** power)
            expected[:2, :2] = s * torch.tensor([[1, -1], [-1, 1]])
        for found in (torch.func.jacrev(F.entmax)(z, alpha), torch.func.jacfwd(F.entmax)(z, alpha)):
            torch.testing.assert_close(found.double(), expected, rtol=5 * torch.finfo(dtype).eps ** 0.5, atol=1e-6)


def test_numbers_take_the_shorter_ways() -> None:
    z, mask = scores(4, 9), scores(4, 9) > -1
    assert torch.equal(F.entmax(z, 1.5, mask=mask), F.entmax15(z, mask=mask))
    assert torch.equal(F.entmax(z, 2, mask=mask), F.sparsemax(z, mask=mask))
    assert torch.equal(F.entmax(z, 1), torch.softmax(z, -1))
    torch.testing.assert_close(F.entmax(z, 1, mask=mask), torch.softmax(z.masked_fill(~mask, -torch.inf), -1))
    for alpha in (1.0, 1.5, 2.0):
        near = F.entmax(z, torch.tensor(alpha, dtype=torch.float64), return_threshold=True)
        for got, expected in zip(F.entmax(z, alpha, return_threshold=True), near, strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 1), (2, 1, 1, 1), (2, 3, 4, 1), (1, 1, 4, 1)])
def test_alpha_broadcasts(shape: tuple[int, ...]) -> None:
    z = scores(2, 3, 4, 5)
    alpha = 1 + 3 * torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one_each = alpha.expand(2, 3, 4, 1)
    expected = torch.stack(
        [F.entmax(row, float(a)) for row, a in zip(z.reshape(-1, 5), one_each.reshape(-1), strict=True)]
    )
    torch.testing.assert_close(F.entmax(z, alpha), expected.view_as(z))
    across = one_each.movedim(-1, 1)
    torch.testing.assert_close(F.entmax(z.movedim(-1, 1), across, dim=1), expected.view_as(z).movedim(-1, 1))
    torch.testing.assert_close(
        F.entmax(z.movedim(-1, 1), across[:1], dim=-3)[0], F.entmax(z[:1], one_each[:1])[0].movedim(-1, 0)
    )


def test_a_tensor_outside_the_range_counts_as_the_nearest_end() -> None:
    z = scores(3, 5)
    alpha = torch.tensor([[0.3], [9.0], [torch.nan]], dtype=torch.float64, requires_grad=True)
    p = F.entmax(z, alpha)
    torch.testing.assert_close(p[:2], torch.stack([F.entmax(z[0], 1.0), F.entmax(z[1], 4.0)]))
    assert p[2].isnan().all()
    assert torch.autograd.grad((p[:2] * scores(5)).sum(), alpha)[0][:2].tolist() == [[0.0], [0.0]]
    whole = F.entmax(z, torch.tensor(2))
    torch.testing.assert_close(whole, F.sparsemax(z))


@SOME
def test_masked_is_dropped_whatever_stands_there(alpha) -> None:
    z = scores(4, 9)
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[3] = False
    dirty = torch.where(mask, z, torch.tensor([torch.nan, torch.inf, 1e30])[torch.arange(9) % 3].double())
    dirty.requires_grad_()
    p = F.entmax(dirty, alpha, mask=mask)
    for row, seen, out in zip(z[:3], mask, p, strict=False):
        torch.testing.assert_close(out[seen], F.entmax(row[seen], alpha))
    assert (p[~mask] == 0).all()
    (grad,) = torch.autograd.grad((p.square() * z).sum(), dirty, create_graph=True)
    assert (grad[~mask] == 0).all()
    assert grad.isfinite().all()
    assert torch.autograd.grad(grad.square().sum(), dirty)[0].isfinite().all()
    torch.testing.assert_close(F.entmax(z.masked_fill(~mask, -torch.inf), alpha), p.detach())
    torch.testing.assert_close(F.entmax(z.T, alpha, dim=0, mask=mask.T), p.detach().T)


@SOME
def test_nan_and_plus_inf_fill_their_row_and_no_other(alpha) -> None:
    z = scores(5, 5)
    z[1, 2], z[2, 0], z[4] = torch.nan, torch.inf, -torch.inf
    p, tau, size = F.entmax(z, alpha, return_threshold=True)
    assert p[1:3].isnan().all()
    assert tau[1:3].isnan().all()
    torch.testing.assert_close(p[[0, 3]], F.entmax(z[[0, 3]], alpha))
    assert (p[4] == 0).all()
    assert (float(tau[4]), int(size[4])) == (torch.inf, 0)


@SOME
def test_shapes_strides_and_symmetries(alpha) -> None:
    z = scores(2, 3, 4)
    assert F.entmax(torch.zeros(0, 5), alpha).shape == (0, 5)
    for form in (False, True):
        assert F.entmax(torch.zeros(5, 0), alpha, return_threshold=form)[0].shape == ((5, 0) if form else (0,))
    assert F.entmax(torch.zeros(1), alpha).tolist() == [1.0]
    for dim in range(-3, 3):
        torch.testing.assert_close(F.entmax(z, alpha, dim=dim).sum(dim), torch.ones_like(z.sum(dim)))
    strided, before = z.transpose(0, 2), z.clone()
    torch.testing.assert_close(F.entmax(strided, alpha, dim=0), F.entmax(strided.contiguous(), alpha, dim=0))
    assert torch.equal(z, before)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(F.entmax(z[..., order], alpha), F.entmax(z, alpha)[..., order])
    torch.testing.assert_close(F.entmax(z + 3.7, alpha), F.entmax(z, alpha))
    torch.testing.assert_close(F.entmax(torch.zeros(2, 5), alpha), torch.full((2, 5), 0.2))


FORMULAS = {
    "sparsemax": (F.sparsemax, lambda z, tau: torch.relu(z - tau)),
    "entmax15": (F.entmax15, lambda z, tau: torch.relu(z / 2 - tau) ** 2),
    "radius 3": (lambda z, **k: F.project_simplex(z, 3.0, **k), lambda z, tau: torch.relu(z - tau)),
    "radius 0": (lambda z, **k: F.project_simplex(z, 0.0, **k), lambda z, tau: torch.relu(z - tau)),
    "weight": (
        lambda z, **k: F.project_simplex(z, 3.0, weight=torch.arange(1.0, 9.0), **k),
        lambda z, tau: torch.relu(z - tau * torch.arange(1.0, 9.0)),
    ),
    "softmax": (lambda z, **k: F.entmax(z, 1.0, **k), lambda z, tau: torch.exp(z - tau)),
    "tensor 1": (lambda z, **k: F.entmax(z, torch.tensor(1.0), **k), lambda z, tau: torch.exp(z - tau)),
    **{
        f"entmax {alpha}": (
            lambda z, alpha=alpha, **k: F.entmax(z, alpha, **k),
            lambda z, tau, alpha=alpha: torch.relu(1 + (alpha - 1) * (z - tau)) ** (1 / (alpha - 1)),
        )
        for alpha in (1.2, 1.5, 1.9, 2.0, 2.6)
    },
}


@pytest.mark.parametrize("name", FORMULAS)
def test_threshold_is_that_of_the_closed_form(name: str) -> None:
    f, formula = FORMULAS[name]
    z = scores(6, 8)
    result = f(z, return_threshold=True)
    assert isinstance(result, F.Thresholded)
    weights, tau, size = result
    assert torch.equal(weights, f(z))
    torch.testing.assert_close(formula(z, tau), weights, rtol=1e-6, atol=1e-7)
    assert torch.equal(size, (weights > 0).sum(-1, keepdim=True))
    assert (tau.shape, size.dtype) == ((6, 1), torch.int64)
    if name not in ("radius 0", "weight"):
        across = f(z.T, dim=0, return_threshold=True)
        torch.testing.assert_close(across.threshold, tau.T)
        torch.testing.assert_close(across.support_size, size.T)
        torch.testing.assert_close(f(z + 1, return_threshold=True).threshold, tau + (0.5 if name == "entmax15" else 1))
    half = f(z.bfloat16(), return_threshold=True)
    assert (half.weights.dtype, half.threshold.dtype) == (torch.bfloat16, torch.float32)
    nothing = f(torch.full((2, 8), -torch.inf), return_threshold=True)
    assert (nothing.threshold == torch.inf).all()
    assert (nothing.weights == 0).all()
    assert (nothing.support_size == 0).all()


def test_module() -> None:
    z, mask = scores(3, 5), scores(3, 5) > -1
    torch.testing.assert_close(sl.Entmax(1.3, dim=0)(z, mask), F.entmax(z, 1.3, 0, mask))
    assert repr(sl.Entmax(1.3, dim=0)) == "Entmax(alpha=1.3, dim=0)"
    assert list(sl.Entmax(1.3).state_dict()) == []
    heads = torch.tensor([1.0, 1.5, 4.0])[:, None]
    fixed = sl.Entmax(heads)
    assert repr(fixed) == "Entmax(alpha=tensor(3, 1), dim=-1)"
    assert (list(fixed.state_dict()), list(fixed.parameters())) == (["fixed_alpha"], [])
    torch.testing.assert_close(fixed(z), F.entmax(z, heads))


@pytest.mark.parametrize("start", [1.5, torch.tensor([[1.5], [3.9], [1.001]])])
def test_learned_alpha_stays_inside(start) -> None:
    learned = sl.Entmax(start, learn_alpha=True)
    assert set(learned.state_dict()) == {"logit_alpha"}
    torch.testing.assert_close(learned.alpha, torch.as_tensor(start))
    z = scores(3, 5, dtype=torch.float32)
    for direction in (1, -1):
        optimizer = torch.optim.SGD(learned.parameters(), lr=1.0)
        before = learned.alpha.detach().clone()
        for _ in range(20):
            optimizer.zero_grad()
            (direction * learned(z).square().sum()).backward()
            optimizer.step()
        assert ((learned.alpha > 1) & (learned.alpha < 4)).all()
        assert (direction * (before - learned.alpha)).min() >= 0
        assert learned.logit_alpha.grad.isfinite().all()
    twin = sl.Entmax(2.0 if isinstance(start, float) else torch.full((3, 1), 2.0), learn_alpha=True)
    twin.load_state_dict(learned.state_dict())
    torch.testing.assert_close(twin(z), learned(z))
    ends = sl.Entmax(torch.tensor([[1.0], [4.0]]), learn_alpha=True)
    assert ends.logit_alpha.isfinite().all()


@pytest.mark.parametrize(
    "f",
    [
        lambda z: F.entmax(z, 1.3),
        lambda z: F.entmax(z, 3.0),
        lambda z: F.entmax(z, torch.tensor(1.7)),
        lambda z: F.entmax(z, 1.3, return_threshold=True).threshold,
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


Z = torch.ones(2, 4)
WRONG = [
    (lambda: F.entmax(Z, 0.9), ValueError, r"alpha must lie in \[1, 4\], got 0.9"),
    (lambda: F.entmax(Z, 4.1), ValueError, r"alpha must lie in \[1, 4\], got 4.1"),
    (lambda: F.entmax(Z, "1.5"), TypeError, "alpha must be a number, got str"),
    (
        lambda: F.entmax(Z, torch.ones(4)),
        ValueError,
        r"alpha must be a number or broadcast to the input of shape \(2, 4\) with size 1 at dim -1, got shape \(4,\); use alpha.unsqueeze\(-1\)",
    ),
    (lambda: F.entmax(Z, torch.ones(3, 1)), ValueError, r"with size 1 at dim -1, got shape \(3, 1\)"),
    (lambda: F.entmax(Z, torch.ones(2, 1), dim=0), ValueError, r"with size 1 at dim 0, got shape \(2, 1\)"),
    (lambda: F.entmax(Z.long(), 1.3), TypeError, r"z must be floating point, got torch.int64; use z.float\(\)"),
    (lambda: F.entmax(Z, 1.3, dim=2), IndexError, r"dim must lie in \[-2, 1\] for z"),
    (lambda: F.entmax(Z, 1.3, mask=Z), TypeError, "mask must be a boolean tensor"),
    (lambda: F.entmax(Z, 1.3, mask=torch.ones(3, 4, dtype=torch.bool)), ValueError, "does not broadcast to z of shape"),
    (lambda: sl.Entmax(5.0), ValueError, r"alpha must lie in \[1, 4\]"),
    (
        lambda: sl.Entmax(1.0, learn_alpha=True),
        ValueError,
        r"a learned alpha stays inside \(1, 4\) and cannot start at 1.0",
    ),
    (lambda: sl.Entmax(4, learn_alpha=True), ValueError, "cannot start at 4"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
