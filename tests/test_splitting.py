"""PenaltyDecomposition against Algorithm 1 of the paper written out naively."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn

import sparselayers as sl

LAM, BETA = 0.02, 0.5


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).to(dtype)


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.ndim > 1}


def naive_value(W: dict, V: dict, lam: float, beta: float) -> float:
    """Equations (2) and (8), entry by entry."""
    total = 0.0
    for name, w in W.items():
        for row, target in zip(w.tolist(), V[name].tolist(), strict=True):
            flat, other = torch.tensor(row).flatten().tolist(), torch.tensor(target).flatten().tolist()
            total += lam * math.sqrt(len(flat)) * math.sqrt(sum(x * x for x in flat))
            total += beta / 2 * sum((x - y) ** 2 for x, y in zip(flat, other, strict=True))
    return total


def naive_hard(w: torch.Tensor, lam: float, beta: float) -> torch.Tensor:
    """Equation (11)."""
    kept = [x if abs(x) > math.sqrt(2 * lam / beta) else 0.0 for x in w.flatten().tolist()]
    return torch.tensor(kept, dtype=w.dtype).view(w.shape)


def test_v_is_the_hard_threshold_of_the_weights() -> None:
    model = network()
    split = sl.PenaltyDecomposition(model, LAM, BETA)
    assert list(split.V) == ["0.weight", "3.weight"]
    for name, w in weights_of(model).items():
        expected = naive_hard(w, LAM, BETA)
        assert torch.equal(split.V[name], expected)
        assert 0 < int((expected == 0).sum()) < expected.numel()
        assert not split.V[name].requires_grad


def test_value_is_that_of_the_paper_and_its_gradient_too() -> None:
    model = network(torch.float32)
    split = sl.PenaltyDecomposition(model, LAM, BETA)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    assert split.value().item() == pytest.approx(naive_value(weights_of(model), split.V, LAM, BETA), rel=1e-5)
    split.value().backward()
    for name, w in weights_of(model).items():
        rows = w.detach().flatten(1)
        group = LAM * math.sqrt(rows.shape[1]) * rows / rows.norm(dim=1, keepdim=True)
        expected = group.view(w.shape) - BETA * (split.V[name] - w.detach())  # equation (10a)
        torch.testing.assert_close(w.grad, expected)
        assert split.V[name].grad is None


def test_two_rounds_are_algorithm_1() -> None:
    model, lr, inner = network(), 0.1, 3
    x, target = torch.randn(8, 2, 3, 3, dtype=torch.float64), torch.randint(4, (8,))
    twin = copy.deepcopy(model)
    split = sl.PenaltyDecomposition(model, LAM, BETA, sigma=1.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(2):
        for _ in range(inner):
            optimizer.zero_grad()
            (nn.functional.cross_entropy(model(x), target) + split.value()).backward()
            optimizer.step()
            split.step()
        split.grow()
    beta, W = BETA, weights_of(twin)
    V = {name: naive_hard(w, LAM, beta) for name, w in W.items()}
    for _ in range(2):
        for _ in range(inner):
            twin.zero_grad()
            nn.functional.cross_entropy(twin(x), target).backward()
            with torch.no_grad():
                for p in twin.parameters():
                    p.sub_(lr * p.grad, alpha=1) if p.ndim == 1 else None
                for name, w in W.items():
                    rows = w.flatten(1)
                    group = LAM * math.sqrt(rows.shape[1]) * rows / rows.norm(dim=1, keepdim=True)
                    w.sub_(lr * (w.grad + group.view(w.shape) - beta * (V[name] - w)))
            V = {name: naive_hard(w, LAM, beta) for name, w in W.items()}
        beta *= 1.5
    assert split.beta == pytest.approx(beta)
    for name, w in W.items():
        torch.testing.assert_close(dict(model.named_parameters())[name], w)
        torch.testing.assert_close(split.V[name], V[name])


SEPARABLE = [sl.L0(), sl.L1(), sl.SCAD(), sl.TransformedL1(), sl.MCP(), sl.LHalf()]


@pytest.mark.parametrize("penalty", [*SEPARABLE, sl.L1MinusL2(), sl.SparseGroup()], ids=repr)
@pytest.mark.parametrize("groups", ["output", "input", "kernel", "neuron"])
def test_other_penalties_in_the_place_of_l0(penalty: sl.Penalty, groups: str) -> None:
    model = network()
    split = sl.PenaltyDecomposition(model, LAM, BETA, groups=groups, penalty=penalty)
    parameters = dict(model.named_parameters())
    for block in split.group_lasso.blocks:
        rows = torch.cat([part.rows(part.cut(parameters[part.name].detach())) for part in block], 1)
        V = torch.cat([part.rows(part.cut(split.V[part.name])) for part in block], 1)
        torch.testing.assert_close(V, penalty.prox(rows, LAM / BETA))


def test_v_and_w_become_one_as_beta_grows() -> None:
    model = network()
    x, target = torch.randn(16, 2, 3, 3, dtype=torch.float64), torch.randint(4, (16,))
    split = sl.PenaltyDecomposition(model, 0.003, 0.05, sigma=1.6)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def apart() -> float:
        return max(float((w - split.V[name]).detach().abs().max()) for name, w in weights_of(model).items())

    first = apart()
    for _ in range(16):
        for _ in range(30):
            optimizer.zero_grad()
            (nn.functional.cross_entropy(model(x), target) + split.value()).backward()
            optimizer.step()
            split.step()
        split.grow()
    assert apart() < first / 5
    assert sl.sparsity_report(model).weights_zero == 0  # the loss alone makes no exact zero
    before = {name: w.detach().clone() for name, w in weights_of(model).items()}
    split.apply()
    for name, w in weights_of(model).items():
        assert torch.equal(w.detach(), torch.where(split.V[name] == 0, 0, before[name]))
    assert sl.sparsity_report(model).weights_zero == sum(int((v == 0).sum()) for v in split.V.values()) > 0


def test_zero_weights_have_a_finite_gradient() -> None:
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    split = sl.PenaltyDecomposition(model, LAM, BETA)
    split.value().backward()
    assert not model.weight.grad.any()


def test_a_checkpoint_goes_on_where_it_was() -> None:
    model = network()
    split = sl.PenaltyDecomposition(model, LAM, BETA)
    with torch.no_grad():
        model[3].weight.mul_(3)
    split.grow()
    split.step()
    file = io.BytesIO()
    torch.save(split.state_dict(), file)
    file.seek(0)
    other = sl.PenaltyDecomposition(network(), 1.0, 1.0, sigma=2.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert (other.lam, other.beta, other.sigma) == (LAM, BETA * 1.25, 1.25)
    for name, v in split.V.items():
        assert torch.equal(other.V[name], v)
    kept = split.state_dict()
    with torch.no_grad():
        model[3].weight.zero_()
    split.step()
    assert kept["V"]["3.weight"].any()  # a copy: later steps leave it alone


def test_v_follows_the_model() -> None:
    model = network()
    split = sl.PenaltyDecomposition(model, LAM, BETA)
    model.float()
    assert {v.dtype for v in split.V.values()} == {torch.float32}
    assert split.value().dtype == torch.float32
    twin, other = copy.deepcopy((model, split))
    with torch.no_grad():
        twin[3].weight.zero_()
    other.step()
    assert not other.V["3.weight"].any()
    assert split.V["3.weight"].any()
    model.to("meta")
    assert split.V["3.weight"].is_meta


def test_half_precision_and_layout() -> None:
    model = network(torch.bfloat16).to(memory_format=torch.channels_last)
    split = sl.PenaltyDecomposition(model, LAM, BETA)
    assert torch.equal(split.V["0.weight"], sl.L0().prox(model[0].weight.detach(), LAM / BETA))
    assert split.value().dtype == torch.bfloat16


def test_float16_weights_whose_sum_is_no_float16() -> None:
    """W = V: 1,000 rows of norm 100, sqrt(4) and lam 0.01 make 2,000, though they sum to 2e5. W - V = 50: to 5e6."""
    model = nn.Linear(4, 1000).half()
    model.weight.data.fill_(50.0)
    split = sl.PenaltyDecomposition(model, 0.01, 0.001)
    torch.testing.assert_close(split.value().detach(), torch.tensor(2000.0, dtype=torch.float16))
    split.V["weight"].zero_()
    torch.testing.assert_close(split.value().detach(), torch.tensor(7000.0, dtype=torch.float16))


def test_only_the_part_that_groups_show_is_pulled() -> None:
    model = nn.Linear(4, 2)
    split = sl.PenaltyDecomposition(model, 0.0, BETA, groups=lambda name, p: p[:, :2] if p.ndim == 2 else None)
    with torch.no_grad():
        model.weight.add_(1.0)
    assert split.value().item() == pytest.approx(BETA / 2 * 4)


def test_repr() -> None:
    split = sl.PenaltyDecomposition(network(), LAM, BETA, groups="input")
    expected = "PenaltyDecomposition(lam=0.02, beta=0.5, sigma=1.25, groups='input', penalty=L0(), 2 parameters)"
    assert repr(split) == expected


X = nn.Linear(2, 2)
WRONG = [
    (lambda: sl.PenaltyDecomposition([X], LAM, BETA), TypeError, "model must be an nn.Module, got list"),
    (lambda: sl.PenaltyDecomposition(X, -1.0, BETA), ValueError, r"lam must lie in \[0, inf\], got -1.0"),
    (lambda: sl.PenaltyDecomposition(X, LAM, 0.0), ValueError, r"beta must lie in \(0, inf\], got 0.0"),
    (lambda: sl.PenaltyDecomposition(X, LAM, "1"), TypeError, "beta must be a number, got str"),
    (lambda: sl.PenaltyDecomposition(X, LAM, BETA, sigma=0.9), ValueError, r"sigma must lie in \[1, inf\], got 0.9"),
    (lambda: sl.PenaltyDecomposition(X, LAM, BETA, groups="rows"), ValueError, "groups must be one of"),
    (
        lambda: sl.PenaltyDecomposition(X, LAM, BETA, penalty="l0"),
        TypeError,
        r"penalty must be a Penalty such as L0\(\), got 'l0'",
    ),
    (
        lambda: sl.PenaltyDecomposition(X, LAM, BETA, penalty=sl.HoyerSquare()),
        ValueError,
        r"HoyerSquare\(\) has no prox",
    ),
    (
        lambda: sl.PenaltyDecomposition(X, LAM, BETA).load_state_dict({"lam": 1.0, "sigma": 2.0}),
        ValueError,
        r"state must come from PenaltyDecomposition.state_dict\(\), got one without V, beta",
    ),
    (
        lambda: sl.PenaltyDecomposition(X, LAM, BETA).load_state_dict(
            sl.PenaltyDecomposition(network(), LAM, BETA).state_dict()
        ),
        ValueError,
        r"V must be of the parameters \{'weight': \(2, 2\)\}, got .*; build the object with the model",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
