"""The drivers of weight penalties: a term of the loss, a step, a hook on every kind of optimizer; and what they converge to."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer

import sparselayers as sl

from .registry import PENALTIES

GL = sl.GroupL2()
OPTIMIZERS = {
    "SGD(momentum)": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "SGD(fused)": lambda p: SGD(p, lr=0.05, momentum=0.9, fused=True),
    "Adam": lambda p: Adam(p, lr=0.02),
    "AdamW(loop)": lambda p: AdamW(p, lr=0.02, foreach=False),
    "AdamW(foreach)": lambda p: AdamW(p, lr=0.02, foreach=True),
    "AdamW(fused)": lambda p: AdamW(p, lr=0.02, fused=True),
    "AdamW(tensor lr)": lambda p: AdamW(p, lr=torch.tensor(0.02), foreach=False),
    "AdamW(tensor lr, fused)": lambda p: AdamW(p, lr=torch.tensor(0.02), fused=True),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def network(dtype: torch.dtype = torch.float64, wide: int = 7) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, wide), nn.LayerNorm(wide), nn.Tanh(), nn.Linear(wide, 3)).to(dtype)


def loss_of(model: nn.Module) -> Tensor:
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(16, n, dtype=torch.float64, generator=g) for n in (5, 3))
    dtype = next(model.parameters()).dtype
    return (model(x.to(dtype)) - y.to(dtype)).square().mean()


def prox_weights(model: nn.Sequential, penalty: sl.Penalty, t: float) -> None:
    """The plain loop: each Linear weight by itself, row by row."""
    for layer in (model[0], model[3]):
        layer.weight.data.copy_(penalty.prox(layer.weight.data, t))


def idle(model: nn.Module, *groups: dict) -> Optimizer:
    """An optimizer whose step is the identity (all gradients 0), so that only the hook acts."""
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    return SGD(list(groups) or model.parameters(), lr=0.5)


def bits(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().tobytes() for name, p in model.named_parameters()}


KINDS = ["output", "input", "neuron", "element", "tensor"]
SMOOTH = [(g, p) for g in KINDS for p in PENALTIES if not p.indicator and p.convex]
SMOOTH = [(g, p) for g, p in SMOOTH if g != "element" or not isinstance(p, sl.Grouped)]  # one entry has no blocks
FINITE = [(p, g) for g in KINDS for p in PENALTIES if not p.indicator and p != sl.NonnegativeL1()]
FINITE = [(p, g) for p, g in FINITE if g == "output" or not isinstance(p, sl.Grouped)]  # rows of 12 that blocks divide
FINITE = [(p, g) for p, g in FINITE if g != "neuron" or p.has_metric]  # the parts of a neuron have different lr there


@pytest.mark.parametrize(("groups", "penalty"), SMOOTH, ids=lambda x: x if isinstance(x, str) else repr(x))
def test_value_is_lam_times_the_sum_and_differentiable(groups: str, penalty: sl.Penalty) -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 6)).double()
    if groups == "neuron":  # rows of 5 + 1 and 11 + 1 entries
        model = nn.Sequential(nn.Linear(5, 11), nn.Linear(11, 6)).double()
    g = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = torch.rand(p.shape, dtype=torch.float64, generator=g) + 0.2
    regularizer = sl.Regularizer(model, penalty, lam=0.3, groups=groups)

    class Term(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return regularizer.value()

    term, names = Term(), [f"model.{name}" for name in regularizer.names]

    def value(*tensors: Tensor) -> Tensor:
        return torch.func.functional_call(term, dict(zip(names, tensors, strict=True)), ())

    leaves = [model.get_parameter(name).detach().clone().requires_grad_() for name in regularizer.names]
    assert value(*leaves).shape == ()
    assert torch.autograd.gradcheck(value, leaves)
    regularizer.lam = 0.6
    torch.testing.assert_close(regularizer.value(), 2 * 0.3 * Term()() / 0.6)


def test_float16_weights_whose_sum_is_no_float16() -> None:
    """1,000 groups of norm 100 sum to 1e5, beyond float16; a hundredth of it is 1e3, with its gradient."""
    model = nn.Linear(4, 1000).half()
    model.weight.data.fill_(50.0)
    value = sl.Regularizer(model, GL, 0.01).value()
    torch.testing.assert_close(value.detach(), torch.tensor(1000.0, dtype=torch.float16))
    value.backward()
    torch.testing.assert_close(model.weight.grad, torch.full_like(model.weight, 0.005))


def test_value_in_the_loss_reaches_the_weights_only_there() -> None:
    model = network()
    regularizer = sl.Regularizer(model, GL, lam=0.3)
    regularizer.value().backward()
    for layer in (model[0], model[3]):
        w = layer.weight.detach()
        torch.testing.assert_close(layer.weight.grad, 0.3 * w / w.norm(dim=1, keepdim=True))
        assert layer.bias.grad is None
    model.zero_grad()
    model[0].weight.data[2] = 0
    regularizer.value().backward()
    assert (model[0].weight.grad[2] == 0).all()


def test_step_with_a_tensor_lr_and_a_new_lam() -> None:
    for lr in (0.5, torch.tensor(0.5), torch.tensor([0.5]), torch.tensor(0.5, dtype=torch.float64)):
        for groups in ("output", "neuron"):
            model, twin = network(), network()
            regularizer = sl.Regularizer(model, GL, lam=3.0, groups=groups)
            regularizer.lam = 0.4
            regularizer.step(lr)
            sl.Regularizer(twin, GL, lam=0.4, groups=groups).step(0.5)
            torch.testing.assert_close(model.state_dict(), twin.state_dict())
    prox_weights(twin := network(), GL, 0.2)
    sl.Regularizer(model := network(), GL, lam=0.4).step(torch.tensor(0.5))
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attach_is_the_step_and_then_the_prox(make: Callable, dtype: torch.dtype) -> None:
    """With a scheduler, whose lr the prox follows, and a lam that changes."""
    model, twin = network(dtype), network(dtype)
    optimizer, plain = make(model.parameters()), make(twin.parameters())
    regularizer = sl.Regularizer(model, GL, lam=0.5)
    regularizer.attach(optimizer)
    schedulers = [torch.optim.lr_scheduler.StepLR(o, step_size=2, gamma=0.5) for o in (optimizer, plain)]
    for epoch in range(6):
        regularizer.lam = 0.5 if epoch < 3 else 0.2
        for m, o in ((model, optimizer), (twin, plain)):
            o.zero_grad()
            loss_of(m).backward()
            o.step()
        prox_weights(twin, GL, float(plain.param_groups[0]["lr"]) * regularizer.lam)
        for scheduler in schedulers:
            scheduler.step()
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-4, atol=1e-6)
    before = model[0].weight.detach().clone()
    assert not torch.equal(before, network(dtype)[0].weight)


def test_closures() -> None:
    for make in (lambda p: SGD(p, lr=0.1), lambda p: LBFGS(p, lr=0.1, max_iter=3)):
        model, twin = network(), network()
        optimizer, plain = make(model.parameters()), make(twin.parameters())
        sl.Regularizer(model, GL, lam=0.5).attach(optimizer)

        def closure(m: nn.Module, o: Optimizer) -> Tensor:
            o.zero_grad()
            loss = loss_of(m)
            loss.backward()
            return loss

        for _ in range(3):
            found = optimizer.step(lambda: closure(model, optimizer))  # noqa: B023
            expected = plain.step(lambda: closure(twin, plain))  # noqa: B023
            prox_weights(twin, GL, 0.1 * 0.5)
            torch.testing.assert_close(found, expected)
        torch.testing.assert_close(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@pytest.mark.parametrize("wide", [12, 6007], ids=["small", "large"])
def test_each_parameter_uses_its_own_lr(penalty: sl.Penalty, wide: int) -> None:
    model = nn.Sequential(nn.Linear(12, wide), nn.Linear(12, 12), nn.Linear(6, 12)).double()
    old = [layer.weight.detach().clone() for layer in model]
    rates = (0.5, torch.tensor(0.25), 1.0)
    groups = [{"params": layer.parameters(), "lr": lr} for layer, lr in zip(model, rates, strict=True)]
    optimizer = idle(model, *groups)
    sl.Regularizer(model, penalty, lam=0.3).attach(optimizer)
    optimizer.step()
    for layer, w, lr in zip(model, old, rates, strict=True):
        torch.testing.assert_close(layer.weight.detach(), penalty.prox(w, 0.3 * float(lr)))


@pytest.mark.parametrize("penalty", [p for p in PENALTIES if p.has_metric], ids=repr)
@pytest.mark.parametrize("tensor", [False, True])
def test_a_neuron_whose_parts_have_different_lr_uses_the_metric(penalty: sl.Penalty, tensor: bool) -> None:
    model = nn.Sequential(nn.Linear(9, 7), nn.BatchNorm1d(7)).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    parts = [model[0].weight, model[0].bias, model[1].weight, model[1].bias]
    rates = [0.5, 0.1, 2.0, 0.25]
    rows = torch.cat([p.detach().view(7, -1) for p in parts], 1)
    metric = torch.cat([torch.full((7, p[0].numel()), 1 / lr).double() for p, lr in zip(parts, rates, strict=True)], 1)
    as_lr = (lambda lr: torch.tensor(lr, dtype=torch.float64)) if tensor else float
    optimizer = idle(model, *({"params": [p], "lr": as_lr(lr)} for p, lr in zip(parts, rates, strict=True)))
    sl.Regularizer(model, penalty, lam=0.6, groups="neuron").attach(optimizer)
    optimizer.step()
    found = torch.cat([p.detach().view(7, -1) for p in parts], 1)
    torch.testing.assert_close(found, penalty.prox(rows, 0.6, metric=metric))


def test_without_a_metric_the_parts_of_a_neuron_need_one_lr() -> None:
    layer = nn.Linear(3, 4)
    optimizer = idle(layer, {"params": [layer.weight], "lr": 0.5}, {"params": [layer.bias], "lr": 0.1})
    sl.Regularizer(layer, sl.GroupMCP(), lam=0.2, groups="neuron").attach(optimizer)
    with pytest.raises(ValueError, match="GroupMCP has no prox in a metric; those that have: "):
        optimizer.step()


@pytest.mark.parametrize("tensor", [False, True])
def test_a_part_with_lr_zero_stays_and_the_rest_moves(tensor: bool) -> None:
    layer = nn.Linear(30, 40)  # in so many rows a stay that is only up to rounding shows
    old, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    rate = torch.tensor if tensor else float
    optimizer = idle(layer, {"params": [layer.weight], "lr": rate(0.5)}, {"params": [layer.bias], "lr": rate(0.0)})
    sl.Regularizer(layer, GL, lam=0.2, groups="neuron").attach(optimizer)
    optimizer.step()
    assert torch.equal(layer.bias.detach(), bias)
    assert layer.weight.isfinite().all()
    assert (layer.weight.detach().norm(dim=1) < old.norm(dim=1)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_with_different_lr_keep_their_strength(dtype: torch.dtype) -> None:
    """t = 1e-8 is no number of float16, its L0 threshold 1.4e-4 is one."""
    for rates in ((1e-4, 2e-4), (1e-4, 1e-4)):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).to(dtype)
        for p in model.parameters():
            p.data.fill_(1.2e-4)
        groups = [{"params": m.parameters(), "lr": lr} for m, lr in zip(model, rates, strict=True)]
        optimizer = idle(model, *groups)
        sl.Regularizer(model, sl.L0(), lam=1e-4).attach(optimizer)
        optimizer.step()
        assert all((layer.weight == 0).all() for layer in model)


def test_one_element_and_plain_lr_together() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 2)).double()
    old = [layer.weight.detach().clone() for layer in model]
    rates = (torch.tensor([0.5]), 0.25)
    optimizer = idle(model, *({"params": m.parameters(), "lr": lr} for m, lr in zip(model, rates, strict=True)))
    sl.Regularizer(model, GL, lam=0.2).attach(optimizer)
    optimizer.step()
    for layer, w, lr in zip(model, old, rates, strict=True):
        torch.testing.assert_close(layer.weight.detach(), GL.prox(w, 0.2 * float(lr)))


@pytest.mark.parametrize("groups", ["output", "neuron", "bias"])
def test_without_a_gradient_nothing_changes(groups: str) -> None:
    model = network(torch.float32)
    optimizer = idle(model)
    sl.Regularizer(model, GL, lam=0.5, groups=groups).attach(optimizer)
    optimizer.zero_grad()
    before = bits(model)
    optimizer.step()
    assert bits(model) == before
    model[3].weight.grad, model[3].bias.grad = torch.zeros(3, 7), torch.zeros(3)
    optimizer.step()
    after = bits(model)
    moved = {"output": {"3.weight"}, "neuron": {"3.weight", "3.bias"}, "bias": {"3.bias"}}[groups]
    assert {name for name in before if after[name] != before[name]} == moved


def test_what_the_optimizer_does_not_hold_stays() -> None:
    model = network()
    before = bits(model)
    optimizer = idle(model, {"params": [model[0].weight]})
    sl.Regularizer(model, GL, lam=0.5).attach(optimizer)
    optimizer.step()
    after = bits(model)
    assert {name for name in before if after[name] != before[name]} == {"0.weight"}


def test_a_removed_handle_does_nothing_and_makes_room() -> None:
    model = network()
    optimizer = idle(model)
    regularizer = sl.Regularizer(model, GL, lam=0.5)
    regularizer.attach(optimizer).remove()
    before = bits(model)
    optimizer.step()
    assert bits(model) == before
    regularizer.attach(optimizer)
    optimizer.step()
    assert bits(model) != before


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "second"),
    [
        (network(), lambda m: sl.Regularizer(m, sl.L1(), 1.0)),
        (network(), lambda m: sl.Regularizer(m, sl.L1(), 1.0, groups="neuron", include="3.weight")),
        (network(), lambda m: sl.Regularizer(m[3], sl.L1(), 1.0)),
        (tied(), lambda m: sl.Regularizer(m, sl.L1(), 1.0, include="1.weight")),
    ],
    ids=["same", "one parameter", "by a submodule", "by a tied name"],
)
def test_two_on_one_parameter_is_an_error(model: nn.Module, second: Callable) -> None:
    optimizer = idle(model)
    sl.Regularizer(model, GL, lam=0.5).attach(optimizer)
    with pytest.raises(ValueError, match=r"weight: caught by two regularizers.*remove one.*SparseGroup"):
        second(model).attach(optimizer)


def test_two_on_disjoint_parameters_work() -> None:
    model, twin = network(), network()
    optimizer = idle(model)
    sl.Regularizer(model, GL, 0.4, include="0.weight").attach(optimizer)
    sl.Regularizer(model, sl.L1(), 0.2, include="3.weight").attach(optimizer)
    optimizer.step()
    twin[0].weight.data.copy_(GL.prox(twin[0].weight.data, 0.2))
    twin[3].weight.data.copy_(sl.L1().prox(twin[3].weight.data, 0.1))
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("wide", [7, 20011], ids=["small", "large"])
@pytest.mark.parametrize("groups", ["output", "neuron", "element"])
@pytest.mark.parametrize("cls", [SGD, AdamW])
@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_changes_nothing(cls: type, fused: bool, groups: str, wide: int) -> None:
    model, twin = network(torch.float32, wide), network(torch.float32, wide)
    optimizer, plain = (cls(m.parameters(), lr=0.05, fused=fused) for m in (model, twin))
    sl.Regularizer(model, GL, lam=0.1, groups=groups).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    before = bits(model)
    for factor in (torch.inf, 1.0):
        optimizer.zero_grad()
        scaler.scale(loss_of(model) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        if factor != 1:
            assert bits(model) == before
    assert scaler.get_scale() == 8
    loss_of(twin).backward()
    plain.step()
    sl.Regularizer(twin, GL, lam=0.1, groups=groups).step(0.05)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-4, atol=1e-5)
    assert bits(model) != before


def test_a_copied_model_takes_a_new_regularizer() -> None:
    model = network()
    sl.Regularizer(model, GL, lam=0.5).attach(idle(model))
    twin = copy.deepcopy(model)
    before = bits(model)
    optimizer = idle(twin)
    sl.Regularizer(twin, GL, lam=0.5).attach(optimizer)
    optimizer.step()
    assert bits(model) == before
    prox_weights(model, GL, 0.25)
    torch.testing.assert_close(twin.state_dict(), model.state_dict())


@pytest.mark.parametrize(("penalty", "groups"), FINITE, ids=lambda x: x if isinstance(x, str) else repr(x))
def test_lam_zero_is_bitwise_the_identity(penalty: sl.Penalty, groups: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model = nn.Sequential(nn.Linear(12, 12), nn.LayerNorm(12), nn.Linear(12, 6001)).to(dtype)
        if isinstance(penalty, sl.Grouped):
            model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 6001)).to(dtype)
        first = next(model.parameters()).data
        first[:3], first[4, :5], first[:, 6] = 0.0, -0.0, 0.0
        model[0].bias.data[:3] = -0.0
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        weights = [{"params": [p], "lr": 0.5 if p.ndim == 2 else 0.1} for p in model.parameters()]
        regularizer = sl.Regularizer(model, penalty, lam=0.0, groups=groups)
        regularizer.step(0.5)
        optimizer = idle(model, *weights)
        regularizer.attach(optimizer)
        optimizer.step()
        for name, p in model.named_parameters():
            assert torch.equal(p.detach().view(torch.uint8), before[name].view(torch.uint8)), name
        value = regularizer.value()
        value.backward()
        assert value == 0
        assert all((model.get_parameter(name).grad == 0).all() for name in regularizer.names)


def test_zero_rows_stay_zero_and_make_no_nan() -> None:
    for groups in ("output", "neuron"):
        model = network()
        for p in model.parameters():
            p.data.zero_()
        regularizer = sl.Regularizer(model, GL, lam=0.5, groups=groups)
        regularizer.step(0.1)
        assert all((p == 0).all() for p in model.parameters())
        regularizer.value().backward()
        assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())


@every_optimizer
def test_training_gives_rows_that_are_exactly_zero(make: Callable) -> None:
    """The target needs one direction of the input: most hidden neurons are not needed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1))
    x = torch.randn(64, 5)
    y = 3 * x[:, :1].relu()
    optimizer = make(model.parameters())
    sl.Regularizer(model, GL, lam=0.1, groups="neuron", include="0.weight").attach(optimizer)
    for _ in range(400):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    first = sl.sparsity_report(model).layers[0]
    assert 0 < first.neurons_zero < first.neurons
    assert (model(x) - y).square().mean() < 0.1 * y.square().mean()


