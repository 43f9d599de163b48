"""LISTA and its relatives: against naive loops, sample by sample, and ISTA; support selection; tuning; the objective."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import sparselayers as sl
import sparselayers.functional as F
from sparselayers.coding.random_search import random_search
from sparselayers.coding.support_selection import keep_largest

VARIANTS = ("lista", "cp", "alista", "hyper")


def problem(
    m: int = 30, n: int = 60, active: int = 4, batch: int = 6, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """x = D z with `active` atoms each, D, and z."""
    g = torch.Generator().manual_seed(seed)
    D = torch.randn(m, n, dtype=torch.float64, generator=g)
    D = D / D.norm(dim=0)
    z = torch.randn(batch, n, dtype=torch.float64, generator=g)
    z = torch.where(torch.rand(batch, n, generator=g).argsort(-1) < active, z, 0)
    return (z @ D.mT).to(dtype), D.to(dtype), z.to(dtype)


def layer_of(variant: str, D: Tensor, depth: int = 5, **options: object) -> sl.LISTA:
    return sl.LISTA(*D.shape, depth=depth, dictionary=D, variant=variant, dtype=D.dtype, **options)


def nmse(z: Tensor, truth: Tensor) -> float:
    return 10 * math.log10(float((z.detach() - truth).square().sum() / truth.square().sum()))


# ------------------------------------------------------------------------------------------------ the naive recursions


def naive_shrink(v: np.ndarray, t: float, kept: int) -> np.ndarray:
    """Soft threshold, but for the `kept` largest entries that pass it."""
    shrunk = np.sign(v) * np.maximum(np.abs(v) - t, 0)
    for j in np.argsort(-np.abs(v), kind="stable")[:kept]:
        if abs(v[j]) > t:
            shrunk[j] = v[j]
    return shrunk


def naive_weight(D: np.ndarray) -> np.ndarray:
    """The analytic weight by its definition: least ‖D^T w‖² under w^T d_i = 1, by Lagrange's equations."""
    inverse = np.linalg.inv(D @ D.T)
    return np.stack([inverse @ d / (d @ inverse @ d) for d in D.T], 1)


def naive_scheduled(
    x: np.ndarray, D: np.ndarray, W: np.ndarray, lam: float, depth: int, step: float, rate: float, most: float
) -> list[np.ndarray]:
    """Homotopy from lam_max with the matrix W in D's place, and support selection, for one sample."""
    z, codes = np.zeros(D.shape[1]), []
    start = max(np.abs(W.T @ x).max(), lam)
    for k in range(1, depth + 1):
        lam_k = start * (lam / start) ** (k / depth)
        kept = round(min(rate * k, most) / 100 * len(z))
        z = naive_shrink(z - step * W.T @ (D @ z - x), step * lam_k, kept)
        codes.append(z)
    return codes


def naive_hyper(
    x: np.ndarray, D: np.ndarray, c: tuple[float, float, float], depth: int, step: float, fall: float
) -> np.ndarray:
    """HyperLISTA as its paper writes it, for one sample, with the pseudo-inverse itself; the cap of the threshold apart."""
    W, inverse = naive_weight(D), np.linalg.pinv(D)
    previous = z = np.zeros(D.shape[1])
    for k in range(depth):
        e = np.abs(inverse @ (D @ z - x)).sum()
        level = e if fall == 1 else min(e, fall**k * np.abs(inverse @ x).sum())
        momentum = c[1] * np.count_nonzero(z)
        share = min(max(c[2] * math.log(np.abs(inverse @ x).sum() / e), 0), 1)
        v = z - step * W.T @ (D @ z - x) + momentum * (z - previous)
        previous, z = z, naive_shrink(v, step * c[0] * level, round(share * len(z)))
    return z


@pytest.mark.parametrize(("lam", "rate", "most", "step"), [(0.05, 0, 0, 1.0), (0.05, 2.0, 7.0, 1.0), (0.2, 5, 5, 0.7)])
def test_alista_is_its_definition(lam: float, rate: float, most: float, step: float) -> None:
    x, D, _ = problem()
    support = sl.SupportSelection(rate, most) if rate else None
    z, trace = layer_of("alista", D, lam=lam, support=support, step=step)(x, trace=True)
    W = naive_weight(D.numpy())
    expected = [naive_scheduled(s, D.numpy(), W, lam, 5, step, rate, most) for s in x.numpy()]
    torch.testing.assert_close(torch.stack(trace, 1).detach(), torch.from_numpy(np.array(expected)))
    assert torch.equal(z, trace[-1])


