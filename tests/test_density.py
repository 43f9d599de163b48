"""DensityTarget: the strengths at which groups vanish, the share that stays, and the lam found on convex problems."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import cvxpy as cp
import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import sparselayers as sl
from sparselayers.ops.diagonal import Diagonal
from sparselayers.sparsify.metric import Rate
from sparselayers.sparsify.vanishing import ENTRIES, ROWS, shrinks, vanishing

from .conformance import bits, loss_of, network

PENALTIES = [
    sl.L1(),
    sl.NonnegativeL1(),
    sl.ElasticNet(),
    sl.L0(),
    sl.LHalf(),
    sl.TransformedL1(),
    sl.LogSum(),
    sl.MCP(),
    sl.SCAD(),
    sl.GroupL2(),
    sl.GroupL2(sqrt_size=True),
    sl.LInf(),
    sl.SparseGroup(),
    sl.GroupExclusive(),
    sl.GroupL0(),
    sl.GroupMCP(),
    sl.SparseGroupL0(),
    sl.L1MinusL2(0.5),
]
STUBBORN = [sl.Ridge(), sl.Exclusive(), sl.Nonnegative(), sl.Simplex(), sl.L1MinusL2(), sl.HoyerSquare()]


def alive(penalty: sl.Penalty, weights: list[Tensor]) -> Tensor:
    """Which groups are nonzero, of weights cut by their rows."""
    return torch.cat([(w != 0).flatten() if penalty.separable else (w != 0).flatten(1).any(1) for w in weights])


def density(regularizer: sl.Regularizer) -> float:
    weights = [p.detach() for p in regularizer._caught().values()]
    return float(alive(regularizer.penalty, weights).double().mean())


# The strength at which a group vanishes


METRICS = ("none", "diagonal", "two lr")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_groups_vanish_at_their_strength_and_not_before(penalty: sl.Penalty, metric: str) -> None:
    if metric != "none" and not penalty.has_metric:
        pytest.skip("no prox in a metric")
    for scale in (0.1, 30.0):  # within and beyond the bends of MCP and SCAD
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 9, dtype=torch.float64), nn.Tanh(), nn.Linear(9, 5, dtype=torch.float64))
        regularizer = sl.Regularizer(model, penalty, 0.0, groups="neuron" if metric == "two lr" else "output")
        parameters = regularizer._caught()
        for p in parameters.values():
            p.data.mul_(scale)
        rates = {name: Rate(0.05) for name in parameters}
        if metric == "diagonal":
            rates = {n: Rate(0.05, Diagonal(torch.rand_like(p), 2.0, 0.1, 0.2)) for n, p in parameters.items()}
        if metric == "two lr":
            rates = {name: Rate(0.05 if "weight" in name else 0.02) for name in parameters}
        found = vanishing(penalty, regularizer.blocks, parameters, rates)
        start = {name: p.detach().clone() for name, p in parameters.items()}

        def left(
            lam: float,
            regularizer: sl.Regularizer = regularizer,
            rates: dict = rates,
            parameters: dict = parameters,
            start: dict = start,
        ) -> Tensor:
            for name, p in parameters.items():
                p.data.copy_(start[name])
            regularizer.lam = lam
            regularizer._apply(rates)
            rows = [p.detach() for p in parameters.values()]
            if metric == "two lr" and not penalty.separable:
                rows = [torch.cat([w, b[:, None]], 1) for w, b in zip(rows[::2], rows[1::2], strict=True)]
            return alive(penalty, rows)

        if penalty == sl.NonnegativeL1():
            assert torch.equal(found > 0, torch.cat([p.detach().flatten() for p in parameters.values()]) > 0)
        for lam in found.sort().values[:: max(1, len(found) // 10)].tolist():
            assert torch.equal(left(lam * (1 + 1e-6)), found > lam * (1 + 1e-6))
            assert torch.equal(left(lam * (1 - 1e-6)), found > lam * (1 - 1e-6))


def test_of_many_groups_an_even_part_is_looked_at() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(1024, 1024, bias=False)
    layer.weight.data.mul_(torch.linspace(0.1, 2, 1024))  # columns differ: a stride of 8 would meet some of them only
    for groups in ("output", "input"):
        regularizer = sl.Regularizer(layer, sl.L1(), 0.0, groups)
        found = vanishing(sl.L1(), regularizer.blocks, {"weight": layer.weight}, {"weight": Rate(0.1)})
        assert ENTRIES / 2 < len(found) <= ENTRIES
        for q in (0.1, 0.5, 0.9):
            true = (layer.weight.detach().abs() / 0.1).flatten().kthvalue(int(q * 2**20)).values
            assert abs(float((found <= true).double().mean()) - q) < 0.004
    tall = nn.Linear(2, 5 * ROWS, bias=False)
    regularizer = sl.Regularizer(tall, sl.GroupL2(), sl.DensityTarget(0.3, warmup=0))
    regularizer.step(0.1)
    assert abs(density(regularizer) - 0.3) < 0.02
    regularizer = sl.Regularizer(tall, sl.L1(), sl.DensityTarget(0.1, warmup=0), exclude="nothing")
    regularizer.step(0.1)
    assert abs(density(regularizer) - 0.1) < 0.02


def test_which_penalties_shrink() -> None:
    assert [p for p in PENALTIES if not shrinks(p, 4)] == [sl.L0(), sl.GroupL0()]
    assert shrinks(sl.Grouped(sl.GroupL2(), 2), 4)


# The share that stays, while a network is trained


OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], str | None]] = {
    "SGD": (lambda p, r: SGD(p, lr=0.05, momentum=0.9), "attach"),
    "ProxSGD": (lambda p, r: sl.ProxSGD(p, lr=0.05, momentum=0.9, regularizer=r), None),
    "ProxSGD, lr 10 times less": (lambda p, r: sl.ProxSGD(p, lr=0.005, momentum=0.9, regularizer=r), None),
    "AdamW": (lambda p, r: AdamW(p, lr=0.01), "attach"),
    "AdamW in its metric": (lambda p, r: AdamW(p, lr=0.01), "optimizer"),
    "ProxAdamW": (lambda p, r: sl.ProxAdamW(p, lr=0.01, regularizer=r), None),
}


def teacher() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 16, generator=g)
    return x, (x[:, :2].sum(1) > 0).long() + 2 * (x[:, 2] > 0).long()


X, LABELS = teacher()


def student(depth: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    widths = [16, *[40] * depth]
    hidden = [[nn.Linear(a, b), nn.ReLU()] for a, b in pairwise(widths)]
    return nn.Sequential(*[m for pair in hidden for m in pair], nn.Linear(40, 4))


def train(model: nn.Module, optimizer: Optimizer, steps: int, schedule=None, seed: int = 0) -> None:
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(X), (32,), generator=g)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X[batch]), LABELS[batch]).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def made(model: nn.Module, penalty: sl.Penalty, lam, optimizer: str) -> tuple[sl.Regularizer, Optimizer]:
    last = str(len(model) - 1)
    regularizer = sl.Regularizer(model, penalty, lam, exclude=f"{last}.*")
    make, how = OPTIMIZERS[optimizer]
    built = make(model.parameters(), regularizer)
    if how is not None:
        regularizer.attach(built, metric=None if how == "attach" else how)
    return regularizer, built


MAIN = [sl.L1(), sl.GroupL2(), sl.SparseGroup(), sl.GroupL0(), sl.MCP()]
TRAINED = [
    (penalty, optimizer)
    for penalty in PENALTIES
    for optimizer in (OPTIMIZERS if penalty in MAIN else ("ProxSGD", "ProxAdamW"))
    if penalty.has_metric or optimizer != "ProxAdamW"
]


@pytest.mark.parametrize(("penalty", "optimizer"), TRAINED, ids=lambda x: x if isinstance(x, str) else repr(x))
def test_the_share_is_reached_and_kept(penalty: sl.Penalty, optimizer: str) -> None:
    model = student()
    regularizer, built = made(model, penalty, sl.DensityTarget(0.25, warmup=60, delay=20), optimizer)
    train(model, built, 20)
    assert regularizer.lam == 0.0
    train(model, built, 40)
    signed = penalty == sl.NonnegativeL1()  # where fewer are positive no strength raises their number
    assert density(regularizer) > 0.25 or signed
    train(model, built, 20)
    for seed in range(15):
        train(model, built, 1, seed=seed)
        assert density(regularizer) <= 0.27
        assert density(regularizer) >= 0.23 or signed
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("penalty", [sl.L1(), sl.GroupL2(), sl.GroupL0()], ids=repr)
@pytest.mark.parametrize("optimizer", ["ProxSGD", "ProxAdamW"])
def test_through_an_lr_schedule_and_without_collapse(penalty: sl.Penalty, optimizer: str) -> None:
    model = student()
    regularizer, built = made(model, penalty, sl.DensityTarget(0.3, warmup=250, delay=100), optimizer)
    # lr starts at exactly 0, and comes down to a hundredth of its peak.
    schedule = torch.optim.lr_scheduler.LambdaLR(built, lambda k: min(k / 30, 1.0, max(0.01, 1 - k / 450)))
    train(model, built, 350, schedule)
    for seed in range(10):
        train(model, built, 10, schedule, seed)
        assert abs(density(regularizer) - 0.3) <= 0.02
    accuracy = (model(X).argmax(-1) == LABELS).double().mean()
    assert accuracy > 0.75  # dense 1.0, by chance 0.25


def test_one_share_for_the_whole_model_and_layers_compete() -> None:
    model = student()
    regularizer, built = made(model, sl.GroupL0(), sl.DensityTarget(0.5, warmup=30), "ProxSGD")
    model[2].weight.data.mul_(0.2)
    train(model, built, 40)
    first, second = (int(alive(sl.GroupL0(), [p.detach()]).sum()) for p in regularizer._caught().values())
    assert first + second == 40
    assert first > second


@pytest.mark.parametrize(("target", "left"), [(1.0, 80), (0.001, 1), (0.4999, 40)])
def test_the_count_is_rounded_and_at_least_one(target: float, left: int) -> None:
    model = student()
    regularizer, built = made(model, sl.GroupL2(), sl.DensityTarget(target, warmup=3), "ProxSGD")
    train(model, built, 6)
    assert round(density(regularizer) * 80) == left


def test_what_has_no_gradient_is_not_counted() -> None:
    model = student()
    for p in model[0].parameters():
        p.requires_grad_(False)
    before = model[0].weight.clone()
    regularizer, built = made(model, sl.GroupL2(), sl.DensityTarget(0.5, warmup=2), "ProxSGD")
    train(model, built, 4)
    assert torch.equal(model[0].weight, before)
    assert int(model[2].weight.any(1).sum()) == 20
    lam = regularizer.lam
    built.zero_grad()
    built.step()
    assert regularizer.lam == lam


@pytest.mark.parametrize("groups", ["output", "neuron", "input", "tensor"])
def test_groups_of_every_cut(groups: str) -> None:
    model = student()
    regularizer = sl.Regularizer(model, sl.GroupL2(), sl.DensityTarget(0.5, warmup=3), groups)
    weight, bias = [], []
    for name, p in model.named_parameters():
        (weight if "weight" in name else bias).append(p)
    built = sl.ProxSGD([{"params": weight}, {"params": bias, "lr": 0.01}], lr=0.05, regularizer=regularizer)
    train(model, built, 5)
    kept = []
    for layer in (model[0], model[2], model[4]):
        w = layer.weight.detach()
        rows = {"neuron": torch.cat([w, layer.bias.detach()[:, None]], 1), "input": w.T, "tensor": w.view(1, -1)}
        kept.append(rows.get(groups, w).any(1))
    kept = torch.cat(kept)
    assert int(kept.sum()) == round(0.5 * len(kept))


def test_one_nan_leaves_lam_finite() -> None:
    model = student()
    regularizer, built = made(model, sl.GroupL2(), sl.DensityTarget(0.5, warmup=3), "ProxSGD")
    model[0].weight.data[3, 2] = torch.nan
    train(model, built, 1)
    assert torch.isfinite(regularizer.lam)


def test_step_by_hand_steers_too_and_value_uses_the_lam_found() -> None:
    layer = nn.Linear(3, 10, bias=False)
    regularizer = sl.Regularizer(layer, sl.GroupL2(), sl.DensityTarget(0.4, warmup=0))
    assert regularizer.value() == 0
    regularizer.step(0.1)
    assert int(layer.weight.any(1).sum()) == 4
    torch.testing.assert_close(regularizer.value(), regularizer.lam * layer.weight.norm(dim=1).sum())
    assert regularizer.lam.dtype == torch.float32
    regularizer.lam = 0.5
    regularizer.step(0.0)
    assert regularizer.lam == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    layer = nn.Linear(8, 10, bias=False, dtype=dtype)
    regularizer = sl.Regularizer(layer, sl.GroupL2(), sl.DensityTarget(0.4, warmup=0))
    regularizer.step(1e-3)
    assert int(layer.weight.any(1).sum()) == 4


# Checkpoints and skipped steps


@pytest.mark.parametrize("optimizer", ["ProxSGD", "AdamW"])
@pytest.mark.parametrize("penalty", [sl.L1(), sl.GroupL0()], ids=repr)
def test_a_checkpoint_goes_on_bit_for_bit(penalty: sl.Penalty, optimizer: str) -> None:
    target = sl.DensityTarget(0.3, warmup=12, delay=3)
    model = student()
    regularizer, built = made(model, penalty, target, optimizer)
    train(model, built, 8)
    saved = copy.deepcopy([x.state_dict() for x in (model, built, regularizer)])
    twin = student()
    other, others = made(twin, penalty, target, optimizer)
    for x, state in zip((twin, others, other), saved, strict=True):
        x.load_state_dict(state)
    train(model, built, 9)
    train(twin, others, 9)
    assert bits(twin) == bits(model)
    assert other.lam == regularizer.lam


RULES = [
    (sl.GroupL2(), sl.DensityTarget(0.4, warmup=6, delay=1)),
    (sl.GroupL0(), sl.DensityTarget(0.4, warmup=6, delay=1)),
    (sl.GroupL2(), sl.LamSchedule(0.2, warmup=4, delay=1, power=3.0)),
    (sl.GroupL2(), sl.LamSchedule(0.2, delay=2)),
]


@pytest.mark.parametrize(("penalty", "rule"), RULES, ids=repr)
@pytest.mark.parametrize("fused", [False, True])
def test_skipped_steps_do_not_count(penalty: sl.Penalty, rule, fused: bool) -> None:
    models = [network() for _ in range(2)]
    regularizers = [sl.Regularizer(m, penalty, rule) for m in models]
    optimizers = [AdamW(m.parameters(), lr=0.02, fused=fused) for m in models]
    for regularizer, optimizer in zip(regularizers, optimizers, strict=True):
        regularizer.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=1000)
    for k in range(9):
        skip = k in (0, 3, 7)
        optimizers[0].zero_grad()
        scaler.scale(loss_of(models[0]) * (torch.inf if skip else 1.0)).backward()
        scaler.step(optimizers[0])
        scaler.update()
        if not skip:
            optimizers[1].zero_grad()
            loss_of(models[1]).backward()
            optimizers[1].step()
        torch.testing.assert_close(models[0].state_dict(), models[1].state_dict())
        torch.testing.assert_close(float(regularizers[0].lam), float(regularizers[1].lam), rtol=1e-5, atol=1e-7)
    assert regularizers[0]._progress["k"] == regularizers[1]._progress["k"] == 6


# Convex problems: the lam found is the one whose solution has that share


def test_lasso_with_an_orthogonal_design() -> None:
    c = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer = nn.Linear(30, 1, bias=False, dtype=torch.float64)
    regularizer = sl.Regularizer(layer, sl.L1(), sl.DensityTarget(0.3, warmup=40))
    optimizer = sl.ProxSGD(layer.parameters(), lr=0.5, regularizer=regularizer)
    for _ in range(150):
        optimizer.zero_grad()
        (0.5 * (layer.weight - c).square().sum()).backward()
        optimizer.step()
    lam = c.abs().sort(descending=True).values[9]  # the knot at which the tenth would enter
    torch.testing.assert_close(regularizer.lam, lam)
    torch.testing.assert_close(layer.weight.detach().squeeze(0), torch.sign(c) * (c.abs() - lam).clamp_min(0))


def regression(seed: int, outputs: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((60, 20)) @ (np.eye(20) + 0.3 * rng.standard_normal((20, 20)))
    W = rng.standard_normal((outputs, 20)) * (rng.random(20) < 0.5)
    return torch.from_numpy(A), torch.from_numpy(A @ W.T + 0.5 * rng.standard_normal((60, outputs)))


def solve(penalty: sl.Penalty, A: Tensor, B: Tensor, target: float, kind: str) -> tuple[Tensor, Tensor, float]:
    layer = nn.Linear(A.shape[1], B.shape[1], bias=False, dtype=torch.float64)
    layer.weight.data.zero_()
    regularizer = sl.Regularizer(layer, penalty, sl.DensityTarget(target, warmup=300, delay=50), groups="input")
    lr = 0.9 * len(A) / float(torch.linalg.matrix_norm(A, 2)) ** 2
    if kind == "ProxSGD":
        optimizer = sl.ProxSGD(layer.parameters(), lr=lr, momentum=0.5, regularizer=regularizer)
    else:
        optimizer = sl.ProxAdamW(layer.parameters(), lr=0.03, regularizer=regularizer)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1.0 if kind == "ProxSGD" else (1 - k / 2000) ** 2)
    for _ in range(2000):
        optimizer.zero_grad()
        ((layer(A) - B).square().sum() / (2 * len(A))).backward()
        optimizer.step()
        decay.step()
    return layer.weight.detach(), torch.as_tensor(regularizer.lam), float(regularizer.stationarity(lr))


@pytest.mark.parametrize("kind", ["ProxSGD", "ProxAdamW"])
@pytest.mark.parametrize(("seed", "target"), [(0, 0.5), (1, 0.2), (2, 0.35)])
def test_lasso_against_scikit_learn(seed: int, target: float, kind: str) -> None:
    A, b = regression(seed, 1)
    w, lam, _ = solve(sl.L1(), A, b, target, kind)
    true = Lasso(alpha=float(lam), fit_intercept=False, tol=1e-12, max_iter=100000).fit(A.numpy(), b.numpy().ravel())
    scale = np.abs(true.coef_).max()
    np.testing.assert_allclose(w.numpy().ravel(), true.coef_, atol=(1e-3 if kind == "ProxSGD" else 3e-2) * scale)
    assert int((w != 0).sum()) == round(20 * target)
    assert abs(int((np.abs(true.coef_) > 1e-9).sum()) - round(20 * target)) <= 1


@pytest.mark.parametrize("target", [0.5, 0.2])
def test_group_lasso_against_cvxpy(target: float) -> None:
    A, B = regression(3, 3)
    w, lam, residual = solve(sl.GroupL2(), A, B, target, "ProxSGD")
    W = cp.Variable((3, 20))
    loss = cp.sum_squares(A.numpy() @ W.T - B.numpy()) / (2 * len(A))
    cp.Problem(cp.Minimize(loss + float(lam) * cp.sum(cp.norm(W, 2, axis=0)))).solve(solver=cp.CLARABEL)
    np.testing.assert_allclose(w.numpy(), W.value, atol=1e-3 * np.abs(W.value).max())
    assert int(w.any(0).sum()) == round(20 * target)
    assert abs(int((np.linalg.norm(W.value, axis=0) > 1e-6).sum()) - round(20 * target)) <= 1
    assert residual < 1e-3


# Errors and what is printed


BAD = [
    (lambda: sl.DensityTarget(0.0), ValueError, r"density must lie in \(0, 1\], got 0.0"),
    (lambda: sl.DensityTarget(1.1), ValueError, r"density must lie in \(0, 1\], got 1.1"),
    (lambda: sl.DensityTarget("0.1"), TypeError, "density must be a number, got str"),
    (lambda: sl.DensityTarget(0.1, warmup=-1), ValueError, "warmup must be at least 0, got -1"),
    (lambda: sl.DensityTarget(0.1, warmup=1.0), TypeError, "warmup must be an int, got float"),
    (lambda: sl.DensityTarget(0.1, delay=-1), ValueError, "delay must be at least 0, got -1"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[m for *_, m in BAD])
def test_bad_input(call: Callable, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("penalty", STUBBORN, ids=repr)
def test_penalties_that_no_strength_makes_zero(penalty: sl.Penalty) -> None:
    with pytest.raises(ValueError, match=r"has no lam_max, .* give lam as a number, or take a penalty such as"):
        sl.Regularizer(nn.Linear(4, 4), penalty, sl.DensityTarget(0.5))
    regularizer = sl.Regularizer(nn.Linear(4, 4), penalty, 0.5)
    with pytest.raises(ValueError, match="has no lam_max"):
        regularizer.lam = sl.DensityTarget(0.5)
    assert regularizer.lam == 0.5


def test_reprs() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.data[0] = 0
    regularizer = sl.Regularizer(layer, sl.GroupL2(), sl.DensityTarget(0.5))
    assert repr(regularizer) == "Regularizer(GroupL2(sqrt_size=False), lam=0.0, groups='output', 1 parameter)"
    freeze = regularizer.freeze()
    assert repr(freeze) == "Freeze(2 zeros in 1 parameter)"
    freeze.remove()
    assert repr(freeze) == "Freeze(2 zeros in 1 parameter, removed)"
