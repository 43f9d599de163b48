"""What a model costs: counts against hand counts; times by a clock that is given."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import sparselayers as sl
from sparselayers.sparsify import timing

FLOPS = [
    (lambda: nn.Linear(3, 5), (7, 3), 2 * 7 * 15),
    (lambda: nn.Linear(3, 5, bias=False), (2, 4, 3), 2 * 8 * 15),
    (lambda: nn.Conv2d(2, 4, 3, padding=1), (3, 2, 5, 5), 2 * 3 * 25 * 2 * 4 * 9),
    (lambda: nn.Conv1d(4, 8, 3, stride=2, groups=2), (1, 4, 9), 2 * 4 * 8 * 2 * 3),
    (lambda: nn.ConvTranspose2d(2, 4, 3), (1, 2, 5, 5), 2 * 25 * 2 * 4 * 9),
    (lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), (2, 5, 8), 2 * 10 * (4 * 64 + 2 * 96) + 2 * 2 * 2 * 25 * 8),
    (nn.ReLU, (7, 3), 0),
]  # fmt: skip


@pytest.mark.parametrize(("make", "shape", "flops"), FLOPS, ids=[str(i) for i in range(len(FLOPS))])
def test_flops_are_those_of_a_hand_count(make, shape, flops: int) -> None:
    model = make()
    assert sl.measure(model, torch.randn(shape), repeats=1).flops == flops
    fused = torch.backends.mha.get_fastpath_enabled()
    assert fused


def test_flops_agree_with_the_report() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    x = torch.randn(2, 1, 8, 8)
    assert sl.measure(model, x, repeats=1).flops == sl.sparsity_report(model, x).flops


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.two.weight = self.one.weight
        self.register_buffer("scale", torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


def test_counts() -> None:
    model = Tied()
    with torch.no_grad():
        model.one.weight[1:3] = 0
    found = sl.measure(model, torch.randn(2, 4), repeats=1)
    assert (found.parameters, found.parameters_nonzero, found.bytes) == (16, 8, 16 * 4 + 3 * 8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.flops = 3


def test_modes_and_statistics_stay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout())
    model[0].eval()
    before = model[1].running_mean.clone()
    sl.compare(model, model, torch.randn(6, 3), batch_sizes=(2,), repeats=2)
    assert [m.training for m in model] == [False, True, True]
    assert torch.equal(model[1].running_mean, before)


class Ticks:
    """A clock that stands still but for what a model adds to it."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Slow(nn.Module):
    """Takes the given seconds, call by call, over and over."""

    def __init__(self, clock: Ticks, log: list, name: str, *seconds: float) -> None:
        super().__init__()
        self.clock, self.log, self.name, self.seconds, self.calls = clock, log, name, seconds, 0

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += self.seconds[self.calls % len(self.seconds)]
        self.calls += 1
        self.log.append((self.name, len(x)))
        return x


def test_medians_of_models_timed_in_turns(monkeypatch) -> None:
    clock, log = Ticks(), []
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(timing, "WARMUP", 1)
    one, other = Slow(clock, log, "one", 0.004), Slow(clock, log, "other", 0.001)
    found = sl.compare(one, other, torch.randn(2, 3), batch_sizes=(1, 5), repeats=3)
    timed = [entry for entry in log if entry[1] != 2]  # the outputs and the operations are asked with the example
    assert timed == [("one", 1), ("other", 1)] * 4 + [("one", 5), ("other", 5)] * 4
    assert [at.batch_size for at in found.before.latencies] == [1, 5]
    assert [round(at.median, 9) for at in found.before.latencies] == [4.0, 4.0]
    assert [round(at.median, 9) for at in found.after.latencies] == [1.0, 1.0]
    assert [round(ratio, 9) for ratio in found.speedup()] == [4.0, 4.0]
    uneven = Slow(clock, log, "uneven", 9.0, 0.003, 0.001, 0.002)  # the first, 9 s, warms up
    found = sl.measure(uneven, torch.randn(2, 3), repeats=3)
    assert [(at.batch_size, round(at.median, 9), round(at.fastest, 9)) for at in found.latencies] == [(2, 2.0, 1.0)]


