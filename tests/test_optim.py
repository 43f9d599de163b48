"""Prox steps in the metric of the optimizer, ProxSGD and ProxAdamW, strengths that move, the stationarity certificate."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

import sparselayers as sl
from sparselayers.sparsify.metric import KNOWN, adaptive

from . import conformance
from .conformance import COLUMNS, ROWS, bits, diagonal, loss_of, network

CELLS = [(row, column) for row in ROWS for column in COLUMNS]


@pytest.mark.parametrize(("row", "column"), CELLS, ids=[f"{row}: {column}" for row, column in CELLS])
def test_conformance(row: str, column: str) -> None:
    COLUMNS[column](row)


def test_conformance_says_what_fails() -> None:
    assert conformance.outcome(COLUMNS["steps"], next(iter(ROWS))) == "ok"
    assert conformance.outcome(COLUMNS["steps"], "no such row") == "KeyError"


# What they converge to


def problem() -> tuple[Tensor, Tensor]:
    """Features of different scale, so that Adam's step sizes differ."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 8)) * rng.uniform(0.3, 3, size=8)
    W = rng.standard_normal((6, 8))
    W[[1, 3]] = 0
    W[:, [2, 5]] = 0
    return torch.from_numpy(X), torch.from_numpy(X @ W.T + 0.1 * rng.standard_normal((60, 6)))


X, Y = problem()
LAM = 0.3
CONVEX: dict[str, tuple[sl.Penalty, Callable]] = {
    "lasso": (sl.L1(), lambda W: cp.sum(cp.abs(W))),
    "group lasso": (sl.GroupL2(), lambda W: cp.sum(cp.norm(W, 2, axis=1))),
    "sparse group lasso": (sl.SparseGroup(), lambda W: 0.5 * cp.sum(cp.abs(W)) + 0.5 * cp.sum(cp.norm(W, 2, axis=1))),
    "exclusive lasso": (sl.Exclusive(), lambda W: 0.5 * cp.sum(cp.square(cp.norm(W, 1, axis=1)))),
    "elastic net": (sl.ElasticNet(), lambda W: 0.5 * cp.sum(cp.abs(W)) + 0.25 * cp.sum_squares(W)),
}


def objective(W: Tensor, penalty: sl.Penalty) -> float:
    return float((X @ W.T - Y).square().sum() / (2 * len(X)) + LAM * penalty.value(W).sum())


@pytest.fixture(scope="module")
def optima() -> dict[str, Tensor]:
    found = {}
    for name, (_, value) in CONVEX.items():
        W = cp.Variable((6, 8))
        loss = cp.sum_squares(X.numpy() @ W.T - Y.numpy()) / (2 * len(X))
        cp.Problem(cp.Minimize(loss + LAM * value(W))).solve(solver=cp.CLARABEL)
        found[name] = torch.from_numpy(W.value)
    return found


def fit(
    penalty: sl.Penalty, make: Callable, decay: bool, n_steps: int = 1200
) -> tuple[nn.Linear, sl.Regularizer, Optimizer]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(8, 6, bias=False, dtype=torch.float64)
    regularizer = sl.Regularizer(layer, penalty, LAM)
    optimizer = make(layer.parameters(), regularizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: (1 - k / n_steps) ** 2 if decay else 1.0)
    for _ in range(n_steps):
        backward(layer)
        optimizer.step()
        schedule.step()
    backward(layer)
    return layer, regularizer, optimizer


def backward(layer: nn.Linear) -> None:
    layer.zero_grad()
    ((layer(X) - Y).square().sum() / (2 * len(X))).backward()


def attached(kind: Callable, metric: str | None, **options) -> Callable:
    def make(params, regularizer: sl.Regularizer) -> Optimizer:
        optimizer = kind(params, **options)
        regularizer.attach(optimizer, metric=metric, floor=0.0)
        return optimizer

    return make


