"""HardConcrete against the formulas of the paper written out entry by entry, and its probabilities by Monte Carlo."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import sparselayers as sl
from sparselayers.sparsify.gates import LEAST, hard_concrete, stretched

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def naive(log_alpha: float, u: float) -> float:
    s = sigmoid((math.log(u) - math.log(1 - u) + log_alpha) / BETA)
    return min(1.0, max(0.0, s * (ZETA - GAMMA) + GAMMA))


def gates(*log_alpha: float, dim: int = -1, dtype: torch.dtype = torch.float64) -> sl.HardConcrete:
    module = sl.HardConcrete(len(log_alpha), dim, dtype=dtype)
    with torch.no_grad():
        module.log_alpha.copy_(torch.tensor(log_alpha, dtype=torch.float64))
    return module


def test_a_draw_is_the_formula_of_the_paper() -> None:
    log_alpha = [-4.0, -1.0, 0.0, 0.5, 6.0]
    module = gates(*log_alpha)
    torch.manual_seed(3)
    z = module()
    torch.manual_seed(3)
    noise = torch.rand(5, dtype=torch.float64)
    expected = [naive(a, u) for a, u in zip(log_alpha, noise.tolist(), strict=True)]
    torch.testing.assert_close(z, torch.tensor(expected, dtype=torch.float64))
    assert not torch.equal(module(), z)


def test_evaluation_has_exact_zeros_and_ones_and_no_noise() -> None:
    log_alpha = [-5.0, -2.39, -2.41, 0.0, 2.39, 2.41, 5.0]
    module = gates(*log_alpha).eval()
    expected = [min(1.0, max(0.0, sigmoid(a) * 1.2 - 0.1)) for a in log_alpha]
    torch.testing.assert_close(module().detach(), torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(module(), module())
    assert (module() == 0).tolist() == [True, False, True, False, False, False, False]
    assert (module() == 1).tolist() == [False] * 5 + [True] * 2
    assert torch.equal(module.pruned(), module() == 0)
    assert torch.equal(module.train().pruned(), module.eval()() == 0)


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 1.0, 3.0])
def test_expected_l0_by_monte_carlo(log_alpha: float) -> None:
    module = gates(*[log_alpha] * 40_000)
    torch.manual_seed(0)
    share = float((module() != 0).double().mean())
    expected = module.expected_l0().item() / 40_000
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 40_000))


def test_expected_l0_is_the_sum_over_the_gates() -> None:
    log_alpha = [-2.0, 0.3, 1.7]
    expected = sum(sigmoid(a - BETA * math.log(0.1 / 1.1)) for a in log_alpha)
    assert gates(*log_alpha).expected_l0().item() == pytest.approx(expected)


def test_gradients_with_the_noise_held() -> None:
    log_alpha = torch.tensor([-1.0, 0.2, 1.0], dtype=torch.float64, requires_grad=True)
    noise = torch.tensor([0.6, 0.5, 0.4], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: hard_concrete(a, noise, BETA, GAMMA, ZETA), (log_alpha,))
    assert torch.autograd.gradgradcheck(lambda a: hard_concrete(a, noise, BETA, GAMMA, ZETA), (log_alpha,))
    assert torch.autograd.gradcheck(lambda a: stretched(a.sigmoid(), GAMMA, ZETA), (log_alpha,))
    module = gates(-1.0, 0.2, 1.0)

    def seeded(a: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)
        return torch.func.functional_call(module, {"log_alpha": a}, ())

    assert torch.autograd.gradcheck(seeded, (log_alpha,))


@pytest.mark.parametrize("u", [0.0, LEAST, 0.5, 1 - LEAST, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_at_the_ends_is_harmless(u: float, dtype: torch.dtype) -> None:
    log_alpha = torch.tensor([-300.0, 0.0, 300.0], dtype=dtype, requires_grad=True)
    noise = torch.tensor(u, dtype=dtype).clamp(LEAST, 1 - LEAST)
    z = hard_concrete(log_alpha, noise, BETA, GAMMA, ZETA)
    z.sum().backward()
    assert z.isfinite().all()
    assert log_alpha.grad.isfinite().all()


@pytest.mark.parametrize(("dim", "shape"), [(-1, (5, 3)), (1, (2, 3, 4, 4)), (0, (3, 2)), (-2, (2, 3, 1)), (0, (3,))])
def test_gates_run_along_dim(dim: int, shape: tuple[int, ...]) -> None:
    module = gates(-5.0, 0.0, 5.0, dim=dim)
    x = torch.randn(*shape, dtype=torch.float64)
    torch.manual_seed(1)
    y = module(x)
    torch.manual_seed(1)
    z = module()
    for i in range(3):
        torch.testing.assert_close(y.select(dim, i), x.select(dim, i) * z[i])


def test_a_filter_is_gated_by_a_parametrization_and_stays_zero_without_it() -> None:
    conv = nn.Conv2d(2, 3, 3)
    module = gates(-5.0, 0.0, 5.0, dim=0, dtype=torch.float32)
    before = conv.weight.detach().clone()
    parametrize.register_parametrization(conv, "weight", module)
    conv(torch.randn(1, 2, 4, 4)).sum().backward()
    assert module.log_alpha.grad is not None
    conv.eval()
    parametrize.remove_parametrizations(conv, "weight")
    torch.testing.assert_close(conv.weight.detach()[2], before[2])
    torch.testing.assert_close(conv.weight.detach()[1], before[1] / 2)
    report = sl.sparsity_report(conv)
    assert (report.groups_zero, report.groups) == (1, 3)


def test_training_closes_the_gates_of_inputs_that_do_not_matter() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 6)
    y = x[:, :2].sum(1, keepdim=True)
    model = nn.Sequential(sl.HardConcrete(6, keep=0.8), nn.Linear(6, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        ((model(x) - y).square().mean() + 0.05 * model[0].expected_l0()).backward()
        optimizer.step()
        model[0].clamp_()
    assert model[0].pruned().tolist() == [False] * 2 + [True] * 4
    with torch.no_grad():
        assert (model.eval()(x) - y).square().mean() < 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    module = gates(-5.0, 0.3, 5.0, dtype=dtype)
    torch.manual_seed(2)
    z = module()
    wide = copy.deepcopy(module).float()
    torch.manual_seed(2)
    exact = wide()
    assert z.dtype == dtype
    torch.testing.assert_close(z.float(), exact, atol=1e-2, rtol=0)
    assert module(torch.ones(4, 3)).dtype == torch.float32  # x keeps its dtype
    many = sl.HardConcrete(100_000, dtype=dtype)  # more than float16 can count
    assert many.expected_l0().item() == pytest.approx(100_000 * sigmoid(-BETA * math.log(0.1 / 1.1)), rel=1e-3)


def test_start_seeds_copies_and_devices() -> None:
    torch.manual_seed(0)
    module = sl.HardConcrete(4000, keep=0.2)
    assert module.log_alpha.mean().item() == pytest.approx(math.log(0.25), abs=1e-3)
    assert module.log_alpha.std().item() == pytest.approx(0.01, rel=0.1)
    assert list(module.state_dict()) == ["log_alpha"]
    twin = copy.deepcopy(module)
    torch.manual_seed(1)
    one = module()
    torch.manual_seed(1)
    assert torch.equal(twin(), one)
    assert sl.HardConcrete(3, device="meta", dtype=torch.float64).log_alpha.is_meta
    assert module(torch.empty(0, 4000)).shape == (0, 4000)
    with torch.no_grad():
        module.log_alpha[:2] = torch.tensor([-50.0, 50.0])
    module.clamp_()
    torch.testing.assert_close(module.log_alpha[:2].detach(), torch.tensor([0.01, 100.0]).log())
    assert repr(sl.HardConcrete(3, 1)) == "HardConcrete(3, dim=1, keep=0.5, beta=0.6667, gamma=-0.1, zeta=1.1)"


def test_nan_stays_in_its_gate_and_compiled_is_the_same() -> None:
    module = gates(float("nan"), 0.0, 5.0).eval()
    assert module().isnan().tolist() == [True, False, False]
    module = gates(-1.0, 0.0, 5.0).eval()
    x = torch.randn(2, 3, dtype=torch.float64)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


WRONG = [
    (lambda: sl.HardConcrete(0), ValueError, "n must be at least 1, got 0"),
    (lambda: sl.HardConcrete(2.0), TypeError, "n must be an int, got float"),
    (lambda: sl.HardConcrete(2, keep=0.0), ValueError, r"keep must lie in \(0, 1\], got 0.0"),
    (lambda: sl.HardConcrete(2, keep=1), ValueError, r"keep must lie in \(0, 1\), got 1: .* use 0.99"),
    (lambda: sl.HardConcrete(2, beta=0.0), ValueError, r"beta must lie in \(0, inf\], got 0.0"),
    (lambda: sl.HardConcrete(2, gamma=0.1), ValueError, "gamma must be below 0 and zeta above 1, got 0.1 and 1.1"),
    (lambda: sl.HardConcrete(2, zeta=1.0), ValueError, "gamma must be below 0 and zeta above 1, got -0.1 and 1.0"),
    (lambda: sl.HardConcrete(2, gamma="a"), TypeError, "gamma must be a number, got str"),
    (lambda: sl.HardConcrete(2)(torch.ones(2, dtype=torch.int64)), TypeError, r"x must be floating.*use x.float\(\)"),
    (lambda: sl.HardConcrete(2)(torch.ones(2, 3)), ValueError, r"x must have size 2 at dim -1, got shape \(2, 3\)"),
    (lambda: sl.HardConcrete(2, 2)(torch.ones(2, 2)), ValueError, r"dim must lie in \[-2, 1\] for x"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
