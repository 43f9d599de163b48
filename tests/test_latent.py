"""The latent group lasso against cvxpy, Dykstra's projections and the definition of its groups."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparselayers as sl

GRAPHS = {
    "path": ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5)),
    "triples": ((0, 1, 2), (2, 3), (3, 4, 5), (0, 5)),
    "twice the same": ((0, 1), (0, 1), (1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5)),
    "complete": tuple((i, j) for i in range(6) for j in range(i)),
    "apart": ((0, 1), (2, 3), (4, 5)),
    "alone": ((0,), (1,), (2,), (3,), (4,), (5,)),
}
every_graph = pytest.mark.parametrize("groups", GRAPHS.values(), ids=GRAPHS.keys())


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dykstra(v: np.ndarray, groups: tuple, tau: np.ndarray) -> np.ndarray:
    """v minus its projection on the cylinders, by projecting on each in turn."""
    u, kept = v.copy(), [np.zeros_like(v) for _ in groups]
    for _ in range(5000):
        before = u.copy()
        for i, group in enumerate(map(list, groups)):
            y = u + kept[i]
            u = y.copy()
            u[group] *= min(1, tau[i] / max(np.linalg.norm(y[group]), 1e-300))
            kept[i] = y - u
        if np.abs(u - before).max() < 1e-15:
            break
    return v - u


@every_graph
@pytest.mark.parametrize("t", [0.3, 1.0, 2.0])
def test_prox_against_dykstra(groups: tuple, t: float) -> None:
    weights = tuple(1 + 0.1 * i for i in range(len(groups)))
    v = draw(10, 6)
    found = sl.LatentGroupL2(groups, weights).prox(v, t)
    expected = np.stack([dykstra(row, groups, t * np.array(weights)) for row in v.numpy()])
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("name", ["path", "triples", "complete"])
def test_prox_and_value_against_cvxpy(name: str) -> None:
    groups, v = GRAPHS[name], draw(3, 6, seed=2)
    penalty = sl.LatentGroupL2(groups)
    parts = [cp.Variable(len(group)) for group in groups]
    spread = [np.eye(6)[:, list(group)] for group in groups]
    total = sum(E @ z for E, z in zip(spread, parts, strict=True))
    norms = sum(cp.norm(z) for z in parts)
    given = cp.Parameter(6)
    norm = cp.Problem(cp.Minimize(norms), [total == given])
    for row, got in zip(v.numpy(), penalty.value(v), strict=True):
        given.value = row
        assert float(got) == pytest.approx(norm.solve(solver="CLARABEL"), rel=1e-7)
    prox = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(total - given) + 0.4 * norms))
    for row, got in zip(v.numpy(), penalty.prox(v, 0.4), strict=True):
        given.value = row
        prox.solve(solver="CLARABEL")
        np.testing.assert_allclose(got, total.value, atol=1e-4)


@every_graph
def test_the_certificate_closes_for_every_strength(groups: tuple) -> None:
    penalty, v = sl.LatentGroupL2(groups), draw(200, 6, seed=1)
    for t in (1e-8, 1e-4, 1e-2, 0.1, 0.5, 1.0, 2.0, 5.0):
        assert penalty.gap(v, t).max() < 1e-7
    assert sl.LatentGroupL2(GRAPHS["triples"], max_iter=1).gap(v, 0.5).max() > 1e-7


def test_the_value_is_that_of_the_prox_at_a_small_strength() -> None:
    """(‖v‖² - ‖v - t x‖²) / 2t -> R: the slope of the Moreau envelope in t is -R at 0."""
    for groups in GRAPHS.values():
        penalty, v, t = sl.LatentGroupL2(groups), draw(50, 6, seed=3), 1e-6
        x = penalty.prox(v, t)
        expected = ((v - x) * v).sum(-1) / t
        torch.testing.assert_close(penalty.value(v), expected, rtol=1e-5, atol=0)


def test_apart_it_is_the_group_norm() -> None:
    v, apart = draw(20, 6), sl.LatentGroupL2(GRAPHS["apart"])
    blocks = sl.Grouped(sl.GroupL2(), size=2)
    for t in (0.0, 0.3, 1.0):
        torch.testing.assert_close(apart.prox(v, t), blocks.prox(v, t))
    torch.testing.assert_close(apart.value(v), blocks.value(v))
    torch.testing.assert_close(apart.lam_max(v), blocks.lam_max(v))
    alone = sl.LatentGroupL2(GRAPHS["alone"])
    torch.testing.assert_close(alone.prox(v, 0.3), sl.L1().prox(v, 0.3))
    whole = sl.LatentGroupL2(((0,),), size=6)
    torch.testing.assert_close(whole.prox(v, 0.3), sl.GroupL2().prox(v, 0.3))


@every_graph
def test_survivors_are_unions_of_groups_and_lam_max_is_sharp(groups: tuple) -> None:
    penalty, v = sl.LatentGroupL2(groups, size=2), draw(40, 12, seed=4)
    x = penalty.prox(v, 2.5).unflatten(-1, (6, 2))
    alive = (x != 0).any(-1)
    assert 0 < alive.double().mean() < 1
    for row in alive:
        held = {k for group in groups for k in group if all(row[j] for j in group)}
        assert held == set(row.nonzero().flatten().tolist())
    for dtype in (torch.float64, torch.float32):
        lam = penalty.lam_max(v.to(dtype))
        assert not penalty.prox(v.to(dtype), lam.unsqueeze(-1)).any()
        assert penalty.prox(v.to(dtype), 0.999 * lam.unsqueeze(-1)).any(-1).all()


def test_conventions() -> None:
    penalty = sl.LatentGroupL2(GRAPHS["triples"])
    v = draw(4, 6)
    assert torch.equal(penalty.prox(v, 0.0), v)
    assert torch.equal(penalty.prox(v, torch.tensor([[0.0], [1.0], [0.0], [1.0]]))[0], v[0])
    assert not penalty.prox(v, torch.inf).any()
    assert penalty.prox(v[:0], 1.0).shape == (0, 6)
    assert penalty.value(v[:0]).shape == (0,)
    zero = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    (penalty.prox(zero, 1.0).sum() + penalty.value(zero).sum()).backward()
    assert (zero.grad == 0).all()
    for bad in (torch.nan, torch.inf):
        spoilt = v.clone()
        spoilt[1, 2] = bad
        x = penalty.prox(spoilt, 0.5)
        assert x[1].isnan().all()
        assert torch.equal(x[[0, 2, 3]], penalty.prox(v, 0.5)[[0, 2, 3]])
        assert penalty.value(spoilt).isnan().tolist() == [False, True, False, False]
        assert penalty.lam_max(spoilt).isnan().tolist() == penalty.gap(spoilt, 1.0).isnan().tolist()
    huge = penalty.prox(v.float() * 1e25, 1e25)
    torch.testing.assert_close(huge / 1e25, penalty.prox(v.float(), 1.0), rtol=1e-5, atol=1e-6)
    half = penalty.prox(v.bfloat16(), 0.5)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), penalty.prox(v.bfloat16().float(), 0.5), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(penalty.prox(v.t().contiguous().t(), 0.5), penalty.prox(v, 0.5))
    u = draw(4, 6, seed=9)
    nearer = (penalty.prox(u, 0.5) - penalty.prox(v, 0.5)).square().sum(-1)
    assert (nearer <= ((penalty.prox(u, 0.5) - penalty.prox(v, 0.5)) * (u - v)).sum(-1) + 1e-12).all()


def test_a_graph_of_neurons_on_the_weights_of_a_layer() -> None:
    """Edges join neurons: those that live, live with a neighbour."""
    layer = nn.Linear(3, 5).double()
    layer.weight.data = draw(5, 3, seed=5)
    layer.weight.data[[0, 3]] *= 0.05
    edges = ((0, 1), (1, 2), (2, 3), (3, 4))
    penalty = sl.LatentGroupL2(edges, size=3)
    expected = penalty.prox(layer.weight.detach().flatten(), 0.5).view(5, 3)
    sl.Regularizer(layer, penalty, lam=0.5, groups="tensor").step(lr=1.0)
    torch.testing.assert_close(layer.weight.detach(), expected)
    code = sl.functional.ista(draw(2, 4), draw(4, 15), 0.3, depth=3, penalty=penalty)
    assert code.shape == (2, 15)


def make(*args: object, **options: object) -> Callable:
    return lambda: sl.LatentGroupL2(*args, **options)


WRONG = [
    (make([(0, 1)]), TypeError, r"groups must be a tuple of tuples of indices .*got \[\(0, 1\)\]"),
    (make(((0, 1.0),)), TypeError, "groups must be a tuple of tuples of indices"),
    (make(()), ValueError, r"groups must hold at least one index >= 0 each, got \(\)"),
    (make(((0,), ())), ValueError, "groups must hold at least one index"),
    (make(((0, -1),)), ValueError, "groups must hold at least one index >= 0"),
    (make(((0, 3), (1, 3))), ValueError, r"every index up to 3; none holds \[2\]"),
    (make(((0, 1),), (1.0, 2.0)), ValueError, r"weights must be a tuple of one number a group, 1, got \(1.0, 2.0\)"),
    (make(((0, 1),), (0.0,)), ValueError, r"weights must lie in \(0, inf\], got 0.0"),
    (make(((0, 1),), size=0), ValueError, "size must be at least 1"),
    (make(((0, 1),), max_iter=0), ValueError, "max_iter must be at least 1"),
    (
        lambda: sl.LatentGroupL2(((0, 1),), size=3).prox(torch.ones(2, 4), 1.0),
        ValueError,
        r"groups of 2 blocks of size 3 take a last axis of 6, got shape \(2, 4\)",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_bad_input(call: Callable, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