def test_sgd_converges_to_the_group_lasso() -> None:
    """0 in the subdifferential: g + lam w / ‖w‖ = 0 where a row is alive, ‖g‖ <= lam where it is zero."""
    rng = np.random.default_rng(0)
    X, W = rng.standard_normal((60, 6)), rng.standard_normal((5, 6))
    W[[1, 3]] = 0
    Y = X @ W.T + 0.1 * rng.standard_normal((60, 5))
    lam, n = 0.3, len(X)
    layer = nn.Linear(6, 5, bias=False, dtype=torch.float64)
    optimizer = SGD(layer.parameters(), lr=n / float(np.linalg.norm(X, 2)) ** 2)
    sl.Regularizer(layer, GL, lam=lam).attach(optimizer)
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    for _ in range(1000):
        optimizer.zero_grad()
        ((layer(x) - y).square().sum() / (2 * n)).backward()
        optimizer.step()
    found = layer.weight.detach().numpy()
    gradient = (X @ found.T - Y).T @ X / n
    alive = np.any(found != 0, axis=1)
    assert alive.tolist() == [True, False, True, False, True]
    pull = found[alive] / np.linalg.norm(found[alive], axis=1, keepdims=True)
    np.testing.assert_allclose(gradient[alive], -lam * pull, atol=1e-10)
    assert (np.linalg.norm(gradient[~alive], axis=1) <= lam).all()