EXACT = {
    "ProxAdamW": (lambda p, r: sl.ProxAdamW(p, lr=0.05, regularizer=r), True),
    "ProxAdamW(amsgrad)": (lambda p, r: sl.ProxAdamW(p, lr=0.05, amsgrad=True, regularizer=r), True),
    "Adagrad": (attached(Adagrad, "optimizer", lr=0.5), False),
    "RMSprop": (attached(RMSprop, "optimizer", lr=0.02), True),
    "NAdam": (attached(NAdam, "optimizer", lr=0.05), True),
    "ProxSGD": (lambda p, r: sl.ProxSGD(p, lr=0.1, regularizer=r), False),
    "ProxSGD(momentum)": (lambda p, r: sl.ProxSGD(p, lr=0.02, momentum=0.9, regularizer=r), False),
    "ProxSGD(dampening)": (lambda p, r: sl.ProxSGD(p, lr=0.1, momentum=0.8, dampening=0.8, regularizer=r), False),
    "ProxSGD(nesterov)": (lambda p, r: sl.ProxSGD(p, lr=0.02, momentum=0.9, nesterov=True, regularizer=r), False),
}
PAIRS = [(name, "group lasso") for name in EXACT] + [
    (name, kind) for name in ("ProxAdamW", "ProxSGD(nesterov)") for kind in CONVEX if kind != "group lasso"
]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_they_reach_the_true_minimum(name: str, kind: str, optima: dict[str, Tensor]) -> None:
    make, decay = EXACT[name]
    penalty = CONVEX[kind][0]
    layer, regularizer, optimizer = fit(penalty, make, decay)
    W = layer.weight.detach()
    best = optima[kind]
    torch.testing.assert_close(W, best, rtol=0, atol=5e-5)  # the accuracy of the solver's answer
    assert objective(W, penalty) <= objective(best, penalty) * (1 + 1e-9)
    bound = 1e-3 if name == "NAdam" else 1e-5  # the weights of its gradients do not sum to 1 while mu still moves
    assert regularizer.stationarity(0.05) < bound
    assert regularizer.stationarity(optimizer) < bound
    assert (W == 0).sum() >= 16


def test_the_euclidean_prox_after_adam_does_not(optima: dict[str, Tensor]) -> None:
    layer, regularizer, optimizer = fit(sl.L1(), attached(Adam, None, lr=0.05), decay=True)
    assert (layer.weight - optima["lasso"]).abs().max() > 0.05
    assert objective(layer.weight.detach(), sl.L1()) > 1.01 * objective(optima["lasso"], sl.L1())
    assert regularizer.stationarity(optimizer) > 0.1


def test_momentum_without_the_pull_has_another_minimum(optima: dict[str, Tensor]) -> None:
    """SGD with `attach` sums gradients, not pulls: it finds the minimum for lam (1 - momentum)."""
    momentum = 0.5

    def make(params, regularizer: sl.Regularizer) -> Optimizer:
        regularizer.lam = LAM / (1 - momentum)
        return attached(SGD, None, lr=0.02, momentum=momentum)(params, regularizer)

    layer, regularizer, _ = fit(sl.L1(), make, decay=False)
    torch.testing.assert_close(layer.weight.detach(), optima["lasso"], rtol=0, atol=5e-5)
    regularizer.lam = LAM
    assert regularizer.stationarity() < 1e-5


# The metric


