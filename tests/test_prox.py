"""Every penalty against its naive twin, against a global search, and against the contract of the prox core."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import sparselayers as sl

from . import oracles
from .registry import PENALTIES, has_lam_max

every = pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
finite = pytest.mark.parametrize("penalty", [p for p in PENALTIES if not p.indicator], ids=repr)
with_metric = pytest.mark.parametrize("penalty", [p for p in PENALTIES if p.has_metric], ids=repr)
STRENGTHS = [0.0, 1e-3, 0.3, 1.0, 4.0, 50.0]


def rows(m: int, n: int, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 2.0) -> Tensor:
    return (scale * torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).to(dtype)


def weights(m: int, n: int, seed: int = 1) -> Tensor:
    return 10 ** (2 * torch.rand(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1.5)


@every
@pytest.mark.parametrize("t", STRENGTHS)
def test_equals_its_naive_twin(penalty: sl.Penalty, t: float) -> None:
    v = rows(40, 6)
    expected = np.stack([oracles.prox(penalty, row, t) for row in v.numpy()])
    torch.testing.assert_close(penalty.prox(v, t), torch.from_numpy(expected), rtol=1e-11, atol=1e-11)


@with_metric
@pytest.mark.parametrize("t", STRENGTHS)
def test_equals_its_naive_twin_in_a_metric(penalty: sl.Penalty, t: float) -> None:
    v, d = rows(40, 6), weights(40, 6)
    expected = np.stack(
        [oracles.prox(penalty, row, t, within) for row, within in zip(v.numpy(), d.numpy(), strict=True)]
    )
    torch.testing.assert_close(penalty.prox(v, t, d), torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


@with_metric
def test_a_metric_of_many_scales(penalty: sl.Penalty) -> None:
    v, d = rows(30, 6), weights(30, 6) ** 4
    expected = np.stack(
        [oracles.prox(penalty, row, 0.3, within) for row, within in zip(v.numpy(), d.numpy(), strict=True)]
    )
    torch.testing.assert_close(penalty.prox(v, 0.3, d), torch.from_numpy(expected), rtol=1e-7, atol=1e-8)


@with_metric
def test_a_constant_metric_only_rescales_the_strength(penalty: sl.Penalty) -> None:
    v = rows(10, 6)
    torch.testing.assert_close(
        penalty.prox(v, 0.8, torch.full_like(v, 2.0)), penalty.prox(v, 0.4), rtol=1e-11, atol=1e-11
    )


@every
@pytest.mark.parametrize("n", [2, 6])
@pytest.mark.parametrize("t", [0.05, 0.7, 3.0])
def test_no_point_of_a_global_search_is_better(penalty: sl.Penalty, n: int, t: float) -> None:
    if isinstance(penalty, sl.Grouped) and n % penalty.size:
        n = penalty.size * 2
    rng = np.random.default_rng(0)
    for row, within in zip(rows(2, n).numpy(), weights(2, n).numpy(), strict=True):
        for d in (np.ones(n), within) if penalty.has_metric else (np.ones(n),):
            metric = torch.from_numpy(d) if penalty.has_metric else None
            found = penalty.prox(torch.from_numpy(row), t, metric).numpy()
            best = oracles.global_best(penalty, row, t, d, rng)
            assert oracles.objective(penalty, found, row, t, d) <= best + 1e-9 * (1 + abs(best))


@every
def test_value_equals_its_naive_twin(penalty: sl.Penalty) -> None:
    v = torch.cat(
        [rows(20, 6), rows(20, 6).abs(), penalty.prox(rows(20, 6), 0.5), torch.zeros(1, 6, dtype=torch.float64)]
    )
    expected = torch.tensor([oracles.value(penalty, row) for row in v.numpy()], dtype=torch.float64)
    torch.testing.assert_close(penalty.value(v), expected)


@pytest.mark.parametrize("penalty", [p for p in PENALTIES if p.convex], ids=repr)
def test_convex_proxes_are_firmly_nonexpansive(penalty: sl.Penalty) -> None:
    a, b = rows(200, 6, seed=3), rows(200, 6, seed=4)
    p, q = penalty.prox(a, 0.6), penalty.prox(b, 0.6)
    assert (((p - q) ** 2).sum(-1) <= ((p - q) * (a - b)).sum(-1) + 1e-12).all()


@finite
@pytest.mark.parametrize("as_tensor", [False, True])
def test_t_zero_is_bitwise_the_identity_with_derivative_one(penalty: sl.Penalty, as_tensor: bool) -> None:
    v = torch.cat([rows(5, 6, torch.float32), torch.zeros(2, 6)]).requires_grad_()
    if type(penalty).__name__ == "NonnegativeL1":
        v = v.detach().abs().requires_grad_()
    t = torch.zeros(()) if as_tensor else 0.0
    out = penalty.prox(v, t)
    assert torch.equal(out, v)
    (grad,) = torch.autograd.grad(out.sum(), v, create_graph=True)
    positive = torch.ones_like(v) if type(penalty).__name__ != "NonnegativeL1" else (v > 0).float()
    torch.testing.assert_close(grad, positive)


@finite
@pytest.mark.parametrize("t", [0.0, 0.5])
@pytest.mark.parametrize("in_metric", [False, True])
def test_zero_rows_stay_zero_without_nan_in_two_derivatives(penalty: sl.Penalty, t: float, in_metric: bool) -> None:
    if in_metric and not penalty.has_metric:
        return
    v = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    strength = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    out = penalty.prox(v, strength, torch.full((6,), 2.0, dtype=torch.float64) if in_metric else None)
    assert (out == 0).all()
    grads = torch.autograd.grad(out.sum() + (out * out).sum(), (v, strength), create_graph=True, materialize_grads=True)
    assert all(g.isfinite().all() for g in grads)
    again = sum(g.sum() for g in grads)
    if again.requires_grad:
        second = torch.autograd.grad(again, (v, strength), materialize_grads=True)
        assert all(g.isfinite().all() for g in second)


@every
def test_value_has_a_finite_gradient_wherever_it_is_finite(penalty: sl.Penalty) -> None:
    v = torch.cat([torch.zeros(2, 6), rows(5, 6, torch.float32), penalty.prox(rows(5, 6, torch.float32), 0.5)])
    v = v.requires_grad_()
    value = penalty.value(v)
    (grad,) = torch.autograd.grad(value[value.isfinite()].sum(), v)
    assert grad.isfinite().all()


@pytest.mark.parametrize("penalty", [p for p in PENALTIES if has_lam_max(p)], ids=repr)
@pytest.mark.parametrize("step", [1.0, 0.137])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lam_max_is_the_least_strength_that_gives_zero(penalty: sl.Penalty, step: float, dtype: torch.dtype) -> None:
    c = rows(300, 6, dtype)
    c = c.abs() if type(penalty).__name__ == "NonnegativeL1" else c
    lam = penalty.lam_max(c, step).unsqueeze(-1)
    assert (penalty.prox(step * c, step * lam) == 0).all()
    assert (penalty.prox(step * c, step * lam * (1 - 1e-4)) != 0).any(-1).all()
    assert penalty.lam_max(torch.zeros(2, 6, dtype=dtype), step).eq(0).all()


@pytest.mark.parametrize("penalty", [p for p in PENALTIES if not has_lam_max(p)], ids=repr)
def test_no_lam_max_says_so(penalty: sl.Penalty) -> None:
    with pytest.raises(ValueError, match=r"has no finite lam_max.*Constant\(\).*define _lam_max"):
        penalty.lam_max(torch.ones(3))


@every
def test_strengths_broadcast_and_leading_axes_are_batch(penalty: sl.Penalty) -> None:
    v = rows(6, 6).view(2, 3, 6)
    t = torch.rand(2, 3, 1, dtype=torch.float64)
    each = torch.stack([torch.stack([penalty.prox(v[i, j], t[i, j]) for j in range(3)]) for i in range(2)])
    torch.testing.assert_close(penalty.prox(v, t), each)
    torch.testing.assert_close(penalty.prox(v, t[0, 0, 0]), penalty.prox(v, float(t[0, 0, 0])))


@every
def test_inputs_are_not_mutated_and_strides_do_not_matter(penalty: sl.Penalty) -> None:
    v = rows(6, 8)
    strided = v.T.contiguous().T[:, ::1]
    before, t = strided.clone(), torch.tensor(0.4, dtype=torch.float64)
    v6 = strided[:, 1:7]
    out = penalty.prox(v6, t)
    torch.testing.assert_close(out, penalty.prox(v6.contiguous(), t), rtol=0, atol=1e-15)
    assert torch.equal(strided, before)
    assert t == 0.4
    assert out.data_ptr() != v6.data_ptr()


@every
def test_empty_batches_and_single_entries(penalty: sl.Penalty) -> None:
    assert penalty.prox(torch.zeros(0, 6), 0.5).shape == (0, 6)
    assert penalty.value(torch.zeros(0, 6)).shape == (0,)
    if not isinstance(penalty, sl.Grouped):
        one = torch.tensor([[1.7]], dtype=torch.float64)
        expected = torch.from_numpy(oracles.prox(penalty, one[0].numpy(), 0.5))
        torch.testing.assert_close(penalty.prox(one, 0.5)[0], expected)


@every
def test_nan_stays_in_its_row(penalty: sl.Penalty) -> None:
    v = rows(3, 6)
    v[1, 2] = torch.nan
    out = penalty.prox(v, 0.4)
    assert out[1, 2].isnan()
    assert out[1].isnan().all() or penalty.separable or isinstance(penalty, sl.Grouped)
    clean = penalty.prox(v[[0, 2]], 0.4)
    torch.testing.assert_close(out[[0, 2]], clean)
    if penalty.has_metric:
        out = penalty.prox(v, 0.4, torch.ones(6, dtype=torch.float64))
        assert out[1, 2].isnan()
        torch.testing.assert_close(out[[0, 2]], clean)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_lose_one_rounding(penalty: sl.Penalty, dtype: torch.dtype) -> None:
    v = rows(50, 6, dtype)
    t = 0.40625  # a number that both types hold
    out = penalty.prox(v, t)
    assert out.dtype == dtype
    expected = np.stack([oracles.prox(penalty, row, t) for row in v.double().numpy()])
    error = (out.double() - torch.from_numpy(expected)).abs()
    assert (error <= 2 * torch.finfo(dtype).eps * v.double().abs().amax(-1, keepdim=True)).all()
    assert penalty.prox(v, torch.full((50, 1), t)).dtype == dtype


@finite
@pytest.mark.parametrize("scale", [1e-30, 1e18])
def test_scales_at_the_ends_of_float32(penalty: sl.Penalty, scale: float) -> None:
    if type(penalty).__name__ in ("Exclusive", "GroupExclusive") or isinstance(penalty, sl.Grouped):
        return  # the square of the penalty itself leaves float32
    v = rows(10, 6, torch.float32) * scale
    t = 0.3 * scale**2 if type(penalty).__name__ in ("L0", "GroupL0") else 0.3 * scale
    if not 1e-38 < t < 1e38 or type(penalty).__name__ in ("ElasticNet", "Ridge"):
        return
    expected = np.stack([oracles.prox(penalty, row, t) for row in v.double().numpy()])
    torch.testing.assert_close(
        penalty.prox(v, t).double() / scale, torch.from_numpy(expected) / scale, rtol=1e-5, atol=1e-5
    )


def test_group_norms_do_not_overflow() -> None:
    v = torch.tensor([[1e20, 1e20], [1e-30, 1e-30]])
    torch.testing.assert_close(sl.GroupL2().value(v), v[:, 0] * 2**0.5)
    assert sl.GroupL2().prox(v, 1.0)[0].isfinite().all()
    assert sl.GroupL2().prox(torch.full((1, 40960), 600.0, dtype=torch.float16), 1.0).isfinite().all()


def test_exclusive_never_zeroes_a_whole_row() -> None:
    v = rows(20, 6, torch.float32)
    for t in (1.0, 1e3, 1e8):
        assert (sl.Exclusive().prox(v, t) != 0).any(-1).all()


def test_the_exact_exclusive_step_beats_the_linearised_one() -> None:
    v, t = torch.tensor([1.0, 0.8, -0.3], dtype=torch.float64), 0.3
    exact = sl.Exclusive().prox(v, t)
    torch.testing.assert_close(exact, torch.tensor([0.6625, 0.4625, 0.0], dtype=torch.float64))
    linearised = v.sign() * (v.abs() - t * v.abs().sum()).clamp_min(0)

    def objective(x: Tensor) -> float:
        return float(0.5 * (x - v).square().sum() + t * sl.Exclusive().value(x))

    assert round(objective(exact), 4) == 0.3488
    assert round(objective(linearised), 4) == 0.4856


def test_ties_go_to_zero() -> None:
    t = torch.tensor(2.0, dtype=torch.float64)
    assert sl.L0().prox(torch.tensor([2.0, 2.0000001], dtype=torch.float64), t).tolist() == [0.0, 2.0000001]
    assert sl.GroupL0().prox(torch.tensor([[0.0, 2.0]], dtype=torch.float64), t).tolist() == [[0.0, 0.0]]


def test_infinite_strength_gives_zero_with_finite_gradients() -> None:
    for penalty in (sl.L1(), sl.GroupL2(), sl.L0(), sl.GroupL0(), sl.LInf()):
        v = rows(3, 4, torch.float32).requires_grad_()
        out = penalty.prox(v, torch.tensor(torch.inf))
        assert (out == 0).all()
        assert torch.autograd.grad(out.sum(), v)[0].isfinite().all()


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("t", [torch.inf, torch.tensor(torch.inf)])
def test_infinite_strength_of_an_elastic_net(ratio: float, t: float | Tensor) -> None:
    assert not sl.ElasticNet(ratio).prox(rows(3, 6), t).any()
    assert not sl.ElasticNet(ratio).prox(rows(3, 6), t, weights(3, 6)).any()


@pytest.mark.parametrize(
    "penalty", [sl.GroupL2(sqrt_size=True), sl.SparseGroup(sqrt_size=True), sl.GroupL2()], ids=repr
)
def test_a_strength_beyond_float32_is_infinite(penalty: sl.Penalty) -> None:
    for t in (3e38, 1e300):
        assert not penalty.prox(torch.randn(3, 6), t).any()


@every
def test_rows_without_entries(penalty: sl.Penalty) -> None:
    v = torch.zeros(3, 0)
    assert penalty.prox(v, 0.5).shape == (3, 0)
    assert penalty.value(v).shape == (3,)
    if has_lam_max(penalty):
        assert penalty.lam_max(v).tolist() == [0.0] * 3


@every
def test_flags_imply_what_they_say(penalty: sl.Penalty) -> None:
    v = rows(4, 6)
    if penalty.separable:
        alone = torch.cat([penalty.prox(v[:, i : i + 2], 0.3) for i in (0, 2, 4)], -1)
        torch.testing.assert_close(penalty.prox(v, 0.3), alone)
        torch.testing.assert_close(penalty.prox(v, torch.full_like(v, 0.3)), alone)
    if penalty.indicator:
        assert torch.equal(penalty.prox(v, 0.0), penalty.prox(v, 7.0))
        assert (penalty.value(penalty.prox(v, 1.0)) == 0).all()
        assert (penalty.value(v * 100) == torch.inf).any()


def test_penalties_are_values() -> None:
    assert sl.GroupL2() == sl.GroupL2(sqrt_size=False) != sl.GroupL2(sqrt_size=True)
    assert len({sl.L1(), sl.L1(), sl.Grouped(sl.L1(), 2)}) == 2
    with pytest.raises(AttributeError):
        sl.ElasticNet().ratio = 0.1  # type: ignore[misc]


def test_strength_and_metric_carry_gradients_of_the_optimum() -> None:
    """At the minimiser d/dt of the minimal objective is R(x): the envelope theorem, an oracle for the t-gradient."""
    for penalty in (sl.L1(), sl.GroupL2(), sl.SparseGroup(), sl.Exclusive(), sl.LInf(), sl.ElasticNet()):
        v, d = rows(5, 6), weights(5, 6)
        t = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        x = penalty.prox(v, t, d)
        least = (0.5 * (d * (x - v).square()).sum(-1) + t * penalty.value(x)).sum()
        torch.testing.assert_close(
            torch.autograd.grad(least, t)[0], penalty.value(x).sum().detach(), rtol=1e-8, atol=1e-8
        )


class Unmetric(sl.Penalty):
    def value(self, v: Tensor) -> Tensor:
        return v.sum(-1)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        return v - t


V = torch.ones(2, 4)
WRONG = [
    (lambda: sl.L1().prox(V.long(), 0.1), TypeError, r"v must be floating point, got torch.int64; use v.float\(\)"),
    (lambda: sl.L1().prox([1.0], 0.1), TypeError, "v must be a torch.Tensor, got list"),
    (lambda: sl.L1().prox(V, -0.1), ValueError, r"t must lie in \[0, inf\], got -0.1"),
    (lambda: sl.L1().prox(V, "a"), TypeError, "t must be a number, got str"),
    (
        lambda: sl.L1().prox(V, torch.ones(3)),
        ValueError,
        r"t of shape \(3,\) does not broadcast to v of shape \(2, 4\)",
    ),
    (lambda: sl.GroupL2().prox(V, torch.ones(4)), ValueError, r"t must broadcast to \(\.\.\., 1\).*unsqueeze"),
    (lambda: sl.GroupL2().prox(torch.tensor(1.0), 0.1), ValueError, "unsqueeze a 0-d tensor"),
    (lambda: sl.L1().prox(V, 0.1, torch.ones(3)), ValueError, "metric of shape"),
    (lambda: sl.L1().prox(V, 0.1, torch.ones(4).long()), TypeError, "metric must be floating point"),
    (lambda: Unmetric().prox(V, 0.1, V), ValueError, "Unmetric has no prox in a metric; those that have: .*GroupL2"),
    (lambda: sl.L1().lam_max(V.long()), TypeError, "c must be floating point"),
    (lambda: sl.ElasticNet(ratio=1.5), ValueError, r"ratio must lie in \[0, 1\], got 1.5"),
    (lambda: sl.SparseGroup(ratio=-1), ValueError, r"ratio must lie in \[0, 1\], got -1"),
    (lambda: sl.ElasticNet(ratio="x"), TypeError, "ratio must be a number, got str"),
    (lambda: sl.Simplex(radius=0.0), ValueError, r"radius must lie in \(0, inf\], got 0.0"),
    (lambda: sl.L1Ball(radius=-2), ValueError, r"radius must lie in \(0, inf\], got -2"),
    (lambda: sl.Box(2.0, 1.0), ValueError, "low must be at most high"),
    (lambda: sl.Grouped(sl.GroupL2, 2), TypeError, "penalty must be a Penalty such as GroupL2"),
    (lambda: sl.Grouped(sl.GroupL2(), 0), ValueError, "size must be at least 1, got 0"),
    (lambda: sl.Grouped(sl.GroupL2(), 2.0), TypeError, "size must be an int, got float"),
    (
        lambda: sl.Grouped(sl.GroupL2(), 3).prox(V, 0.1),
        ValueError,
        "size 3 does not divide the last axis.*divisor of 4",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_bad_input_says_what_was_expected_and_the_remedy(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
