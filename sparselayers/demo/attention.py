"""Sparse attention: a small network that reads a digit through learned queries, with three ways to weigh the keys.

softmax gives every place some weight; sparsemax and scale-free attention give most places exactly none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

import sparselayers.functional as F

from .. import plotting
from .common import Digits, digits, progress, save, table

Mapping = Literal["softmax", "sparsemax", "scale_free"]
MAPPINGS: tuple[Mapping, ...] = ("softmax", "sparsemax", "scale_free")
PATCH = 3
GRID = 8 - PATCH + 1  # a digit of 8 x 8 pixels has 6 x 6 overlapping patches
N_SHOWN = 8


@dataclass(frozen=True)
class Row:
    """A mapping: its test accuracy, its share of attention weights of exactly 0, and the places that a query uses."""

    mapping: str
    accuracy: float
    zeros: float
    places: float


@dataclass(frozen=True)
class Attention:
    """One row a mapping; prints as a table."""

    rows: tuple[Row, ...]
    figures: tuple[Path, ...]

    def __str__(self) -> str:
        return table(
            "Attention, handwritten digits read through eight learned queries",
            ["mapping", "test accuracy", "exact zeros", f"places used of {GRID**2}"],
            [[row.mapping, f"{row.accuracy:.1%}", f"{row.zeros:.1%}", f"{row.places:.1f}"] for row in self.rows],
        )


class Reader(nn.Module):
    """Patches of a digit become tokens; learned queries attend to them; a small network names the digit."""

    def __init__(self, mapping: Mapping, width: int = 64, key_width: int = 16, n_queries: int = 8) -> None:
        super().__init__()
        self.mapping = mapping
        self.embed = nn.Linear(PATCH**2, width)
        self.position = nn.Parameter(torch.randn(GRID**2, width) / 2)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(n_queries, key_width))
        self.key = nn.Linear(width, key_width)
        self.value = nn.Linear(width, width // 2)
        self.classify = nn.Sequential(nn.Linear(n_queries * width // 2, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.tokens(images)
        return self.classify(self.attend(self.key(tokens), self.value(tokens)).flatten(1))

    def weights(self, images: Tensor) -> Tensor:
        """Attention weights (n, queries, places): what attention makes of the identity as its values."""
        keys = self.key(self.tokens(images))
        return self.attend(keys, torch.eye(GRID**2).expand(len(images), -1, -1))

    def tokens(self, images: Tensor) -> Tensor:
        patches = images.unfold(1, PATCH, 1).unfold(2, PATCH, 1).reshape(len(images), GRID**2, PATCH**2)
        return self.norm(self.embed(patches) + self.position).relu()

    def attend(self, keys: Tensor, values: Tensor) -> Tensor:
        queries = self.query.expand(len(keys), -1, -1)
        if self.mapping == "scale_free":
            # A little locality makes the weights of a query inside the hull of its keys unique.
            return F.scale_free_attention(queries, keys, values, locality=0.1, tol=1e-3)
        return F.scaled_dot_product_attention(queries, keys, values, mapping=self.mapping)


def run(out: Path, quick: bool = False) -> Attention:
    """Train the same network with each mapping, and look at its attention weights on the test digits."""
    data = digits()
    rows: list[Row] = []
    maps: dict[str, Tensor] = {}
    for mapping in MAPPINGS:
        torch.manual_seed(0)
        model = Reader(mapping)
        train(model, data, n_epochs=3 if quick else 25)
        with torch.no_grad():
            accuracy = (model(data.test_images).argmax(-1) == data.test_classes).float().mean()
            weights = model.weights(data.test_images)
        used = (weights != 0).float()
        rows.append(Row(mapping, float(accuracy), float(1 - used.mean()), float(used.sum(-1).mean())))
        maps[mapping] = weights[:N_SHOWN, 0].unflatten(-1, (GRID, GRID))
    figure = plotting.attention_maps(
        data.test_images[:N_SHOWN],
        maps,
        title="Where the first query looks: only the coloured places have a weight above 0",
    )
    return Attention(tuple(rows), (save(figure, out / "attention_maps.png"),))


def train(model: Reader, data: Digits, n_epochs: int, batch_size: int = 128, lr: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.1)
    n_batches = -(-len(data.train_images) // batch_size)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=n_epochs * n_batches)
    for _ in progress(n_epochs, f"training {model.mapping}"):
        for batch in torch.randperm(len(data.train_images)).split(batch_size):
            loss = nn.functional.cross_entropy(model(data.train_images[batch]), data.train_classes[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