MAKERS: dict[str, Callable[[list], Optimizer]] = {
    "Adam": lambda p: Adam(p, lr=0.01),
    "AdamW(amsgrad)": lambda p: AdamW(p, lr=0.01, amsgrad=True),
    "Adam(beta2=0)": lambda p: Adam(p, lr=0.01, betas=(0.9, 0.0)),
    "Adam(tensor betas)": lambda p: Adam(
        p, lr=torch.tensor(0.01), betas=(torch.tensor(0.9), torch.tensor(0.99)), foreach=False
    ),
    "NAdam": lambda p: NAdam(p, lr=0.01),
    "RMSprop": lambda p: RMSprop(p, lr=0.01),
    "RMSprop(centered)": lambda p: RMSprop(p, lr=0.01, centered=True),
    "Adagrad": lambda p: Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
    "Adagrad(lr_decay)": lambda p: Adagrad(p, lr=0.01, lr_decay=0.5),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_d_is_what_the_optimizer_divides_by(make: Callable, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(4, 5, dtype=dtype, generator=g))
    optimizer = make([p])
    for _ in range(4):
        p.grad = torch.randn(4, 5, dtype=dtype, generator=g)
        optimizer.step()
        group = optimizer.param_groups[0]
        if isinstance(optimizer, NAdam):
            state = optimizer.state[p]
            expected = (state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))).sqrt() + group["eps"]
        else:
            expected = diagonal(optimizer, group, p)
        rate = adaptive(optimizer)[id(p)]
        tensors = isinstance(group.get("betas", (0, 0))[1], Tensor)  # float32 themselves
        torch.testing.assert_close(rate.metric.whole(), expected, **({"rtol": 1e-4, "atol": 0} if tensors else {}))
        assert rate.lr is group["lr"]
        held = next(iter(adaptive(optimizer, floor=0.5).values())).metric.whole()
        root = expected.square().mean().sqrt()
        torch.testing.assert_close(held, expected.clamp_min(0.5 * root), rtol=1e-3, atol=1e-6)


def test_every_known_optimizer_is_tested() -> None:
    assert {type(make([nn.Parameter(torch.ones(1))])) for make in MAKERS.values()} == set(KNOWN)


