"""Sparse weights: whole neurons leave a network while it is trained, by a prox step after every optimizer step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import sparselayers as sl

from .. import plotting
from .common import Digits, digits, progress, save, table

HIDDEN = ("0.weight", "2.weight")  # the hidden layers; the last one has a neuron for each class and keeps them all


@dataclass(frozen=True)
class Row:
    """A network's test accuracy, the neurons it keeps in each hidden layer, and its share of zero weights."""

    name: str
    accuracy: float
    kept: tuple[int, ...]
    zeros: float


@dataclass(frozen=True)
class Neurons:
    """The plain network and the one with group lasso; prints as a table."""

    plain: Row
    sparse: Row
    figures: tuple[Path, ...]

    def __str__(self) -> str:
        return table(
            "Neurons, digits by a network of two hidden layers with 128 neurons each",
            ["training", "test accuracy", "neurons kept in layer 1", "in layer 2", "weights exactly 0"],
            [
                [row.name, f"{row.accuracy:.1%}", *map(str, row.kept), f"{row.zeros:.1%}"]
                for row in (self.plain, self.sparse)
            ],
        )


def run(out: Path, quick: bool = False) -> Neurons:
    """Train the same network without and with group lasso on its hidden neurons."""
    data = digits()
    n_epochs, lam = (15, 0.06) if quick else (100, 0.03)
    plain = train(data, n_epochs, lam=0.0)
    sparse = train(data, n_epochs, lam=lam)
    rows = measure("plain", plain, data), measure("group lasso", sparse, data)
    pattern = {
        f"{name}, layer {i + 1}:\n{row.kept[i]} of 128 neurons kept": model.get_parameter(weight)
        for i, weight in enumerate(HIDDEN)
        for name, model, row in zip(("plain", "group lasso"), (plain, sparse), rows, strict=True)
    }
    figure = plotting.weight_pattern(
        pattern,
        title="Group lasso removes whole neurons: the white rows are exactly 0",
        ylabel="neuron (row of the weight matrix)",
    )
    return Neurons(*rows, (save(figure, out / "neurons_weights.png"),))


def train(data: Digits, n_epochs: int, lam: float, batch_size: int = 64) -> nn.Sequential:
    """A network trained by SGD; with lam > 0 a prox step of the group lasso follows every step of the optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if lam:
        sl.Regularizer(model, sl.GroupL2(), lam, groups="neuron", include=HIDDEN).attach(optimizer)
    images = data.train_images.flatten(1)
    for _ in progress(n_epochs, "training group lasso" if lam else "training plain"):
        for batch in torch.randperm(len(images)).split(batch_size):
            loss = nn.functional.cross_entropy(model(images[batch]), data.train_classes[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def measure(name: str, model: nn.Sequential, data: Digits) -> Row:
    with torch.no_grad():
        accuracy = (model(data.test_images.flatten(1)).argmax(-1) == data.test_classes).float().mean()
    report = sl.sparsity_report(model)
    kept = tuple(layer.neurons - layer.neurons_zero for layer in report.layers if layer.name in HIDDEN)
    return Row(name, float(accuracy), kept, report.weights_zero / report.weights)