@pytest.mark.parametrize("constants", [None, (0.1, 0.05, 0.1), (0.2, 0.0, 0.0)])
@pytest.mark.parametrize(("step", "fall"), [(None, None), (None, 1.0), (0.8, 0.5)])
def test_hyper_is_its_definition(
    constants: tuple[float, float, float] | None, step: float | None, fall: float | None
) -> None:
    x, D, _ = problem()
    layer = layer_of("hyper", D, depth=6, constants=constants, step=step, fall=fall)
    assert f"fall={fall or 0.85}" in repr(layer)
    if constants is None:
        assert layer.constants == pytest.approx((4.4 / 30, 1 / 30, 0.27 * 30 / 60))
    expected = [naive_hyper(s, D.numpy(), layer.constants, 6, step or 1.0, fall or 0.85) for s in x.numpy()]
    torch.testing.assert_close(layer(x), torch.from_numpy(np.array(expected)))


def test_trained_lista_is_its_definition() -> None:
    """With W1_k = step W_k^T and W2_k = I - step G_k, as the papers write it."""
    x, D, _ = problem()
    layer = layer_of("lista", D, lam=0.1, learn=("dictionary", "lam", "step"), schedule=sl.Constant())
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=g))
        z = torch.zeros(6, 60, dtype=x.dtype)
        for k in range(5):
            step, gain = layer.step[k], layer.rule.log_gain[k].exp()
            W1, W2 = step * layer.direction.weight[k].T, torch.eye(60) - step * layer.direction.gram[k - 1].T
            v = x @ W1.T + (z @ W2.T if k else 0)
            z = v.sign() * (v.abs() - step * gain * 0.1).clamp_min(0)
    torch.testing.assert_close(layer(x), z)


def test_trained_cp_is_its_definition() -> None:
    x, D, _ = problem()
    layer = layer_of("cp", D, lam=0.1, schedule=sl.Constant())
    with torch.no_grad():
        layer.direction.weight.mul_(1.3).add_(0.05)
        layer.rule.log_gain.add_(torch.linspace(-0.5, 0.5, 5).unsqueeze(-1))
        z = torch.zeros(6, 60, dtype=x.dtype)
        for k in range(5):
            v = z - layer.step * (z @ D.T - x) @ layer.direction.weight[k]
            z = v.sign() * (v.abs() - layer.step * layer.rule.log_gain[k].exp() * 0.1).clamp_min(0)
    torch.testing.assert_close(layer(x), z)


@pytest.mark.parametrize("variant", ["lista", "cp"])
@pytest.mark.parametrize("schedule", [sl.Homotopy(), sl.Homotopy(start=0.5), sl.Constant()], ids=repr)
@pytest.mark.parametrize("penalty", [sl.L1(), sl.Grouped(sl.GroupL2(), 4), sl.ElasticNet()], ids=repr)
@pytest.mark.parametrize("shape", [(30, 52), (30, 80)])
def test_lista_and_cp_start_at_ista(variant: str, schedule: sl.Homotopy, penalty: sl.Penalty, shape) -> None:
    x, D, _ = problem(*shape[:2])
    options = {"lam": 0.1, "schedule": schedule, "penalty": penalty}
    codes, trace = layer_of(variant, D, **options)(x, trace=True)
    expected, steps = sl.ISTA(*shape, depth=5, dictionary=D, dtype=D.dtype, **options)(x, trace=True)
    torch.testing.assert_close(codes, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.stack(trace), torch.stack(steps), rtol=1e-12, atol=1e-12)
    assert torch.equal(codes != 0, expected != 0)


# --------------------------------------------------------------------------------------------------- support selection


def test_support_selection_against_a_loop() -> None:
    g = torch.Generator().manual_seed(0)
    v = torch.randn(7, 12, dtype=torch.float64, generator=g)
    t = torch.rand(7, 1, dtype=torch.float64, generator=g)
    counts = torch.tensor([[0], [1], [2], [5], [12], [3], [4]])
    shrunk = F.soft_threshold(v, t)
    rows = [naive_shrink(v[i].numpy(), float(t[i]), int(counts[i])) for i in range(7)]
    torch.testing.assert_close(keep_largest(v, shrunk, counts), torch.from_numpy(np.stack(rows)))
    for count in (0, 1, 4, 12):
        rows = [naive_shrink(v[i].numpy(), float(t[i]), count) for i in range(7)]
        torch.testing.assert_close(keep_largest(v, shrunk, count), torch.from_numpy(np.stack(rows)))