@pytest.mark.parametrize("penalty", [sl.L1(), sl.GroupL2(), sl.SparseGroup(), sl.Exclusive(), sl.L0()], ids=repr)
@pytest.mark.parametrize("groups", ["output", "input", "neuron"])
@pytest.mark.parametrize("wide", [7, 8001], ids=["small", "large"])
def test_attach_in_the_metric_is_the_prox_in_that_metric(penalty: sl.Penalty, groups: str, wide: int) -> None:
    """Of joined tensors, of large ones, of columns, and of neurons whose parts have different lr."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, wide), nn.Linear(wide, 4)).double()
    weights, biases = [model[0].weight, model[1].weight], [model[0].bias, model[1].bias]
    optimizer = Adam([{"params": weights}, {"params": biases, "lr": 0.05}], lr=0.01)
    twin = copy.deepcopy(model)
    plain = Adam(
        [{"params": [twin[0].weight, twin[1].weight]}, {"params": [twin[0].bias, twin[1].bias], "lr": 0.05}], lr=0.01
    )
    sl.Regularizer(model, penalty, lam=0.05, groups=groups).attach(optimizer, metric="optimizer", floor=0.0)
    for _ in range(2):
        for m, o in ((model, optimizer), (twin, plain)):
            g = torch.Generator().manual_seed(3)
            for p in m.parameters():
                p.grad = torch.randn(p.shape, dtype=p.dtype, generator=g) + 0.2
            o.step()
        for layer in twin:
            d, e = (diagonal(plain, plain.param_groups[0], p) for p in (layer.weight, layer.bias))
            w, b = layer.weight.data, layer.bias.data.unsqueeze(-1)
            if groups == "neuron":
                rows, metric = torch.cat([w, b], 1), torch.cat([d / 0.01, e.unsqueeze(-1) / 0.05], 1)
                new = penalty.prox(rows, 0.05, metric=metric)
                layer.weight.data.copy_(new[:, :-1])
                layer.bias.data.copy_(new[:, -1])
            elif groups == "input":
                layer.weight.data.copy_(penalty.prox(w.mT.contiguous(), 0.01 * 0.05, metric=d.mT).mT)
            else:
                layer.weight.data.copy_(penalty.prox(w, 0.01 * 0.05, metric=d))
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_in_the_metric(dtype: torch.dtype) -> None:
    layer = nn.Linear(6, 5, bias=False, dtype=dtype)
    layer.weight.data.copy_(torch.linspace(-0.5, 0.5, 30).view(5, 6))
    optimizer = AdamW(layer.parameters(), lr=0.01)
    sl.Regularizer(layer, sl.L1(), lam=5.0).attach(optimizer, metric="optimizer")
    for _ in range(3):
        layer.weight.grad = torch.linspace(2, -1, 30).view(5, 6).to(dtype)
        optimizer.step()
    assert layer.weight.isfinite().all()
    assert (layer.weight == 0).any()


def test_the_floor_keeps_what_is_rarely_visited() -> None:
    """A row that saw one gradient long ago has a tiny D; without a floor the next steps shrink it to nothing."""
    left = {}
    for floor in (0.0, 0.01):
        layer = nn.Linear(4, 3, bias=False)
        layer.weight.data.fill_(1.0)
        optimizer = Adam(layer.parameters(), lr=1e-3, betas=(0.9, 0.9))
        sl.Regularizer(layer, sl.GroupL2(), lam=0.01).attach(optimizer, metric="optimizer", floor=floor)
        for k in range(300):
            layer.weight.grad = torch.ones(3, 4) * torch.tensor([[1.0], [1.0], [float(k == 0)]])
            layer.weight.grad[1] *= -1
            optimizer.step()
        left[floor] = layer.weight.detach().norm(dim=1)
    assert left[0.0][2] == 0
    assert left[0.01][2] > 0
    torch.testing.assert_close(left[0.0][1], left[0.01][1])


def test_nan_in_a_gradient_spoils_its_row_alone() -> None:
    for floor in (0.0, 0.01):
        layer = nn.Linear(4, 3, bias=False)
        optimizer = AdamW(layer.parameters(), lr=1e-3)
        sl.Regularizer(layer, sl.GroupL2(), lam=0.1).attach(optimizer, metric="optimizer", floor=floor)
        layer.weight.grad = torch.ones(3, 4)
        layer.weight.grad[1, 2] = torch.nan
        optimizer.step()
        assert layer.weight[1].isnan().any()
        assert layer.weight[[0, 2]].isfinite().all()


def test_lam_zero_and_lr_zero_are_bitwise_nothing() -> None:
    for lam, lr in ((0.0, 0.01), (0.3, 0.0), (0.3, torch.tensor(0.0))):
        one, other = network(), network()
        optimizer, plain = Adam(one.parameters(), lr=lr), Adam(other.parameters(), lr=lr)
        sl.Regularizer(one, sl.GroupL2(), lam, groups="neuron").attach(optimizer, metric="optimizer")
        for m, o in ((one, optimizer), (other, plain)):
            loss_of(m).backward()
            o.step()
        assert bits(one) == bits(other)


def test_empty_weights() -> None:
    layer = nn.Linear(3, 2)
    layer.register_parameter("none", nn.Parameter(torch.empty(0, 3)))
    optimizer = Adam(layer.parameters(), lr=0.1)
    sl.Regularizer(layer, sl.GroupL2(), 0.1, include=["none", "weight"]).attach(optimizer, metric="optimizer")
    for p in layer.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert layer.weight.isfinite().all()


# ProxSGD and ProxAdamW


@pytest.mark.parametrize("kind", [sl.ProxSGD, sl.ProxAdamW])
def test_without_a_strength_they_are_torchs(kind: type) -> None:
    base, options = (SGD, {"momentum": 0.9, "nesterov": True}) if kind is sl.ProxSGD else (AdamW, {"weight_decay": 0.0})
    for lam in (None, 0.0):
        one, other = network(), network()
        regularizer = None if lam is None else sl.Regularizer(one, sl.GroupL2(), lam)
        optimizer = kind(one.parameters(), lr=0.05, regularizer=regularizer, **options)
        plain = base(other.parameters(), lr=0.05, **options)
        for _ in range(3):
            for m, o in ((one, optimizer), (other, plain)):
                o.zero_grad()
                loss_of(m).backward()
                o.step()
        assert bits(one) == bits(other)
        assert isinstance(optimizer, base)
    assert sl.ProxAdamW([nn.Parameter(torch.ones(1))]).defaults["weight_decay"] == 0


@pytest.mark.parametrize("kind", [sl.ProxSGD, sl.ProxAdamW])
def test_several_regularizers(kind: type) -> None:
    model = network()
    two = [
        sl.Regularizer(model, sl.GroupL2(), 50.0, include="0.weight"),
        sl.Regularizer(model, sl.L1(), 50.0, include="2.weight"),
    ]
    optimizer = kind(model.parameters(), lr=0.1, regularizer=two)
    loss_of(model).backward()
    optimizer.step()
    assert not model[0].weight.any()
    assert not model[2].weight.any()
    assert model[3].weight.all()
    assert optimizer.regularizers == two
    with pytest.raises(ValueError, match="caught by two regularizers"):
        sl.Regularizer(model, sl.L1(), 0.1).attach(optimizer)


def test_momentum_leaves_zeros_alone() -> None:
    """A weight that stays at zero has no momentum left, so it does not jump when the pull ends."""
    layer = nn.Linear(3, 1, bias=False)
    optimizer = sl.ProxSGD(layer.parameters(), lr=0.1, momentum=0.9, regularizer=sl.Regularizer(layer, sl.L1(), 1.0))
    for _ in range(50):
        layer.weight.grad = torch.full((1, 3), 0.5)
        optimizer.step()
        after = layer.weight.detach().clone()
    assert not after.any()
    assert optimizer.state[layer.weight]["momentum_buffer"].abs().max() < 1e-6


@pytest.mark.parametrize("kind", [sl.ProxSGD, sl.ProxAdamW])
def test_a_deep_copy_of_model_and_optimizer_belongs_together(kind: type) -> None:
    model = network()
    optimizer = kind(model.parameters(), lr=0.1, regularizer=sl.Regularizer(model, sl.GroupL2(), 50.0))
    other, copied = copy.deepcopy((model, optimizer))
    before = bits(model)
    loss_of(other).backward()
    copied.step()
    assert copied.regularizers[0].model is other
    assert not other[0].weight.any()
    assert bits(model) == before
    n_hooks = len(optimizer._optimizer_step_post_hooks)
    assert len(copied._optimizer_step_post_hooks) == n_hooks
    copied.load_state_dict(copied.state_dict())
    assert len(copied._optimizer_step_post_hooks) == n_hooks


@pytest.mark.parametrize("groups", ["output", "input", "neuron", "element", "bias", "tensor", "head", "kernel"])
@pytest.mark.parametrize("kind", [sl.ProxSGD, sl.ProxAdamW])
def test_a_pickle_of_model_and_optimizer_belongs_together(kind: type, groups: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Conv2d(2, 4, 3, groups=2), nn.MultiheadAttention(4, 2), nn.Linear(4, 3)])
    regularizer = sl.Regularizer(model, sl.GroupL2(), sl.LamSchedule(0.5, warmup=3), groups)
    optimizer = kind(model.parameters(), lr=0.05, regularizer=regularizer)
    model[2].weight.data[1] = 0
    held = regularizer.freeze()

    def step(m: nn.Module, o: Optimizer) -> None:
        for p in m.parameters():
            p.grad = torch.full_like(p, 0.1)
        o.step()

    step(model, optimizer)
    file = io.BytesIO()
    torch.save((model, optimizer), file)
    file.seek(0)
    other, copied = torch.load(file, weights_only=False)
    twin = copied.regularizers[0]
    assert twin.model is other
    assert twin.lam == regularizer.lam
    assert twin.frozen.active
    before = bits(other)
    step(model, optimizer)
    assert bits(other) == before, "each has weights of its own"
    step(other, copied)
    assert bits(other) == bits(model)
    held.remove()
    assert not pickle.loads(pickle.dumps((model, regularizer)))[1].frozen.active
    twin.frozen.remove()
    assert list(regularizer.state_dict()) == list(twin.state_dict())


def test_a_pickle_of_what_attach_takes() -> None:
    """The regularizer alone, with rules and a function of the user's; its hook stays with the optimizer, by torch's rule."""
    regularizer = sl.Regularizer(network(), sl.Grouped(sl.L1(), 1), 0.1, _columns, include="*.weight")
    twin = pickle.loads(pickle.dumps(regularizer))
    assert str(twin.summary()) == str(regularizer.summary())
    for r in (regularizer, twin):
        r.step(lr=1.0)
    assert bits(twin.model) == bits(regularizer.model)


def _columns(name: str, p: nn.Parameter) -> Tensor:
    return p.T


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_a_first_step_that_is_skipped_leaves_no_garbage_in_the_momentum(
    dampening: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's fused SGD makes the momentum by empty_like and then does nothing."""
    real = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x, **options: real(x, **options).fill_(torch.nan))
    model = network()
    regularizer = sl.Regularizer(model, sl.GroupL2(), 0.01)
    options = {"lr": 0.1, "momentum": 0.9, "dampening": dampening, "fused": True}
    optimizer = sl.ProxSGD(model.parameters(), regularizer=regularizer, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    before = bits(model)
    for factor in (torch.inf, 1.0):
        optimizer.zero_grad()
        scaler.scale(loss_of(model) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        if factor != 1:
            assert bits(model) == before
            assert all(not state["momentum_buffer"].any() for state in optimizer.state.values())
    assert all(p.isfinite().all() for p in model.parameters())
    assert bits(model) != before


@pytest.mark.parametrize("flags", [{"foreach": False}, {"fused": True}], ids=["loop", "fused"])
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("kind", [SGD, sl.ProxSGD, Adam, sl.ProxAdamW])
def test_lr_as_a_tensor(kind: type, shape: tuple, flags: dict[str, bool]) -> None:
    """As for a graph that is captured: lr, and in a fused Adam the count of steps, are tensors."""
    found = []
    for lr in (0.05, torch.tensor(0.05, dtype=torch.float64).reshape(shape)):
        model = network()
        regularizer = sl.Regularizer(model, sl.GroupL2(), 0.3, groups="neuron" if kind is Adam else "output")
        options = {"momentum": 0.9} if issubclass(kind, SGD) else {}
        if kind in (SGD, Adam):
            optimizer = kind(model.parameters(), lr=lr, **options, **flags)
            regularizer.attach(optimizer, metric="optimizer" if kind is Adam else None)
        else:
            optimizer = kind(model.parameters(), lr=lr, regularizer=regularizer, **options, **flags)
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        found.append(model.state_dict())
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_at_lr_zero_momentum_takes_no_pull() -> None:
    for lr in (0.0, torch.tensor(0.0)):
        model = network()
        regularizer = sl.Regularizer(model, sl.Nonnegative(), 1.0)
        optimizer = sl.ProxSGD(model.parameters(), lr=lr, momentum=0.9, regularizer=regularizer, foreach=False)
        loss_of(model).backward()
        g = model[0].weight.grad.clone()
        optimizer.step()
        assert (model[0].weight >= 0).all()
        assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], g)


