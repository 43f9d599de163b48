"""Nonconvex penalties where they jump, the Hoyer squares, and the published CGES step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import sparselayers as sl
import sparselayers.functional as F

from . import oracles

ENTRYWISE = [
    sl.LHalf(),
    sl.TransformedL1(),
    sl.TransformedL1(a=0.1),
    sl.TransformedL1(a=50.0),
    sl.LogSum(),
    sl.LogSum(eps=0.05),
    sl.LogSum(eps=20.0),
    sl.MCP(),
    sl.MCP(gamma=0.5),
    sl.MCP(gamma=1.01),
    sl.SCAD(),
    sl.SCAD(a=1.3),
    sl.SCAD(a=2.0),
]
ROWWISE = [sl.GroupMCP(), sl.L1MinusL2(), sl.L1MinusL2(alpha=0.3), sl.SparseGroupL0(), sl.GroupExclusive()]
EXTREMES = [1e-20, 1.0, 1e20]
entrywise = pytest.mark.parametrize("penalty", ENTRYWISE, ids=repr)
every = pytest.mark.parametrize("penalty", ENTRYWISE + ROWWISE, ids=repr)


def switch_points(penalty: sl.Penalty) -> list[float]:
    """Strengths at and beside those where the prox begins to jump."""
    match type(penalty).__name__:
        case "MCP":
            at = [penalty.gamma]
        case "SCAD":
            at = [penalty.a - 1, penalty.a + 1]
        case "TransformedL1":
            at = [penalty.a**2 / (2 * (penalty.a + 1))]
        case "LogSum":
            at = [penalty.eps**2]
        case _:
            at = [1.0]
    return [s * t for t in at for s in (0.2, 0.999, 1.0, 1.001, 3.0, 40.0)]


@entrywise
def test_global_search_at_and_past_the_switch_points(penalty: sl.Penalty) -> None:
    cost, _, bends = oracles.entry_cost(penalty)
    for t in switch_points(penalty):
        edge = float(penalty.lam_max(torch.tensor([1.0], dtype=torch.float64)) * 0 + 1)
        top = 3 * max(edge, t, math.sqrt(t), *bends, 1.0)
        v = torch.linspace(0, top, 241, dtype=torch.float64)
        x = penalty.prox(v, t)
        assert (x.diff() >= -1e-9).all()  # a prox of one variable is monotone, wherever it jumps
        grid = np.linspace(0, top, 4001)
        costs = t * cost(grid)
        best = ((grid - v.numpy()[:, None]) ** 2 / 2 + costs).min(-1)
        got = (x - v).numpy() ** 2 / 2 + t * cost(x.numpy())
        assert (got <= best + 1e-12 * (1 + best)).all()
        torch.testing.assert_close(penalty.prox(-v, t), -x)


@entrywise
def test_the_jump_is_where_both_sides_cost_the_same(penalty: sl.Penalty) -> None:
    """lam_max and the threshold of the prox are one curve, whichever of the two is asked."""
    sizes = torch.logspace(-2, 2, 60, dtype=torch.float64).unsqueeze(-1)
    lam = penalty.lam_max(sizes).unsqueeze(-1)
    assert (penalty.prox(sizes, lam) == 0).all()
    assert (penalty.prox(sizes, lam * (1 - 1e-6)) != 0).all()


def test_ties_go_to_zero() -> None:
    def at(*v: float) -> Tensor:
        return torch.tensor(v, dtype=torch.float64)

    assert sl.MCP(gamma=1.0).prox(at(2.0, 2.0001), 4.0).tolist() == [0.0, 2.0001]
    assert sl.MCP(gamma=3.0).prox(at(3.0, 3.0001), 3.0).tolist() == [0.0, 3.0001]
    assert sl.SCAD(a=3.0).prox(at(4.0, 4.0001), 4.0).tolist() == [0.0, 4.0001]
    assert sl.LHalf().prox(at(6.0, 6.0001), 8.0).gt(0).tolist() == [False, True]
    assert sl.TransformedL1(a=1.0).prox(at(3.5, 3.5001), 4.0).gt(0).tolist() == [False, True]
    assert sl.GroupMCP(gamma=1.0).prox(at(0.0, 2.0), 4.0).tolist() == [0.0, 0.0]
    assert sl.L1MinusL2(alpha=0.5).prox(at(1.0, 0.5), 2.0).tolist() == [0.0, 0.0]
    assert sl.L1MinusL2().prox(at(1.0, 1.0), 1.0).tolist() == [1.0, 0.0]  # one entry, the first
    assert sl.SparseGroupL0(ratio=1.0).prox(at(2.0, 2.5), 2.0).tolist() == [0.0, 2.5]


@pytest.mark.parametrize(("ratio", "sqrt_size"), [(0.5, False), (0.1, True), (0.9, False)])
def test_sparse_group_l0_beats_hard_thresholding_then_shrinking(ratio: float, sqrt_size: bool) -> None:
    penalty = sl.SparseGroupL0(ratio, sqrt_size)
    v = 2 * torch.randn(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = (1 - ratio) * (6**0.5 if sqrt_size else 1)
    naive = F.group_soft_threshold(F.hard_threshold(v, math.sqrt(2 * ratio)), weight)
    exact = penalty.prox(v, 1.0)

    def cost(x: Tensor) -> Tensor:
        return (x - v).square().sum(-1) / 2 + penalty.value(x)

    assert (cost(exact) <= cost(naive) + 1e-12).all()
    assert (cost(exact) < cost(naive) - 1e-3).any()


@pytest.mark.parametrize("penalty", [sl.SparseGroupL0(), sl.SparseGroupL0(0.1, sqrt_size=True), sl.LHalf()], ids=repr)
@pytest.mark.parametrize("scale", [1e-12, 1e3, 1e12])
def test_lam_max_is_the_end_at_every_scale(penalty: sl.Penalty, scale: float) -> None:
    c = scale * torch.randn(500, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for step in (1e-3, 1.0, 1e3):
        lam = penalty.lam_max(c, step).unsqueeze(-1)
        assert not penalty.prox(step * c, step * lam).any()
        assert penalty.prox(step * c, step * lam * 0.999).any(-1).all()


def test_sparse_group_l0_keeps_small_entries_that_pay() -> None:
    v = torch.tensor([[1.0, 1e-5, 1e-7]])
    assert (sl.SparseGroupL0().prox(v, 1e-12) != 0).tolist() == [[True, True, False]]


@every
@pytest.mark.parametrize("scale", EXTREMES)
@pytest.mark.parametrize("t", [*EXTREMES, 3e38])
def test_extremes_of_float32_stay_finite_and_right(penalty: sl.Penalty, scale: float, t: float) -> None:
    v = (scale * torch.randn(20, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    strength = torch.tensor(t, requires_grad=True)
    x = penalty.prox(v, strength)
    grads = torch.autograd.grad(x.sum(), (v, strength), materialize_grads=True)
    assert x.isfinite().all()
    assert all(g.isfinite().all() for g in grads)
    wide = penalty.prox(v.detach().double(), strength.detach().double())
    torch.testing.assert_close(x.double() / scale, wide / scale, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "penalty", [*ENTRYWISE, sl.L1MinusL2(alpha=0.3), sl.GroupMCP(), sl.SparseGroupL0(), sl.GroupExclusive(), sl.Exclusive()],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("t", [torch.inf, torch.tensor(torch.inf), torch.tensor([[torch.inf], [0.1]])])
def test_infinite_strength_gives_zero_with_finite_gradients(penalty: sl.Penalty, t: float | Tensor) -> None:
    v = torch.tensor([[1.0, -2.0], [3.0, 40.0]]).requires_grad_()
    x = penalty.prox(v, t)
    assert not x[0].any()
    assert x[1].any() == (isinstance(t, Tensor) and t.ndim > 0)
    assert torch.autograd.grad(x.sum(), v)[0].isfinite().all()


def test_infinite_strength_leaves_one_entry_where_one_costs_nothing() -> None:
    assert sl.L1MinusL2(alpha=1.0).prox(torch.tensor([1.0, -2.0]), torch.inf).tolist() == [0.0, -2.0]


@pytest.mark.parametrize("penalty", [sl.L0(), sl.GroupL0(), sl.LHalf(), sl.MCP(), sl.TransformedL1()], ids=repr)
def test_lam_max_of_sixteen_bits_keeps_its_range(penalty: sl.Penalty) -> None:
    c = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)).half()
    for step in (1.0, 1e-3, 1e-4):
        lam = penalty.lam_max(c, step).unsqueeze(-1)
        assert not penalty.prox(step * c, step * lam).any()
    assert penalty.lam_max(300 * c).isfinite().all()


def test_sixteen_bits_are_computed_in_float32() -> None:
    v = torch.tensor([[300.0, 400.0]], dtype=torch.float16)
    assert sl.GroupMCP(gamma=1000.0).prox(v, 250.0).tolist() == [[200.0, 266.75]]
    assert sl.HoyerSquare().value(v).isfinite().all()
    assert sl.HoyerSquare().value(v).dtype == torch.float16


@pytest.mark.parametrize("penalty", [sl.MCP(), sl.SCAD(), sl.LHalf(), sl.LogSum(), sl.TransformedL1(), sl.SparseGroupL0()], ids=repr)  # fmt: skip
def test_layers_take_them_at_once(penalty: sl.Penalty) -> None:
    layer = sl.ISTA(10, 20, depth=8, lam=0.3, penalty=penalty)
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    z = layer(x)
    assert 0 < (z == 0).float().mean() < 1
    z.square().sum().backward()
    assert layer.dictionary.grad.isfinite().all()
    linear = torch.nn.Linear(10, 4)
    sl.Regularizer(linear, penalty, lam=1e3).step(lr=1.0)
    assert not linear.weight.any()


def test_hoyer_squares_are_scale_free_counts() -> None:
    v = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, -1.0, 1.0]], requires_grad=True)
    assert sl.HoyerSquare().value(v).tolist() == [0.0, 1.0, 3.0]
    torch.testing.assert_close(sl.HoyerSquare().value(1e20 * v), sl.HoyerSquare().value(v))
    grad = torch.autograd.grad(sl.HoyerSquare().value(v).sum(), v)[0]
    assert grad.isfinite().all()
    assert not grad[0].any()
    rows = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = rows.norm(dim=-1).sum(-1).square() / rows.square().sum((-2, -1))
    torch.testing.assert_close(sl.GroupHoyerSquare().value(rows), expected)
    assert sl.GroupHoyerSquare().value(torch.zeros(2, 0, 4)).tolist() == [0.0, 0.0]


def test_cges_linearized_step_is_the_published_one() -> None:
    v = torch.randn(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, mu = 0.2, 0.3
    shrunk = v * (1 - t * (1 - mu) / v.norm(dim=-1, keepdim=True)).clamp_min(0)
    expected = shrunk.sign() * (shrunk.abs() - t * mu * shrunk.abs().sum(-1, keepdim=True)).clamp_min(0)
    torch.testing.assert_close(F.cges_linearized_step(v, t, mu), expected)
    torch.testing.assert_close(F.cges_linearized_step(v.T, t, mu, dim=0), expected.T)
    assert not F.cges_linearized_step(torch.zeros(2, 3), 0.5).any()
    assert torch.equal(F.cges_linearized_step(v, 0.0, mu), v)
    assert not F.cges_linearized_step(v, torch.inf, mu).any()
    exact = sl.GroupExclusive(mu)

    def cost(x: Tensor) -> Tensor:
        return (x - v).square().sum(-1) / 2 + t * exact.value(x)

    assert (cost(exact.prox(v, t)) <= cost(expected) + 1e-12).all()


WRONG = [
    (lambda: sl.MCP(gamma=0.0), ValueError, r"gamma must lie in \(0, inf\], got 0.0"),
    (lambda: sl.GroupMCP(gamma=-1), ValueError, r"gamma must lie in \(0, inf\], got -1"),
    (lambda: sl.SCAD(a=1.0), ValueError, r"a must lie in \(1, inf\], got 1.0"),
    (lambda: sl.TransformedL1(a=0), ValueError, r"a must lie in \(0, inf\], got 0"),
    (lambda: sl.LogSum(eps=0.0), ValueError, r"eps must lie in \(0, inf\], got 0.0"),
    (lambda: sl.L1MinusL2(alpha=1.5), ValueError, r"alpha must lie in \[0, 1\], got 1.5"),
    (lambda: sl.SparseGroupL0(ratio=2), ValueError, r"ratio must lie in \[0, 1\], got 2"),
    (lambda: sl.GroupExclusive(mu=-0.1), ValueError, r"mu must lie in \[0, 1\], got -0.1"),
    (lambda: sl.MCP(gamma="3"), TypeError, "gamma must be a number, got str"),
    (lambda: sl.L1MinusL2().prox(torch.ones(3), 0.1, torch.ones(3)), ValueError, "L1MinusL2 has no prox in a metric.*MCP"),
    (lambda: sl.GroupMCP().prox(torch.ones(3), 0.1, torch.ones(3)), ValueError, "GroupMCP has no prox in a metric"),
    (lambda: sl.L1MinusL2().lam_max(torch.ones(3)), ValueError, r"no finite lam_max.*Constant\(\)"),
    (lambda: sl.HoyerSquare().prox(torch.ones(3), 0.1), ValueError, r"HoyerSquare\(\) has no prox; add lam \* penalty.value"),
    (lambda: sl.HoyerSquare().lam_max(torch.ones(3)), ValueError, r"HoyerSquare\(\) has no finite lam_max.*add lam"),
    (lambda: sl.GroupHoyerSquare().value(torch.ones(3)), ValueError, r"v must be \(..., groups, size\), got shape \(3,\)"),
    (lambda: sl.ISTA(3, 4, depth=2, penalty=sl.HoyerSquare()), ValueError, "no finite lam_max"),
    (lambda: F.cges_linearized_step(torch.ones(3), 0.1, mu=2.0), ValueError, r"mu must lie in \[0, 1\], got 2.0"),
    (lambda: F.cges_linearized_step(torch.ones(3).long(), 0.1), TypeError, "v must be floating point"),
    (lambda: F.cges_mu(4, 4), ValueError, r"layer must lie in \[0, 3\] for n_layers=4, got 4"),
    (lambda: F.cges_mu(-1, 4), ValueError, "layer must be at least 0"),
    (lambda: F.cges_mu(0, 4, first=2.0), ValueError, r"first must lie in \[0, 1\]"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_bad_input_says_what_was_expected_and_the_remedy(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