def test_support_selection_at_ties_nan_and_nothing() -> None:
    v = torch.tensor([2.0, -2.0, 1.0, 0.1])
    assert torch.equal(keep_largest(v, F.soft_threshold(v, 0.5), 1), torch.tensor([2.0, -2.0, 0.5, 0.0]))
    rows = torch.stack([v, torch.full((4,), torch.nan)])
    kept = keep_largest(rows, F.soft_threshold(rows, 0.5), torch.tensor([[2], [2]]))
    assert torch.equal(kept[0], torch.tensor([2.0, -2.0, 0.5, 0.0]))
    assert kept[1].isnan().all()
    assert keep_largest(torch.empty(0, 4), torch.empty(0, 4), 2).shape == (0, 4)


def test_support_selection_counts() -> None:
    chosen = sl.SupportSelection()
    assert [chosen.count(k, 500) for k in (1, 10, 11, 16)] == [6, 60, 65, 65]
    assert sl.SupportSelection(0.0, 0.0).count(9, 500) == 0
    assert sl.SupportSelection(100.0, 100.0).count(2, 7) == 7


def test_everything_trusted_is_the_hard_threshold() -> None:
    x, D, _ = problem()
    z = layer_of("alista", D, depth=1, lam=0.4, schedule=sl.Constant(), support=sl.SupportSelection(100, 100))(x)
    v = x @ F.analytic_weight(D)
    torch.testing.assert_close(z, F.hard_threshold(v, 0.4))


# ------------------------------------------------------------------------------------------------------- what they reach


def test_untrained_alista_and_hyper_beat_fista_on_sparse_codes() -> None:
    x, D, truth = problem(100, 200, 10, 64, torch.float32)
    best = min(nmse(F.fista(x, D, lam, depth=16), truth) for lam in (0.05, 0.1, 0.2))
    options = {"depth": 16, "lam": 0.01}
    plain = nmse(layer_of("alista", D, **options)(x), truth)
    selecting = nmse(layer_of("alista", D, support=sl.SupportSelection(), **options)(x), truth)
    hyper = nmse(layer_of("hyper", D, depth=16)(x), truth)
    assert plain < best - 5
    assert selecting < plain - 20
    assert hyper < plain - 20


def test_tune_improves_is_deterministic_and_asks_for_no_gradient() -> None:
    x, D, truth = problem(40, 80, 6, 40)
    layer = layer_of("hyper", D, depth=10, constants=(0.3, 0.001, 0.01))
    before = nmse(layer(x), truth)
    twin = copy.deepcopy(layer)
    assert layer.tune(x, truth, trials=25) is layer
    assert nmse(layer(x), truth) < before - 3
    assert layer.constants == twin.tune(x, truth, trials=25).constants
    fresh = twin.constants
    assert twin.tune(x, truth, trials=1).constants == fresh  # the present ones come first
    other = copy.deepcopy(layer).tune(x, truth, trials=5, generator=torch.Generator().manual_seed(7))
    assert nmse(other(x), truth) <= nmse(layer(x), truth)
    assert not list(layer.parameters())


def test_the_falling_threshold_frees_samples_that_stall() -> None:
    """By the residual alone the threshold of a dense sample stays where it is, with atoms still to find."""
    x, D, truth = problem(100, 400, 22, 64, torch.float32)
    stalling, falling = (layer_of("hyper", D, depth=24, fall=fall) for fall in (1.0, 0.85))
    assert nmse(falling(x), truth) < nmse(stalling(x), truth) - 5


def test_tune_sets_learned_constants_too() -> None:
    x, D, truth = problem(20, 30, 2, 10)
    layer = layer_of("hyper", D, learn=("lam",), constants=(0.5, 0.001, 0.01))
    before = layer.constants
    layer.tune(x, truth, trials=10)
    assert layer.constants != before
    assert layer.rule.log_constants.requires_grad