# Strengths that move


def test_lam_schedule() -> None:
    linear = sl.LamSchedule(1.0, warmup=4, delay=2, start=0.2)
    torch.testing.assert_close([linear.at(k) for k in range(9)], [0.2, 0.2, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])
    assert [sl.LamSchedule(0.3).at(k) for k in range(3)] == [0.3, 0.3, 0.3]
    assert [sl.LamSchedule(0.3, delay=1).at(k) for k in range(3)] == [0.0, 0.3, 0.3]
    cubic = sl.LamSchedule(2.0, warmup=10, power=3.0)
    for k in range(11):
        assert cubic.at(k) == pytest.approx(2 + (0 - 2) * (1 - k / 10) ** 3)


@pytest.mark.parametrize("kind", [sl.ProxSGD, sl.ProxAdamW, "attach"])
def test_a_schedule_moves_lam_at_every_step(kind: type | str) -> None:
    model = network()
    schedule = sl.LamSchedule(0.4, warmup=4)
    regularizer = sl.Regularizer(model, sl.GroupL2(), schedule)
    if isinstance(kind, str):
        optimizer = Adam(model.parameters())
        regularizer.attach(optimizer)
    else:
        optimizer = kind(model.parameters(), regularizer=regularizer)
    loss_of(model).backward()
    for k in range(6):
        assert regularizer.lam == schedule.at(k)
        optimizer.step()
    saved = regularizer.state_dict()
    other = sl.Regularizer(network(), sl.GroupL2(), sl.LamSchedule(0.4, warmup=40))
    other.load_state_dict(saved)
    assert other.lam == 0.4
    other._advance()
    assert other.lam == sl.LamSchedule(0.4, warmup=40).at(7)
    regularizer.lam = 0.7
    optimizer.step()
    assert regularizer.lam == 0.7
    assert "lam=0.7" in repr(regularizer)


