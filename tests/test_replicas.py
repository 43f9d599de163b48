"""Replicas trained in one program come out as they do alone, by torch's Adam and the library's own ProxAdamW."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import sparselayers as sl
from sparselayers.sparsify.metric import euclidean

ROOT = Path(__file__).parent.parent
SEEDS, LAM = (3, 4, 3), (0.0, 0.003, 0.03)
STRONGER = 100  # for SGD: Adam's metric is small where gradients are


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("nets.replicas")


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3)).double()


def lenet() -> nn.Module:
    pool = nn.MaxPool2d(2)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(36, 3)).double()


def data(*shape: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(20, *shape, dtype=torch.float64), torch.arange(20) % 3


def alone(
    make: Callable[[], nn.Module], seed: int, lam: float, x: Tensor, y: Tensor, optimizer: type, penalty: sl.Penalty
) -> nn.Module:
    """Two epochs in batches of 8 under a cosine, by the library's optimizer."""
    torch.manual_seed(seed)
    model = make()
    regularizer = sl.Regularizer(model, penalty, lam, groups="outgoing")
    driver = optimizer(model.parameters(), lr=0.02, regularizer=regularizer)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(driver, 6)
    for epoch in range(2):
        order = torch.randperm(20, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
        for batch in order.split(8):
            driver.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            driver.step()
            rate.step()
    return model


@pytest.mark.parametrize("penalty", [sl.GroupL2(sqrt_size=True), sl.SparseGroup(), sl.L1()], ids=repr)
@pytest.mark.parametrize("kernels", [True, False])
def test_each_replica_is_the_network_trained_alone(replicas: ModuleType, penalty: sl.Penalty, kernels: bool) -> None:
    check(replicas, mlp, data(12), torch.optim.Adam, sl.ProxAdamW, penalty, kernels)


@pytest.mark.parametrize("penalty", [sl.GroupL2(), sl.Exclusive()], ids=repr)
def test_convolutions_and_sgd_go_the_same_way(replicas: ModuleType, penalty: sl.Penalty) -> None:
    x, y = data(1, 8, 8)
    check(replicas, lenet, (x, y), torch.optim.SGD, sl.ProxSGD, penalty, True)


def check(
    replicas: ModuleType,
    make: Callable[[], nn.Module],
    sample: tuple[Tensor, Tensor],
    optimizer: type,
    driver: type,
    penalty: sl.Penalty,
    kernels: bool,
) -> None:
    x, y = sample
    several = replicas.Replicas(make, SEEDS)
    plan = replicas.Plan(epochs=2, batch=8)
    one = optimizer(several.parameters.values(), lr=0.02)
    adam = optimizer is torch.optim.Adam
    strengths = [lam if adam else STRONGER * lam for lam in LAM]
    lam, rates = torch.tensor(strengths, dtype=torch.float64), replicas.adaptive if adam else euclidean

    def after_step(_: int) -> None:
        replicas.prox_step(several, one, penalty, lam, replicas.outgoing, rates)

    with sl.kernels(kernels):
        seconds = replicas.fit(several, x, y, plan, one, after_step)
        twins = [alone(make, seed, each, x, y, driver, penalty) for seed, each in zip(SEEDS, strengths, strict=True)]
    assert seconds > 0
    for i, twin in enumerate(twins):
        mine = several.model(i)
        for name, parameter in twin.named_parameters():
            torch.testing.assert_close(mine.get_parameter(name), parameter, rtol=1e-8, atol=1e-10)
            assert torch.equal(mine.get_parameter(name) == 0, parameter == 0)
        right = (twin(x).argmax(-1) == y).double().mean()
        assert replicas.accuracy(several, x, y, batch=7)[i] == pytest.approx(float(right))
    assert any((p == 0).any() for p in twins[2].parameters())


def test_a_frozen_pattern_stays(replicas: ModuleType) -> None:
    x, y = data(12)
    several = replicas.Replicas(mlp, SEEDS)
    with torch.no_grad():
        several.parameters["0.weight"][1, :, :4] = 0
    zeros = several.parameters["0.weight"] == 0
    one, hold = torch.optim.Adam(several.parameters.values(), lr=0.02), several.freeze()
    replicas.fit(several, x, y, replicas.Plan(epochs=1, batch=8), one, lambda _: hold())
    assert torch.equal(several.parameters["0.weight"] == 0, zeros)


def test_augmentation_sees_all_replicas_as_one_batch(replicas: ModuleType) -> None:
    x, y = data(12)
    several, seen = replicas.Replicas(mlp, SEEDS), []

    def augment(batch: Tensor) -> Tensor:
        seen.append(batch.shape)
        return -batch

    one = torch.optim.SGD(several.parameters.values(), lr=0.0)
    replicas.fit(several, x, y, replicas.Plan(epochs=1, batch=8, augment=augment), one)
    assert seen == [(24, 12), (24, 12), (12, 12)]


def test_the_example_trains_each_network_as_prox_adamw_does() -> None:
    spec = importlib.util.spec_from_file_location("replicas_example", ROOT / "examples" / "replicas.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    torch.manual_seed(1)
    x, y = torch.rand(100, 64), torch.arange(100) % 10
    x[:, :8] = 0
    _, stacks = example.train([0, 5], torch.tensor([1e-3, 4e-3]), x, y, epochs=2)
    model = example.network(5)
    regularizer = sl.Regularizer(model, example.PENALTY, 4e-3, groups="input")
    optimizer = sl.ProxAdamW(model.parameters(), example.LR, eps=example.EPS, regularizer=regularizer)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    torch.manual_seed(0)
    for _ in range(2):
        for batch in torch.randperm(100).split(example.BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            rate.step()
    assert (model[0].weight == 0).any()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(stacks[name][1], parameter, rtol=1e-3, atol=1e-4)