def test_random_search_never_takes_nan_and_finds_a_minimum() -> None:
    start = torch.tensor([1.0, 1.0], dtype=torch.float64)
    goal = torch.tensor([2.0, 0.4], dtype=torch.float64).log()

    def score(c: Tensor) -> float:
        return math.nan if float(c[0]) < 1.5 else float((c.log() - goal).square().sum())

    found = random_search(score, start, 200, torch.Generator().manual_seed(0))
    assert score(found) < 0.01


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_helps(variant: str) -> None:
    x, D, truth = problem(20, 40, 2, 128, torch.float32)
    layer = layer_of(variant, D, depth=6, lam=0.05, learn=("lam",) if variant == "hyper" else None)
    optimizer = torch.optim.Adam(layer.parameters(), lr=2e-3 if variant in ("lista", "cp") else 2e-2)
    before = nmse(layer(x), truth)
    for _ in range(30):
        optimizer.zero_grad()
        (layer(x) - truth).square().sum().backward()
        optimizer.step()
    assert nmse(layer(x), truth) < before - 0.5


# ------------------------------------------------------------------------------------------------------ the objective


@pytest.mark.parametrize("lam", [0.2, torch.tensor(0.2), torch.full((6, 1), 0.2), torch.full((60,), 0.2)])
@pytest.mark.parametrize("kind", [sl.ISTA, sl.FISTA, sl.LISTA])
def test_the_objective_by_layer(kind: type, lam: float | Tensor) -> None:
    x, D, _ = problem()
    layer = kind(30, 60, depth=5, lam=lam, dictionary=D, dtype=D.dtype)
    found = layer.objective(x)
    assert found.shape == (5, 6)
    for k, z in enumerate(layer(x, trace=True)[1]):
        expected = (x - z @ D.mT).square().sum(-1) / 2 + 0.2 * z.abs().sum(-1)
        torch.testing.assert_close(found[k], expected)
    found.sum().backward()


def test_the_objective_of_ista_falls_and_groups_count() -> None:
    x, D, _ = problem()
    penalty = sl.Grouped(sl.GroupL2(), 4)
    layer = sl.ISTA(30, 60, depth=5, lam=0.2, penalty=penalty, schedule=sl.Constant(), dictionary=D, dtype=D.dtype)
    found = layer.objective(x)
    assert (found.diff(dim=0) <= 1e-12).all()
    z = layer(x)
    expected = (x - z @ D.mT).square().sum(-1) / 2 + 0.2 * z.view(6, 15, 4).norm(dim=-1).sum(-1)
    torch.testing.assert_close(found[-1], expected)


# ------------------------------------------------------------------------------------------------------------ invariance


@pytest.mark.parametrize("variant", VARIANTS)
def test_scaling_signal_and_lam_scales_the_code(variant: str) -> None:
    x, D, _ = problem()
    lam, support = 0.1, None if variant == "hyper" else sl.SupportSelection(2.0, 6.0)
    small, large = (layer_of(variant, D, lam=c * lam, support=support)(c * x) for c in (1.0, 7.0))
    torch.testing.assert_close(large, 7 * small)