def test_lam_path() -> None:
    torch.testing.assert_close(sl.lam_path(2.0, 3, 0.25), torch.tensor([2.0, 1.0, 0.5]))
    top = torch.tensor(3.0, dtype=torch.float64)
    path = sl.lam_path(top)
    assert path.shape == (10,)
    assert path.dtype == torch.float64
    torch.testing.assert_close(path[-1], 0.01 * top)
    torch.testing.assert_close(sl.lam_path(top, 1), top[None])


def test_a_path_from_lam_max_starts_at_zero_weights() -> None:
    layer = nn.Linear(8, 6, bias=False, dtype=torch.float64)
    layer.weight.data.zero_()
    backward(layer)
    regularizer = sl.Regularizer(layer, sl.GroupL2(), 0.0)
    alive = []
    for lam in sl.lam_path(regularizer.lam_max(), 4, 0.02):
        regularizer.lam = lam
        optimizer = sl.ProxSGD(layer.parameters(), lr=0.1, momentum=0.5, regularizer=regularizer)
        for _ in range(60):
            backward(layer)
            optimizer.step()
        alive.append(int(layer.weight.any(1).sum()))
    assert alive[0] == 0
    assert alive == sorted(alive)
    assert alive[-1] >= 4


# The certificate


def test_stationarity_is_the_formula() -> None:
    model = network()
    loss_of(model).backward()
    regularizer = sl.Regularizer(model, sl.GroupL2(), 0.2)
    before = bits(model)
    weights = [m.weight for m in model if isinstance(m, nn.Linear)]
    v = [p.detach() - 0.1 * p.grad for p in weights]
    new = [sl.GroupL2().prox(x, 0.1 * 0.2) for x in v]

    def size(pairs) -> Tensor:
        return sum((a - b).square().sum() for a, b in pairs).sqrt()

    pull, answer, moved = size(zip(weights, v)), size(zip(v, new)), size(zip(weights, new))  # noqa: B905
    torch.testing.assert_close(regularizer.stationarity(0.1), (moved / (pull + answer)).detach())
    torch.testing.assert_close(regularizer.stationarity(SGD(model.parameters(), lr=0.1)), regularizer.stationarity(0.1))
    torch.testing.assert_close(regularizer.stationarity(torch.tensor(0.1)), regularizer.stationarity(0.1))
    assert bits(model) == before
    assert regularizer.stationarity(0.1).shape == ()