def test_repr_and_names() -> None:
    regularizer = sl.Regularizer(network(), GL, lam=0.5, groups="neuron")
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    assert regularizer.names == names
    assert repr(regularizer) == "Regularizer(GroupL2(sqrt_size=False), lam=0.5, groups='neuron', 6 parameters)"


X = nn.Linear(2, 2)
WRONG = [
    (lambda: sl.Regularizer([X], GL, 1.0), TypeError, "model must be an nn.Module, got list"),
    (lambda: sl.Regularizer(X, "l2", 1.0), TypeError, r"penalty must be a Penalty such as GroupL2\(\), got 'l2'"),
    (lambda: sl.Regularizer(X, sl.GroupL2, 1.0), TypeError, "penalty must be a Penalty"),
    (lambda: sl.Regularizer(X, GL, -1.0), ValueError, r"lam must lie in \[0, inf\], got -1.0"),
    (lambda: sl.Regularizer(X, GL, float("nan")), ValueError, r"lam must lie in \[0, inf\], got nan"),
    (lambda: sl.Regularizer(X, GL, "1"), TypeError, "lam must be a number, got str"),
    (
        lambda: sl.Regularizer(X, GL, sl.Constant()),
        TypeError,
        "got Constant; a LamSchedule or a DensityTarget moves it",
    ),
    (lambda: sl.Regularizer(X, sl.Exclusive(), 1.0).lam_max(), ValueError, "reads gradients"),
    (lambda: sl.Exclusive().lam_max(torch.ones(2)), ValueError, "for weights give lam as a number"),
    (lambda: sl.Regularizer(X, GL, True), TypeError, "lam must be a number, got bool"),
    (
        lambda: sl.Regularizer(X, GL, torch.ones(2)),
        ValueError,
        r"0-d tensor, got shape \(2,\); for a lam a layer make one",
    ),
    (
        lambda: sl.Regularizer(X, sl.HoyerSquare(), 1.0).attach(SGD(X.parameters())),
        ValueError,
        r"weight in groups of 2: HoyerSquare\(\) has no prox; add lam",
    ),
    (
        lambda: sl.Regularizer(X, sl.Grouped(GL, 3), 1.0).attach(SGD(X.parameters())),
        ValueError,
        "weight in groups of 2: size 3 does not divide .* use a divisor",
    ),
    (lambda: sl.Regularizer(X, GL, 1.0).step(-0.1), ValueError, r"lr must lie in \[0, inf\], got -0.1"),
    (lambda: sl.Regularizer(X, GL, 1.0).step("0.1"), TypeError, "lr must be a number, got str"),
    (lambda: sl.Regularizer(X, GL, 1.0).attach(X), TypeError, "must be a torch.optim.Optimizer, got Linear; attach to"),
    (
        lambda: sl.Regularizer(X, GL, 1.0).attach(SGD(copy.deepcopy(X).parameters(), lr=0.1)),
        ValueError,
        "holds none of the parameters caught; build it from this model's parameters",
    ),
    (
        lambda: sl.Regularizer(X, GL, 1.0).attach(SGD([X.bias], lr=0.1)),
        ValueError,
        "holds none of the parameters caught",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("penalty", [sl.GroupL0(), sl.Exclusive(), sl.LInf(), GL], ids=repr)
def test_tensor_lr_of_zero_moves_nothing(penalty: sl.Penalty) -> None:
    layer = nn.Linear(3, 2)
    before = [p.detach().clone() for p in layer.parameters()]
    groups = [{"params": [p], "lr": torch.tensor(0.0)} for p in layer.parameters()]
    optimizer = SGD(groups, lr=0.1)
    sl.Regularizer(layer, penalty, 0.5, groups="neuron").attach(optimizer)
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(layer.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old)


def test_deephoyer_is_hoyer_square_of_each_tensor_in_the_loss() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    weights = [model[0].weight, model[2].weight]
    squares = [
        sum(abs(x) for x in w.flatten().tolist()) ** 2 / sum(x * x for x in w.flatten().tolist()) for w in weights
    ]
    value = sl.Regularizer(model, sl.HoyerSquare(), 0.3, groups="tensor").value()
    assert value.item() == pytest.approx(0.3 * sum(squares))
    value.backward()
    for w in weights:  # 2 sign(w) ‖w‖_1 / ‖w‖_2⁴ (‖w‖_2² - abs(w) ‖w‖_1): small entries shrink, large ones grow
        v = w.detach()
        l1, square = v.abs().sum(), v.square().sum()
        torch.testing.assert_close(w.grad, 0.3 * 2 * v.sign() * l1 / square**2 * (square - v.abs() * l1))
    rows = sum(w.norm(dim=1).sum().item() ** 2 / w.square().sum().item() for w in (p.detach() for p in weights))
    assert sl.Regularizer(model, sl.GroupHoyerSquare(), 0.3).value().item() == pytest.approx(0.3 * rows)