@pytest.mark.parametrize("variant", VARIANTS)
def test_samples_do_not_see_each_other(variant: str) -> None:
    x, D, _ = problem()
    layer = layer_of(variant, D, support=None if variant == "hyper" else sl.SupportSelection())
    z = layer(x)
    torch.testing.assert_close(layer(x[2]), z[2])
    torch.testing.assert_close(layer(x.view(2, 3, 30)), z.view(2, 3, 60))
    spoilt = x.clone()
    spoilt[1, 3] = torch.nan
    found = layer(spoilt)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2, 3, 4, 5]], z[[0, 2, 3, 4, 5]])
    assert layer(x[:0]).shape == (0, 60)
    kept = x.clone()
    layer(x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_zero_sample_has_a_zero_code_and_finite_gradients(variant: str) -> None:
    x, D, _ = problem()
    x = x.index_fill(0, torch.tensor([2]), 0.0).requires_grad_()
    layer = layer_of(variant, D, learn=("dictionary", "lam", "step"))
    z = layer(x)
    assert not z[2].any()
    z.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("variant", ["lista", "cp", "alista"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lam_at_lam_max_is_exactly_zero(variant: str, dtype: torch.dtype) -> None:
    x, D, _ = problem(dtype=dtype)
    c = x @ (F.analytic_weight(D) if variant == "alista" else D)
    lam = c.abs().amax(-1, keepdim=True)
    assert not layer_of(variant, D, lam=lam)(x).any()


def test_lam_per_sample_and_per_atom() -> None:
    x, D, _ = problem()
    one = layer_of("alista", D, lam=0.2)(x)
    for lam in (torch.tensor(0.2), torch.full((6, 1), 0.2), torch.full((60,), 0.2)):
        torch.testing.assert_close(layer_of("alista", D, lam=lam)(x), one)
    assert layer_of("cp", D, lam=torch.full((60,), 0.2)).rule.log_gain.shape == (5, 60)


def test_homotopy_starts_where_it_is_told() -> None:
    half = sl.Homotopy(start=0.5)
    assert [repr(half), repr(sl.Homotopy())] == ["Homotopy(start=0.5)", "Homotopy()"]
    assert half.strength(0.1, 10.0, 1, 2) == pytest.approx(0.1 * 5**0.5)
    assert half.strength(0.1, 10.0, 2, 2) == pytest.approx(0.1)
    assert half.strength(0.1, 1.5, 1, 2) == 0.1
    torch.testing.assert_close(half.strength(0.1, torch.tensor([10.0, 1.5]), 1, 2), torch.tensor([0.1 * 5**0.5, 0.1]))
    with pytest.raises(ValueError, match=r"start must lie in \(0, 1\], got 0"):
        sl.Homotopy(start=0.0)


# ---------------------------------------------------------------------------------------------------- the layer as a module


@pytest.mark.parametrize(
    ("variant", "learn", "names"),
    [
        ("lista", None, {"direction.gram": (4, 60, 60), "direction.weight": (5, 30, 60), "rule.log_gain": (5, 1)}),
        ("cp", None, {"direction.weight": (5, 30, 60), "rule.log_gain": (5, 1)}),
        ("cp", ("step",), {"log_step": (5,)}),
        ("alista", None, {"log_step": (5,), "rule.log_gain": (5, 1)}),
        ("alista", ("dictionary",), {"dictionary": (30, 60)}),
        ("hyper", None, {}),
        ("hyper", ("lam", "step"), {"log_step": (5,), "rule.log_constants": (3,)}),
    ],
)
def test_what_is_learned(variant: str, learn: tuple[str, ...] | None, names: dict) -> None:
    x, D, _ = problem()
    layer = layer_of(variant, D, learn=learn)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == names
    layer(x).square().sum().backward() if names else None
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("learn", [None, (), ("dictionary", "lam", "step")])
def test_state_copies_and_conversions(variant: str, learn: tuple[str, ...] | None) -> None:
    x, D, _ = problem()
    layer = layer_of(variant, D, learn=learn, lam=0.07)
    fresh = sl.LISTA(30, 60, depth=5, variant=variant, learn=learn, lam=0.07, dtype=torch.float64)
    assert fresh.state_dict().keys() == layer.state_dict().keys()
    fresh.load_state_dict(layer.state_dict())
    if "step" in layer.learn or variant in ("alista", "hyper"):
        assert torch.equal(fresh(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    single = copy.deepcopy(layer).float()
    torch.testing.assert_close(single(x.float()).double(), layer(x), rtol=1e-3, atol=1e-4)
    assert f"variant='{variant}'" in repr(layer)
    torch.testing.assert_close(layer.decode(layer(x)), layer(x) @ D.mT)


def test_a_learned_dictionary_takes_its_weight_along() -> None:
    x, D, _ = problem()
    for variant in ("alista", "hyper"):
        layer = layer_of(variant, D, learn=("dictionary",))
        with torch.no_grad():
            layer.dictionary.mul_(1.1).add_(0.01)
        torch.testing.assert_close(layer(x), layer_of(variant, layer.dictionary.detach(), learn=())(x))


def test_atoms_are_drawn_and_copied() -> None:
    torch.manual_seed(0)
    layer = sl.LISTA(30, 60, depth=3)
    torch.testing.assert_close(layer.dictionary.norm(dim=0), torch.ones(60))
    _, D, _ = problem()
    assert layer_of("cp", D).dictionary.data_ptr() != D.data_ptr()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", [{}, {"step": 0.7}, {"learn": ("dictionary", "lam", "step")}], ids=str)
def test_reset_parameters_is_a_new_layer_with_the_same_options(variant: str, options: dict) -> None:
    x, D, truth = problem()
    layer = layer_of(variant, D, lam=0.07, **options)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1)
    if variant == "hyper":
        layer.tune(x, truth, trials=5)
    before = list(layer.parameters())
    layer.reset_parameters()
    assert all(p is q for p, q in zip(before, layer.parameters(), strict=True))
    fresh = layer_of(variant, layer.dictionary.detach(), lam=0.07, **options)
    torch.testing.assert_close(layer.dictionary.norm(dim=0), torch.ones(60, dtype=D.dtype))
    assert not torch.equal(layer.dictionary, D)
    assert fresh.constants == layer.constants
    torch.testing.assert_close(layer(x), fresh(x), rtol=0, atol=0)


def test_shrink_takes_the_place_of_the_prox() -> None:
    x, D, _ = problem()
    z = layer_of("alista", D, shrink=sl.SigShrink(0.1, 20.0))(x)
    assert z.isfinite().all()
    assert (z != 0).all()


def test_autocast_gives_what_ista_gives() -> None:
    x, D, _ = problem(dtype=torch.float32)
    for variant in VARIANTS:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer_of(variant, D)(x).dtype == torch.float32


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_pass_gradcheck(variant: str) -> None:
    x, D, _ = problem(6, 9, 2, 3)
    learn = ("dictionary", "lam") if variant == "lista" else ("dictionary", "lam", "step")
    layer = layer_of(variant, D, depth=3, lam=0.05, learn=learn)
    names, values = zip(*((name, p.detach().clone()) for name, p in layer.named_parameters()), strict=True)
    leaves = tuple(v.requires_grad_() for v in values)

    def code(*leaves: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, leaves, strict=True)), (x,))

    assert torch.autograd.gradcheck(code, leaves)


# ------------------------------------------------------------------------------------------------- does it suit a dictionary


def test_the_rate_is_the_spectral_radius_on_the_support() -> None:
    _, D, _ = problem(12, 20)
    W = torch.from_numpy(naive_weight(D.numpy()))
    generator = torch.Generator().manual_seed(3)
    rates = F.analytic_rate(D, 4, step=0.8, draws=5, generator=generator)
    order = torch.rand(5, 20, generator=torch.Generator().manual_seed(3)).argsort(-1)[:, :4]
    expected = [torch.linalg.eigvals(torch.eye(4) - 0.8 * W[:, s].T @ D[:, s]).abs().max() for s in order]
    torch.testing.assert_close(rates, torch.stack(expected))
    assert torch.equal(F.analytic_rate(D, 4), F.analytic_rate(D, 4))


def test_the_rate_says_where_alista_diverges() -> None:
    """64 x 256: with 5 active atoms the codes come out, with 64 they blow up, and the rate says so beforehand."""
    for active, converges in ((5, True), (64, False)):
        x, D, truth = problem(64, 256, active, 20)
        assert bool(F.analytic_rate(D, active).max() < 1) == converges
        z = layer_of("alista", D, depth=60, lam=0.005)(x)
        assert (nmse(z, truth) < -20) == converges
    assert z.abs().max() > 1e3


def test_the_rate_of_a_dictionary_of_low_rank() -> None:
    _, D, _ = problem(12, 20)
    D = D.clone()
    D[6:] = 0
    D[:, 3] = 0
    rates = F.analytic_rate(D.float(), 2)
    assert rates.dtype == torch.float32
    assert rates.isfinite().all()


# --------------------------------------------------------------------------------------------------------------- errors

x0, D0 = torch.randn(3, 4), torch.randn(4, 6)
WRONG = [
    (
        lambda: sl.LISTA(4, 6, depth=2, variant="tista"),
        ValueError,
        "variant must be one of 'lista', 'cp', 'alista', 'h",
    ),
    (lambda: sl.LISTA(4, 6, depth=0), ValueError, "depth must be at least 1, got 0"),
    (lambda: sl.LISTA(0, 6, depth=2), ValueError, "n_features must be at least 1"),
    (lambda: sl.LISTA(4, 6, depth=2, learn="lam"), ValueError, "learn must be a sequence of names out of"),
    (lambda: sl.LISTA(4, 6, depth=2, learn=("W",)), ValueError, "learn must be a sequence of names out of"),
    (lambda: sl.LISTA(4, 6, depth=2, lam=0.0), ValueError, "Homotopy() runs down to lam and needs lam > 0"),
    (lambda: sl.LISTA(4, 6, depth=2, penalty=sl.Ridge()), ValueError, "has no finite lam_max"),
    (lambda: sl.LISTA(4, 6, depth=2, penalty=abs), TypeError, "pass a callable as shrink="),
    (lambda: sl.LISTA(4, 6, depth=2, shrink=1.0), TypeError, "shrink must be a callable (v, t) -> v"),
    (lambda: sl.LISTA(4, 6, depth=2, step=-1.0), ValueError, "step must lie in (0, inf]"),
    (lambda: sl.LISTA(4, 6, depth=2, dictionary=x0), ValueError, "dictionary must be (4, 6)"),
    (lambda: sl.LISTA(4, 6, depth=2, support=0.1), TypeError, "support must be a SupportSelection or None, got 0.1"),
    (
        lambda: sl.LISTA(4, 6, depth=2, variant="hyper", support=sl.SupportSelection()),
        ValueError,
        '"hyper" selects its support by constants[2]; leave support=None',
    ),
    (lambda: sl.LISTA(4, 6, depth=2, constants=(1.0, 1.0, 1.0)), ValueError, 'constants belong to variant="hyper"'),
    (lambda: sl.LISTA(4, 6, depth=2, fall=0.9), ValueError, 'fall belongs to variant="hyper"'),
    (lambda: sl.LISTA(4, 6, depth=2, variant="hyper", fall=0.0), ValueError, "fall must lie in (0, 1], got 0.0"),
    (lambda: sl.LISTA(4, 6, depth=2, variant="hyper", fall="1"), TypeError, "fall must be a number, got str"),
    (
        lambda: sl.LISTA(4, 6, depth=2, variant="hyper", constants=(1.0, 1.0)),
        ValueError,
        "constants must be three numb",
    ),
    (lambda: sl.LISTA(4, 6, depth=2, variant="hyper", constants=3.0), ValueError, "constants must be three numbers"),
    (lambda: sl.LISTA(4, 6, depth=2, variant="hyper", constants=(1, -1, 1)), ValueError, "c2 must lie in [0, inf]"),
    (
        lambda: sl.LISTA(4, 6, depth=2, variant="hyper", constants=(1, 0.0, 1), learn=("lam",)),
        ValueError,
        "learned constants stay positive and cannot start at (1, 0.0, 1); give constants > 0",
    ),
    (lambda: sl.LISTA(4, 6, depth=2)(x0.int()), TypeError, "x must be floating point, got torch.int32; use x.float()"),
    (lambda: sl.LISTA(4, 6, depth=2)(x0[:, :3]), ValueError, "x must be (..., 4) for D of shape (4, 6)"),
    (lambda: sl.LISTA(4, 6, depth=2)(x0.double()), TypeError, "x and D must have one dtype"),
    (lambda: sl.LISTA(4, 6, depth=2).decode(x0), ValueError, "z must be (..., 6), got (3, 4)"),
    (lambda: sl.LISTA(4, 6, depth=2).tune(x0, x0), ValueError, 'tune sets the constants of "hyper"'),
    (
        lambda: sl.LISTA(4, 6, depth=2, variant="hyper").tune(x0, x0),
        ValueError,
        "codes must be (3, 6) for x of shape (3, 4), got (3, 4)",
    ),
    (
        lambda: sl.LISTA(4, 6, depth=2, variant="hyper").tune(x0, torch.zeros(3, 6), trials=0),
        ValueError,
        "trials must be at least 1, got 0",
    ),
    (lambda: sl.SupportSelection(rate=-1.0), ValueError, "rate must lie in [0, inf], got -1.0"),
    (lambda: sl.SupportSelection(most=101), ValueError, "most must lie in [0, 100], got 101"),
    (lambda: sl.SupportSelection(rate="1"), TypeError, "rate must be a number, got str"),
    (lambda: F.analytic_rate(D0.int(), 2), TypeError, "D must be floating point, got torch.int32"),
    (lambda: F.analytic_rate(D0[0], 2), ValueError, "D must be a matrix (n_features, n_atoms), got shape (6,)"),
    (lambda: F.analytic_rate(D0, 7), ValueError, "n_active must be at most 6, the atoms of D"),
    (lambda: F.analytic_rate(D0, 0), ValueError, "n_active must be at least 1"),
    (lambda: F.analytic_rate(D0, 2, draws=0), ValueError, "draws must be at least 1"),
    (lambda: F.analytic_rate(D0, 2, step=0.0), ValueError, "step must lie in (0, inf]"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[f"{i}-{w[2][:30]}" for i, w in enumerate(WRONG)])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