def test_stationarity_at_zero_and_without_a_penalty() -> None:
    layer = nn.Linear(8, 6, bias=False, dtype=torch.float64)
    layer.weight.data.zero_()
    backward(layer)
    regularizer = sl.Regularizer(layer, sl.GroupL2(), 1e3)
    assert regularizer.stationarity() == 0
    regularizer.lam = 0.0
    assert regularizer.stationarity() == 1
    layer.weight.grad.zero_()
    assert regularizer.stationarity() == 0


def test_stationarity_in_adams_metric_needs_steps() -> None:
    """Before the first step there is no D, and lr alone counts; parameters that are not held take no part."""
    model = network()
    loss_of(model).backward()
    regularizer = sl.Regularizer(model, sl.GroupL2(), 0.2)
    optimizer = Adam([model[0].weight], lr=0.1)
    first = sl.Regularizer(model, sl.GroupL2(), 0.2, include="0.weight").stationarity(0.1)
    torch.testing.assert_close(regularizer.stationarity(optimizer), first)
    optimizer.step()
    assert regularizer.stationarity(optimizer) != first


LAYER = nn.Linear(2, 2)
PARAMS = list(LAYER.parameters())


def of(penalty: sl.Penalty, lam: object = 1.0) -> sl.Regularizer:
    return sl.Regularizer(LAYER, penalty, lam)


