"""Fenchel-Young losses against their definition by optimisation, cross_entropy, entmax, closed forms and finite differences."""

from __future__ import annotations

import copy
import itertools

import entmax
import numpy as np
import pytest
import torch
import torch.nn.functional as tf
from scipy.optimize import minimize
from torch import Tensor

import sparselayers as sl
import sparselayers.functional as F

INF = torch.inf
NAMES = {"softmax": 1.0, "entmax15": 1.5, "sparsemax": 2.0}
ALPHAS = [1.0, 1.2, 1.5, 1.8, 2.0, 3.0, 4.0]
EVERY = pytest.mark.parametrize("mapping", [*NAMES, 1.2, 3.0])


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels(*shape: int, classes: int, seed: int = 1) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def loss(z: Tensor, y: Tensor, mapping, **options) -> Tensor:
    return F.fenchel_young_loss(z, y, mapping, **{"reduction": "none"} | options)


def apply(mapping, z: Tensor, dim: int = -1) -> Tensor:
    return F.entmax(z, NAMES.get(mapping, mapping), dim)


def one_hot(t: Tensor, like: Tensor, axis: int = -1) -> Tensor:
    return tf.one_hot(t, like.shape[axis]).to(like.dtype).movedim(-1, axis)


def half_square(p: Tensor, dim: int) -> Tensor:
    return p.square().sum(dim) / 2


def tsallis(p: np.ndarray, alpha: float) -> float:
    p = np.maximum(p, 1e-300)
    return float((p * np.log(p)).sum() if alpha == 1 else ((p**alpha).sum() - p.sum()) / (alpha * (alpha - 1)))