def test_the_tables() -> None:
    before, after = nn.Sequential(nn.Linear(100, 50), nn.Linear(50, 2)), nn.Linear(100, 2)
    latency = timing.Latency(1, 2.0, 1.5)
    one = sl.Measurement(1000, 900, 20_000, 4000, (latency,))
    other = sl.Measurement(500, 500, 5_000, 2000, (timing.Latency(1, 0.5, 0.4),))
    assert str(sl.Comparison(one, other, 1e-7, 3.0)).splitlines() == [
        "                     before  after  ratio",
        "-----------------------------------------",
        "parameters            1,000    500   2.00",
        "parameters, nonzero     900    500   1.80",
        "flops                20,000  5,000   4.00",
        "bytes                 4,000  2,000   2.00",
        "batch 1, ms           2.000  0.500   4.00",
        "largest difference of outputs: 1e-07 (largest output 3)",
    ]
    assert str(one).splitlines()[-1] == "batch 1, ms          2.000 (fastest 1.500)"
    found = sl.compare(before, after, torch.randn(4, 100), repeats=1)
    assert (found.before.parameters, found.after.parameters) == (5152, 202)
    x = torch.randn(4, 100)
    with torch.no_grad():
        expected = (before(x) - after(x)).abs().max().item()
        largest = before(x).abs().max().item()
    found = sl.compare(before, after, x, repeats=1)
    assert found.largest_difference == pytest.approx(expected, rel=1e-5)
    assert found.largest_output == pytest.approx(largest, rel=1e-5)
    assert "-" in str(sl.Comparison(one, sl.Measurement(0, 0, 0, 0, (latency,)), 0.0, 1.0))


def test_batches_repeat_the_rows_of_every_tensor_that_has_as_many() -> None:
    x, mask, scale = torch.arange(6.0).view(3, 2), torch.tensor([True, False, True]), torch.ones(5)
    tall, chosen, same = timing.repeated((x, mask, scale), 7)
    assert torch.equal(tall, x[[0, 1, 2, 0, 1, 2, 0]])
    assert torch.equal(chosen, mask[[0, 1, 2, 0, 1, 2, 0]])
    assert same is scale
    assert torch.equal(timing.repeated({"x": x, "depth": 3}, 2)["x"], x[:2])
    assert timing.repeated(x, 3) is x


def test_inputs_by_name_and_outputs_in_a_tree() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, *, x: Tensor, scale: float) -> dict[str, Tensor]:
            return {"out": self.layer(x) * scale, "index": torch.arange(3)}

    model = Named()
    found = sl.compare(model, model, {"x": torch.randn(4, 3), "scale": 2.0}, batch_sizes=(1, 8), repeats=1)
    assert found.largest_difference == 0.0
    assert found.before.flops == 2 * 4 * 6


LAYER = nn.Linear(3, 2)
X = torch.randn(4, 3)
WRONG = [
    (lambda: sl.measure(3, X), TypeError, "model must be an nn.Module, got int"),
    (lambda: sl.compare(LAYER, None, X), TypeError, "model must be an nn.Module, got NoneType"),
    (lambda: sl.measure(LAYER, [X]), TypeError, "example_input must be a tensor, a tuple of arguments .* got list"),
    (lambda: sl.measure(LAYER, (torch.tensor(3.0),)), ValueError, "example_input must hold a tensor with rows"),
    (lambda: sl.measure(LAYER, X[:0]), ValueError, "example_input must hold a tensor with rows"),
    (lambda: sl.measure(LAYER, X, batch_sizes=4), TypeError, r"batch_sizes must be a sequence of ints .* got 4"),
    (lambda: sl.measure(LAYER, X, batch_sizes=(0,)), ValueError, "each of batch_sizes must be at least 1, got 0"),
    (lambda: sl.measure(LAYER, X, repeats=0), ValueError, "repeats must be at least 1, got 0"),
    (
        lambda: sl.compare(LAYER, nn.Linear(3, 4), X),
        ValueError,
        r"outputs must have equal shapes .* got \[\(4, 2\)\] bef",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:30] for w in WRONG])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_device() -> None:
    model = nn.Linear(512, 512, device="cuda")
    found = sl.compare(model, model, torch.randn(4, 512, device="cuda"), batch_sizes=(4, 64), repeats=5)
    assert all(at.median >= at.fastest > 0 for at in found.before.latencies)
    assert found.largest_difference == 0.0