WRONG = [
    (lambda: of(sl.L1()).attach(SGD(PARAMS), metric="optimizer"), ValueError, "is known for Adagrad, Adam, AdamW, NAdam, RMSprop, got SGD; use metric=None"),
    (lambda: of(sl.L1()).attach(LBFGS(PARAMS), metric="optimizer"), ValueError, "got LBFGS"),
    (lambda: of(sl.L1()).attach(Adam(PARAMS), metric="adam"), ValueError, "metric must be None or \"optimizer\", got 'adam'"),
    (lambda: of(sl.L1()).attach(Adam(PARAMS), metric="optimizer", floor=-1.0), ValueError, r"floor must lie in \[0, inf\], got -1.0"),
    (lambda: of(sl.L1MinusL2()).attach(Adam(PARAMS), metric="optimizer"), ValueError, r"L1MinusL2\(alpha=1.0\) has no prox in a metric.*those that have: .*GroupL2.*or use metric=None"),
    (lambda: sl.ProxAdamW(PARAMS, regularizer=of(sl.L1MinusL2())), ValueError, "has no prox in a metric"),
    (lambda: sl.ProxAdamW(PARAMS, regularizer=sl.L1()), TypeError, "regularizer must be a Regularizer or a list of them, got L1"),
    (lambda: sl.ProxSGD(PARAMS, regularizer=[sl.L1()]), TypeError, "regularizer must be a Regularizer or a list of them, got L1"),
    (lambda: sl.ProxSGD([nn.Parameter(torch.ones(2))], regularizer=of(sl.L1())), ValueError, "holds none of the parameters caught"),
    (lambda: sl.ProxSGD(PARAMS, regularizer=[of(sl.L1()), of(sl.L0())]), ValueError, "weight: caught by two regularizers"),
    (lambda: of(sl.L1()).stationarity(), ValueError, "none of weight has one; call loss.backward"),
    (lambda: of(sl.L1()).stationarity("0.1"), TypeError, "step must be a number, got str"),
    (lambda: of(sl.L1(), "0.1"), TypeError, "lam must be a number, got str"),
    (lambda: sl.LamSchedule(-1.0), ValueError, r"lam must lie in \[0, inf\]"),
    (lambda: sl.LamSchedule(1.0, warmup=-1), ValueError, "warmup must be at least 0, got -1"),
    (lambda: sl.LamSchedule(1.0, warmup=2.0), TypeError, "warmup must be an int, got float"),
    (lambda: sl.LamSchedule(1.0, start=-1.0), ValueError, r"start must lie in \[0, inf\]"),
    (lambda: sl.LamSchedule(1.0, power=0.0), ValueError, r"power must lie in \(0, inf\]"),
    (lambda: sl.LamSchedule(1.0, delay=-1), ValueError, "delay must be at least 0"),
    (lambda: sl.lam_path(-1.0), ValueError, r"lam_max must lie in \[0, inf\]"),
    (lambda: sl.lam_path(1.0, 0), ValueError, "n must be at least 1"),
    (lambda: sl.lam_path(1.0, 3, 0.0), ValueError, r"ratio must lie in \(0, 1\]"),
    (lambda: sl.lam_path(1.0, 3, 1.5), ValueError, r"ratio must lie in \(0, 1\]"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_stationarity_of_what_the_optimizer_does_not_hold() -> None:
    model = network()
    loss_of(model).backward()
    with pytest.raises(ValueError, match="holds none of the parameters caught that have a gradient; give lr instead"):
        sl.Regularizer(model, sl.L1(), 1.0).stationarity(SGD([model[0].bias], lr=0.1))
