"""Small decoders with softmax, sparsemax and entmax-1.5, with and without a scale that grows with the length.

One learns: (1) the mapping is one word, `mapping=` of `F.scaled_dot_product_attention`, and a scale that adapts to the
length is a factor on the query; (2) what the word does to a character-level language model, trained on the language
reference that ships with Python: bits per character and the share of weights that are exactly zero, by layer; (3) which
of the models still sort at twice and four times the length they were trained on.

    python examples/attention_swap.py                      # a short run: seconds a model, nothing converges
    python examples/attention_swap.py --full --out FOLDER  # the run of docs/attention-swap.md; JSON and pictures in FOLDER
"""

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

import sparselayers.functional as F
from sparselayers import plotting

MODELS = {  # name -> (mapping, whether the scale adapts to the length)
    "softmax": ("softmax", False),
    "softmax, scaled": ("softmax", True),
    "sparsemax": ("sparsemax", False),
    "entmax15": ("entmax15", False),
    "entmax15, scaled": ("entmax15", True),
}
WIDTH, HEADS, LAYERS = 64, 4, 2
CONTEXT = 128  # characters
NUMBERS, TRAINED = 128, 16  # sorting: which numbers there are, and the largest length trained on
LENGTHS = (TRAINED, 2 * TRAINED, 4 * TRAINED)
SLOPES = torch.tensor([0.0, 0.0, 1 / 16, 1 / 4])  # of each head; two heads know nothing of distance, two do


class LengthScale(nn.Module):
    """1 + softplus(b) log(i + 2)^(2 tanh(g)) for place i, with b and g linear in what is there; heads with slope 0 only."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 2 * HEADS)

    def forward(self, x: Tensor) -> Tensor:
        b, g = self.project(x).mT.unsqueeze(-1).chunk(2, 1)
        growth = torch.arange(2, x.shape[1] + 2).log().unsqueeze(-1) ** (2 * g.tanh())
        return torch.where(SLOPES.view(-1, 1, 1) == 0, 1 + nn.functional.softplus(b) * growth, 1)


class Block(nn.Module):
    """Attention, then a small network at each place, both added to what comes in."""

    def __init__(self, mapping: str, scaled: bool) -> None:
        super().__init__()
        self.mapping = mapping
        self.scale = LengthScale() if scaled else None
        self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, seen: list[Tensor] | None) -> Tensor:
        h = self.norm(x)
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.project(h).chunk(3, -1))
        if self.scale is not None:
            query = query * self.scale(h)
        place = torch.arange(x.shape[1])
        mask = -SLOPES.view(-1, 1, 1) * (place.unsqueeze(-1) - place)
        mask = mask.masked_fill(place.unsqueeze(-1) < place, -torch.inf)
        mixed = F.scaled_dot_product_attention(query, key, value, mask, mapping=self.mapping)  # the one word
        if seen is not None:  # the identity in the place of the values shows the weights
            eye = torch.eye(x.shape[1]).expand(*key.shape[:2], -1, -1)
            seen.append(F.scaled_dot_product_attention(query, key, eye, mask, mapping=self.mapping))
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Decoder(nn.Module):
    """Scores of the next symbol at each place; `seen` collects the attention weights of each layer."""

    def __init__(self, n_symbols: int, mapping: str, scaled: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(n_symbols, WIDTH)
        self.blocks = nn.ModuleList(Block(mapping, scaled) for _ in range(LAYERS))
        self.read = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, n_symbols))

    def forward(self, symbols: Tensor, seen: list[Tensor] | None = None) -> Tensor:
        x = self.embed(symbols)
        for block in self.blocks:
            x = block(x, seen)
        return self.read(x)


def train(model: Decoder, batches: Callable[[], tuple[Tensor, Tensor]], steps: int, lr: float) -> Iterator[float]:
    """One loss a step, in nats; a target of -100 does not count. The rate warms up and falls to 0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    warm = max(1, steps // 20)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    for _ in range(steps):
        symbols, target = batches()
        loss = nn.functional.cross_entropy(model(symbols).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        yield loss.item()


def sorting(n: int, length: int) -> tuple[Tensor, Tensor]:
    """`length` different numbers, a separator, and the same in order; the target is what comes next after the separator."""
    numbers = torch.rand(n, NUMBERS).argsort(-1)[:, :length]
    symbols = torch.cat([numbers, torch.full((n, 1), NUMBERS), numbers.sort(-1).values], -1)
    target = symbols[:, 1:].clone()
    target[:, :length] = -100
    return symbols[:, :-1], target