def best(z: np.ndarray, omega, total: float = 1.0, cap: float = 1.0) -> float:
    """max <p, z> - omega(p) over {0 <= p <= cap, sum p = total}, from several starts."""
    n, most = len(z), -np.inf
    for start in (np.full(n, total / n), np.linspace(0.2, 1.8, n) * total / n, np.linspace(1.8, 0.2, n) * total / n):
        done = minimize(
            lambda p: omega(p) - p @ z,
            np.clip(start, 0, cap),
            method="SLSQP",
            bounds=[(0, cap)] * n,
            constraints={"type": "eq", "fun": lambda p: p.sum() - total},
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        most = max(most, -done.fun)
    return most


@pytest.mark.parametrize("alpha", ALPHAS)
def test_is_its_definition_by_optimisation(alpha: float) -> None:
    z, y = randn(5, 4), torch.softmax(randn(5, 4, seed=2), -1)
    y[0] = one_hot(torch.tensor(2), y[0])
    expected = [
        best(row, lambda p: tsallis(p, alpha)) + tsallis(target, alpha) - target @ row
        for row, target in zip(z.numpy(), y.numpy(), strict=True)
    ]
    torch.testing.assert_close(loss(z, y, alpha), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def test_budget_and_radius_are_their_definitions_by_optimisation() -> None:
    z = randn(4, 5)
    half = lambda p: (p**2).sum() / 2  # noqa: E731
    y = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64).expand(4, 5)
    budget = loss(z, y, lambda z, dim: F.project_budget(z, 2, dim), omega=half_square)
    wide = loss(z, y, lambda z, dim: F.project_simplex(z, 2.0, dim), omega=half_square)
    for row, capped, free in zip(z.numpy(), budget, wide, strict=True):
        assert float(capped) == pytest.approx(best(row, half, 2.0) + 1 - row[[0, 2]].sum(), abs=1e-6)
        assert float(free) == pytest.approx(best(row, half, 2.0, cap=2.0) + 1 - row[[0, 2]].sum(), abs=1e-6)


def test_topk_simplex_is_the_best_over_all_supports() -> None:
    z, t = randn(6, 5), labels(6, classes=5)
    found = loss(z, t, lambda z, dim: F.topk_simplex(z, 2, dim), omega=half_square)
    for row, target, got in zip(z, t, found, strict=True):
        best_of = max(
            float(row[list(pair)] @ F.sparsemax(row[list(pair)]) - half_square(F.sparsemax(row[list(pair)]), -1))
            for pair in itertools.combinations(range(5), 2)
        )
        assert float(got) == pytest.approx(best_of + 0.5 - float(row[target]), abs=1e-12)


def test_two_classes_are_the_published_huber_form() -> None:
    margin = torch.linspace(-3, 3, 61, dtype=torch.float64)
    z = torch.stack([margin / 2, -margin / 2], -1)
    middle = (1 - margin).square() / 4
    expected = torch.where(margin >= 1, 0, torch.where(margin <= -1, -margin, middle))
    torch.testing.assert_close(F.sparsemax_loss(z, torch.zeros(61, dtype=torch.long), reduction="none"), expected)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (2, 3, 2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_on_classes_is_cross_entropy(shape: tuple[int, ...], reduction: str, weighted: bool) -> None:
    z, t = randn(*shape[:1], 5, *shape[1:], scale=3), labels(*shape, classes=5)
    if shape:
        t[0] = -100
    options = {"reduction": reduction, "weight": torch.arange(1.0, 6.0).double() if weighted else None}
    torch.testing.assert_close(loss(z, t, "softmax", **options), tf.cross_entropy(z, t, **options))


def test_softmax_on_probabilities_is_the_divergence() -> None:
    z, y = randn(4, 5), torch.softmax(randn(4, 5, seed=3), -1)
    expected = tf.kl_div(torch.log_softmax(z, -1), y, reduction="none").sum(-1)
    torch.testing.assert_close(loss(z, y, "softmax"), expected)
    t = labels(4, classes=5)
    smooth = 0.8 * one_hot(t, z) + 0.2 / 5
    entropy = -(smooth * smooth.log()).sum(-1)
    expected = tf.cross_entropy(z, t, reduction="none", label_smoothing=0.2) - entropy
    torch.testing.assert_close(loss(z, t, "softmax", label_smoothing=0.2), expected)


def test_equals_entmax() -> None:
    z, t = randn(40, 12, scale=2), labels(40, classes=12)
    torch.testing.assert_close(F.sparsemax_loss(z, t, reduction="none"), entmax.sparsemax_loss(z, t))
    torch.testing.assert_close(F.entmax15_loss(z, t, reduction="none"), entmax.entmax15_loss(z, t))
    for alpha in (1.1, 1.7, 2.5):
        peer = entmax.entmax_bisect_loss(z, t, alpha=alpha, n_iter=80)
        torch.testing.assert_close(loss(z, t, alpha), peer, rtol=1e-9, atol=1e-10)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("soft", [False, True])
def test_gradient_is_mapping_minus_target(mapping, dtype: torch.dtype, scale: float, soft: bool) -> None:
    z, t = randn(50, 9, scale=scale).to(dtype).requires_grad_(), labels(50, classes=9)
    y = F.sparsemax(randn(50, 9, seed=4)).to(dtype) if soft else one_hot(t, z)
    (gradient,) = torch.autograd.grad(loss(z, y if soft else t, mapping).sum(), z)
    exact = apply(mapping, z.detach()) - y
    torch.testing.assert_close(gradient, exact, rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("mapping", "mass"),
    [
        (lambda z, dim: F.project_budget(z, 2, dim), 2),
        (lambda z, dim: F.project_simplex(z, 2.5, dim), 2.5),
        (lambda z, dim: F.topk_simplex(z, 3, dim), 1),
        (lambda z, dim: F.sparsemax(z, dim), 1),
    ],
)
def test_a_function_with_its_omega(mapping, mass: float) -> None:
    z, y = randn(3, 7, 4).requires_grad_(), mass * torch.softmax(randn(3, 7, 4, seed=4), 1)
    value = loss(z, y, mapping, omega=half_square)
    p = mapping(z.detach(), 1)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    torch.testing.assert_close(gradient, p - y, rtol=0, atol=1e-15)
    torch.testing.assert_close(value.detach(), (half_square(y, 1) - half_square(p, 1) + (z * (p - y)).sum(1)).detach())
    torch.testing.assert_close(loss(z, p, mapping, omega=half_square), torch.zeros(3, 4).double(), rtol=0, atol=1e-14)
    assert (value >= 0).all()
    hessian = torch.func.hessian(lambda z: loss(z, y[0, :, 0], mapping, omega=half_square))(z[0, :, 0].detach())
    torch.testing.assert_close(hessian, torch.func.jacrev(lambda z: mapping(z, 0))(z[0, :, 0].detach()))


def test_a_known_mapping_as_a_function_gives_the_same_loss() -> None:
    z, y = randn(5, 6), F.sparsemax(randn(5, 6, seed=5))
    as_function = loss(z, y, lambda z, dim: F.sparsemax(z, dim), omega=half_square)
    torch.testing.assert_close(as_function, loss(z, y, "sparsemax"), rtol=1e-12, atol=1e-14)
    shannon = lambda p, dim: torch.special.xlogy(p, p).sum(dim)  # noqa: E731
    torch.testing.assert_close(loss(z, y, torch.softmax, omega=shannon), loss(z, y, "softmax"))


@pytest.mark.parametrize("mapping", [*NAMES, 1.2])
def test_third_derivatives(mapping) -> None:
    z, t = randn(2, 5, scale=0.7).requires_grad_(), torch.tensor([1, 3])
    gradient = lambda z: torch.autograd.grad(loss(z, t, mapping).sum(), z, create_graph=True)[0]  # noqa: E731
    assert torch.autograd.gradgradcheck(gradient, (z,))


@EVERY
@pytest.mark.parametrize("soft", [False, True])
def test_n_dimensional_is_row_by_row(mapping, soft: bool) -> None:
    z, t = randn(2, 5, 3, 4, scale=2), labels(2, 3, 4, classes=5)
    y = torch.softmax(randn(2, 5, 3, 4, seed=6), 1)
    found = loss(z, y if soft else t, mapping, label_smoothing=0.1, weight=torch.linspace(1, 2, 5).double())
    assert found.shape == (2, 3, 4)
    for i, j, k in itertools.product(range(2), range(3), range(4)):
        target = y[i, :, j, k] if soft else t[i, j, k]
        row = loss(z[i, :, j, k], target, mapping, label_smoothing=0.1, weight=torch.linspace(1, 2, 5).double())
        torch.testing.assert_close(found[i, j, k], row)
    strided = z.transpose(2, 3)
    torch.testing.assert_close(
        loss(strided, t.transpose(1, 2), mapping), loss(strided.contiguous(), t.mT.contiguous(), mapping)
    )


@EVERY
@pytest.mark.parametrize("ignore_index", [-100, -1, 0])
@pytest.mark.parametrize("weighted", [False, True])
def test_ignored_rows_do_not_exist(mapping, ignore_index: int, weighted: bool) -> None:
    z, t = randn(8, 5), labels(8, classes=5)
    t[[1, 4]] = ignore_index
    kept = t != ignore_index
    dirty = z.clone()
    dirty[1], dirty[4, 2] = torch.nan, -INF
    dirty.requires_grad_()
    weight = torch.arange(1.0, 6.0).double() if weighted else None
    for reduction in ("none", "mean", "sum"):
        options = {"weight": weight, "reduction": reduction, "ignore_index": ignore_index}
        found, expected = (
            loss(dirty, t, mapping, **options),
            loss(z[kept], t[kept], mapping, weight=weight, reduction=reduction),
        )
        torch.testing.assert_close(found[kept] if reduction == "none" else found, expected)
        assert reduction != "none" or (found[~kept] == 0).all()
        (gradient,) = torch.autograd.grad(found.sum(), dirty)
        assert (gradient[~kept] == 0).all()
        assert gradient.isfinite().all()


@EVERY
def test_a_mean_over_nothing_is_zero_with_zero_gradient(mapping) -> None:
    z = randn(3, 4).requires_grad_()
    value = loss(z, torch.full((3,), -100), mapping, reduction="mean")
    assert value == 0
    assert (torch.autograd.grad(value, z)[0] == 0).all()
    for target in (torch.zeros(0, dtype=torch.long), torch.zeros(0, 4)):
        assert loss(torch.zeros(0, 4), target, mapping, reduction="mean") == 0
        assert loss(torch.zeros(0, 4), target, mapping).shape == (0,)


@EVERY
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_weights_and_smoothing_by_their_formulas(mapping, smoothing: float) -> None:
    z, t, weight = randn(7, 5), labels(7, classes=5), torch.arange(1.0, 6.0).double()
    y = torch.softmax(randn(7, 5, seed=8), -1)
    options = {"weight": weight, "label_smoothing": smoothing}
    for target, rows in ((t, one_hot(t, z)), (y, y)):
        plain = loss(z, (1 - smoothing) * rows + smoothing / 5, mapping)
        share = rows @ weight
        torch.testing.assert_close(loss(z, target, mapping, **options), share * plain)
        torch.testing.assert_close(loss(z, target, mapping, reduction="sum", **options), share @ plain)
        total = share.sum() if target is t else 7
        torch.testing.assert_close(loss(z, target, mapping, reduction="mean", **options), share @ plain / total)
    torch.testing.assert_close(loss(z, t, mapping, **options), loss(z, one_hot(t, z), mapping, **options))
    weight = weight.index_fill(0, t[0], 0.0)  # a class of weight 0 does not count, even at an infinite loss
    z[0, t[0]] = -INF
    assert loss(z, t, mapping, weight=weight)[0] == 0
    assert loss(z, t, mapping, weight=weight, reduction="mean").isfinite()


@EVERY
def test_minus_inf_is_a_class_that_cannot_be(mapping) -> None:
    z, t = randn(4, 6), torch.tensor([0, 1, 2, 3])
    z[:, 4] = -INF
    z[2] = torch.tensor([-INF, -INF, 0.3, -INF, -INF, -INF]).double()
    z.requires_grad_()
    keep = [0, 1, 2, 3, 5]
    for target in (t, one_hot(t, z)):
        value = loss(z, target, mapping)
        torch.testing.assert_close(value[[0, 1, 3]], loss(z[[0, 1, 3]][:, keep], t[[0, 1, 3]], mapping))
        assert value[2] == 0
        (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True)
        torch.testing.assert_close(gradient, apply(mapping, z) - one_hot(t, z))
        assert torch.autograd.grad(gradient.square().sum(), z)[0].isfinite().all()

        impossible = loss(z, torch.full((4,), 4) if target is t else one_hot(torch.full((4,), 4), z), mapping)
        assert (impossible == INF).all()
        (gradient,) = torch.autograd.grad(impossible.sum(), z)
        assert gradient.isfinite().all()
        assert (gradient[:, 4] == 0).all()
    nothing = torch.full((1, 3), -INF).double().requires_grad_()
    value = loss(nothing, torch.tensor([1]), mapping)
    assert value == INF
    assert (torch.autograd.grad(value.sum(), nothing)[0] == 0).all()
    assert loss(z, torch.full((4,), 4), mapping, reduction="mean") == INF
    assert (loss(z[:2], t[:2], mapping, label_smoothing=0.1) == INF).all()


def test_minus_inf_in_the_loss_of_a_function() -> None:
    z = torch.tensor([[0.5, -INF, 1.2, 0.1], [0.5, 0.0, 1.2, -INF]]).double().requires_grad_()
    value = loss(z, torch.tensor([0, 3]), lambda z, dim: F.sparsemax(z, dim), omega=half_square)
    torch.testing.assert_close(value, loss(z, torch.tensor([0, 3]), "sparsemax"))
    assert value[1] == INF
    assert torch.autograd.grad(value.sum(), z)[0].isfinite().all()


@EVERY
@pytest.mark.parametrize("bad", [torch.nan, INF])
def test_nan_and_plus_inf_spoil_their_row_and_no_other(mapping, bad: float) -> None:
    z, t = randn(3, 4), torch.tensor([0, 1, 2])
    z[1, 3] = bad
    assert loss(z, t, mapping).isnan().tolist() == [False, True, False]
    assert loss(z, one_hot(t, z), mapping).isnan().tolist() == [False, True, False]


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("soft", [False, True])
def test_sixteen_bits_are_computed_in_thirty_two(mapping, dtype: torch.dtype, soft: bool) -> None:
    z, t = randn(64, 300).to(dtype), labels(64, classes=300)
    y = torch.softmax(randn(64, 300, seed=4), -1).to(dtype) if soft else t
    for reduction in ("none", "mean", "sum"):
        found = loss(z, y, mapping, reduction=reduction)
        assert found.dtype == dtype
        exact = loss(z.double(), y.double() if soft else t, mapping, reduction=reduction)
        torch.testing.assert_close(found.double(), exact, rtol=0.51 * torch.finfo(dtype).eps + 1e-5, atol=1e-5)
    assert loss(z, torch.softmax(z.float(), -1), mapping).dtype == dtype


@pytest.mark.parametrize(
    ("mapping", "margin"), [("sparsemax", 1.0), ("entmax15", 2.0), (1.2, 5.0), (3.0, 0.5), (4.0, 1 / 3)]
)
@pytest.mark.parametrize("offset", [0.0, 1024.0, -1024.0])
def test_exactly_zero_beyond_the_margin(mapping, margin: float, offset: float) -> None:
    z = torch.full((1, 6), offset).requires_grad_()
    ahead = torch.zeros(1, 6)
    ahead[0, 2] = margin * 1.01
    value = loss(z + ahead, torch.tensor([2]), mapping)
    assert value.item() == 0
    assert (torch.autograd.grad(value.sum(), z)[0] == 0).all()
    assert loss(z + 0.9 * ahead, torch.tensor([2]), mapping) > 0


@EVERY
@pytest.mark.parametrize("soft", [False, True])
def test_small_losses_keep_their_digits(mapping, soft: bool) -> None:
    """Near p = y the loss is a square: subtracting in float32 would leave noise of 1e-7, some of it negative."""
    z = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    if soft:
        y = apply(mapping, z)
        z = z + 1e-3 * torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    else:
        alpha = NAMES.get(mapping, mapping)
        edge = 9.0 if alpha == 1 else 0.999 / (alpha - 1)
        z, y = (z / 100), torch.zeros(200, dtype=torch.long)
        z[:, 0] += edge
    found, exact = loss(z, y, mapping), loss(z.double(), y.double() if soft else y, mapping)
    assert (found >= 0).all()
    assert 0 < exact.max() < 2e-3
    torch.testing.assert_close(found.double(), exact, rtol=2e-3, atol=2e-10)


def test_a_common_offset_costs_only_the_rounding_of_the_logits() -> None:
    z, t = torch.randint(-8, 8, (50, 9), generator=torch.Generator().manual_seed(0)) / 4, labels(50, classes=9)
    for mapping in [*NAMES, 1.2, 3.0]:
        torch.testing.assert_close(loss(z + 2.0**20, t, mapping), loss(z, t, mapping), rtol=2e-6, atol=2e-6)


def test_far_classes_have_a_finite_loss() -> None:
    z = torch.tensor([[0.0, -300.0, -1e4]])
    torch.testing.assert_close(loss(z, torch.tensor([1]), "softmax"), torch.tensor([300.0]))
    torch.testing.assert_close(loss(z, torch.tensor([2]), 1.0001), torch.tensor([1e4]), rtol=1e-4, atol=0)
    assert loss(z, torch.tensor([2]), "sparsemax") == 1e4  # 1/2 ‖p - y‖² + (-1 + 1e4)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_target_on_the_very_edge_of_the_support(alpha: float) -> None:
    """From a probability of 1e-30 to one cut off: no overflow in y / p, and the loss is continuous."""
    edge = {1.0: -30.0}.get(alpha, -1 / max(alpha - 1, 0.1))
    gaps = torch.cat([edge + torch.linspace(-1e-3, 1e-3, 41, dtype=torch.float64), torch.tensor([edge]).double()])
    z = torch.stack([torch.zeros(42).double(), gaps], -1).float()
    t = torch.ones(42, dtype=torch.long)
    for y in (t, torch.tensor([0.3, 0.7]).expand(42, 2)):
        exact = loss(z.double(), y.double() if y is not t else y, alpha)
        torch.testing.assert_close(loss(z, y, alpha).double(), exact, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(loss(z, y, torch.tensor(alpha)).double(), exact, rtol=1e-6, atol=1e-6)


@EVERY
def test_never_negative_and_zero_only_at_the_mapping(mapping) -> None:
    z, y = randn(300, 6, scale=2), F.sparsemax(randn(300, 6, seed=9, scale=2))
    apart = ((apply(mapping, z) - y).abs() > 1e-3).any(-1)
    assert 150 < apart.sum() < 301
    assert (loss(z, y, mapping) >= 0).all()
    assert (loss(z, y, mapping)[apart] > 1e-7).all()
    torch.testing.assert_close(loss(z, apply(mapping, z), mapping), torch.zeros(300).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("values", [[1.0, 1.3, 1.5], [2.0, 2.6, 3.5]])
def test_alpha_is_an_input(values: list[float]) -> None:
    z, t, alpha = randn(3, 5).requires_grad_(), torch.tensor([0, 3, 1]), torch.tensor(values).double()[:, None]
    rows = torch.stack([loss(z[i], t[i], value) for i, value in enumerate(values)])
    torch.testing.assert_close(loss(z, t, alpha), rows)
    (gradient,) = torch.autograd.grad(loss(z, t, alpha).sum(), z)
    torch.testing.assert_close(gradient, F.entmax(z, alpha) - one_hot(t, z))
    inside = alpha.clamp(min=1.05).requires_grad_()
    soft = torch.softmax(randn(3, 5, seed=7), -1)
    for target in (t, soft):
        assert torch.autograd.gradcheck(lambda z, a, y=target: loss(z, y, a), (z, inside))
        assert torch.autograd.gradgradcheck(lambda z, a, y=target: loss(z, y, a), (z, inside), atol=1e-4)
    one = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    (at_one,) = torch.autograd.grad(loss(z, t, one).sum(), one)
    step = 1e-5
    slope = [(loss(z, t, 1 + k * step) - loss(z, t, 1.0)).sum() / (k * step) for k in (1, 2)]
    torch.testing.assert_close(at_one, 2 * slope[0] - slope[1], rtol=1e-5, atol=1e-6)


def test_an_entmax_module_lends_its_alpha() -> None:
    z, t = randn(2, 5, 3), labels(2, 3, classes=5)
    torch.testing.assert_close(loss(z, t, sl.Entmax(1.7)), loss(z, t, 1.7))
    learned = sl.Entmax(torch.full((1, 1, 3), 1.4, dtype=torch.float64), dim=1, learn_alpha=True)
    value = loss(z, t, learned)
    torch.testing.assert_close(value, loss(z, t, 1.4))
    value.sum().backward()
    assert (learned.logit_alpha.grad != 0).all()


@EVERY
def test_vmap_over_the_batch(mapping) -> None:
    z, t = randn(4, 5), torch.tensor([0, -100, 3, 2])
    one = lambda z, t: loss(z, t, mapping, label_smoothing=0.1, weight=torch.ones(5).double())  # noqa: E731
    torch.testing.assert_close(torch.func.vmap(one)(z, t), one(z, t))
    per_sample = torch.func.vmap(torch.func.grad(one))(z, t)
    z.requires_grad_()
    torch.testing.assert_close(per_sample, torch.autograd.grad(one(z, t).sum(), z)[0])


def test_a_target_with_exact_zeros_has_a_finite_gradient() -> None:
    z, y = randn(3, 5), F.sparsemax(randn(3, 5, seed=3, scale=2)).requires_grad_()
    assert (y == 0).any()
    for mapping in [*NAMES, 1.2]:
        (gradient,) = torch.autograd.grad(loss(z, y, mapping).sum(), y)
        assert gradient.isfinite().all()
        if mapping in (
            "softmax",
            1.2,
        ):  # whose derivative at 0 is minus infinity, or reached too slowly for a difference
            continue
        for i, j in (y == 0).nonzero():
            bump = 1e-9 * one_hot(j, y[0])
            slope = (loss(z[i], y[i] + bump, mapping) - loss(z[i], y[i], mapping)) / 1e-9
            torch.testing.assert_close(gradient[i, j], slope, rtol=0.05, atol=1e-3)


def test_inputs_are_not_changed_and_options_compose() -> None:
    z, t, weight = randn(4, 5), torch.tensor([0, -100, 3, 2]), torch.rand(5)
    before = [x.clone() for x in (z, t, weight)]
    F.sparsemax_loss(z, t, -100, "mean", weight, 0.1)
    assert all(map(torch.equal, before, (z, t, weight)))


@pytest.mark.parametrize(("module", "f"), [(sl.SparsemaxLoss, F.sparsemax_loss), (sl.Entmax15Loss, F.entmax15_loss)])
def test_modules_are_their_functions(module, f) -> None:
    z, t, weight = randn(4, 5), torch.tensor([0, 4, 3, 2]), torch.arange(1.0, 6.0).double()
    torch.testing.assert_close(module()(z, t), f(z, t))
    assert dict(module().state_dict()) == {}
    criterion = module(weight, ignore_index=3, reduction="sum", label_smoothing=0.1)
    expected = f(z, t, 3, "sum", weight, 0.1)
    torch.testing.assert_close(criterion(z, t), expected)
    assert list(criterion.state_dict()) == ["weight"]
    assert criterion.float().weight.dtype == torch.float32
    torch.testing.assert_close(copy.deepcopy(criterion)(z, t), expected)
    other = module(torch.ones(5), ignore_index=3, reduction="sum", label_smoothing=0.1)
    other.load_state_dict(criterion.state_dict())
    torch.testing.assert_close(other(z, t), expected)
    assert repr(criterion).endswith("(weight=(5,), ignore_index=3, reduction='sum', label_smoothing=0.1)")
    assert repr(module()).endswith("(ignore_index=-100, reduction='mean', label_smoothing=0.0)")


Z, T, Y = torch.zeros(3, 4), torch.zeros(3, dtype=torch.long), torch.full((3, 4), 0.25)
ERRORS = {
    "integer logits": (TypeError, "logits must be floating point", lambda: F.sparsemax_loss(Z.long(), T)),
    "0-d logits": (ValueError, r"logits must be \(C,\), \(N, C\)", lambda: F.sparsemax_loss(Z[0, 0], T)),
    "no class": (ValueError, "at least one class", lambda: F.sparsemax_loss(Z[:, :0], T)),
    "list target": (TypeError, "target must be a torch.Tensor, got list", lambda: F.sparsemax_loss(Z, [0, 1, 2])),
    "int32 target": (TypeError, "target must be int64", lambda: F.sparsemax_loss(Z, T.int())),
    "short target": (ValueError, r"class indices of shape \(3,\).*got \(2,\)", lambda: F.sparsemax_loss(Z, T[:2])),
    "class axis last": (
        ValueError,
        r"shape \(2, 3\).*classes on axis 1",
        lambda: F.sparsemax_loss(torch.zeros(2, 4, 3), torch.zeros(2, 4).long()),
    ),
    "probabilities": (ValueError, r"probabilities of shape \(3, 4\)", lambda: F.sparsemax_loss(Z, Y[:2])),
    "reduction": (
        ValueError,
        "reduction must be one of .*elementwise_mean",
        lambda: F.sparsemax_loss(Z, T, reduction="elementwise_mean"),
    ),
    "weight shape": (
        ValueError,
        r"weight must have shape \(4,\)",
        lambda: F.sparsemax_loss(Z, T, weight=torch.ones(3)),
    ),
    "weight dtype": (
        TypeError,
        "weight must be floating point",
        lambda: F.sparsemax_loss(Z, T, weight=torch.ones(4).long()),
    ),
    "smoothing": (
        ValueError,
        r"label_smoothing must lie in \[0, 1\]",
        lambda: F.sparsemax_loss(Z, T, label_smoothing=1.5),
    ),
    "smoothing tensor": (
        TypeError,
        "label_smoothing must be a number",
        lambda: F.sparsemax_loss(Z, T, label_smoothing=torch.tensor(0.1)),
    ),
    "name": (
        ValueError,
        r"mapping must be one of \['entmax15', 'softmax', 'sparsemax'\].*got 'relu'",
        lambda: loss(Z, T, "relu"),
    ),
    "alpha": (ValueError, r"alpha must lie in \[1, 4\]", lambda: loss(Z, T, 0.5)),
    "alpha shape": (
        ValueError,
        "alpha must be a number or broadcast.*size 1 at dim 1",
        lambda: loss(Z, T, torch.ones(4)),
    ),
    "mapping": (
        TypeError,
        "mapping must be a name, an alpha, an Entmax or a function, got NoneType",
        lambda: loss(Z, T, None),
    ),
    "no omega": (ValueError, "needs its omega: give omega=lambda", lambda: loss(Z, T, F.sparsemax)),
    "omega too much": (
        ValueError,
        "omega belongs to a mapping that is a function",
        lambda: loss(Z, T, "softmax", omega=half_square),
    ),
    "mapping's shape": (
        ValueError,
        r"weights of the shape of its input \(3, 4\), got \(3,\)",
        lambda: loss(Z, T, torch.sum, omega=half_square),
    ),
    "mapping's type": (
        ValueError,
        r"weights of the shape of its input \(3, 4\), got int",
        lambda: loss(Z, T, lambda z, dim: 0, omega=half_square),
    ),
    "omega's shape": (
        ValueError,
        r"omega must sum over dim: \(p, dim\) -> \(3,\), got \(\)",
        lambda: loss(Z, T, torch.softmax, omega=lambda p, dim: p.sum()),
    ),
    "module reduction": (ValueError, "reduction must be one of", lambda: sl.SparsemaxLoss(reduction="no")),
    "module weight": (TypeError, "weight must be a torch.Tensor, got int", lambda: sl.Entmax15Loss(-100)),
    "class out of range": (RuntimeError, "out of bounds", lambda: F.sparsemax_loss(Z, T + 4)),
    "negative class": (RuntimeError, "out of bounds", lambda: F.sparsemax_loss(Z, T - 1)),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    kind, message, call = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()
