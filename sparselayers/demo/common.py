"""What the demo and the examples share: the digits, training on them, tables of text, and saving."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Digits(NamedTuple):
    """Handwritten digits (n, 8, 8) in [0, 1] with their classes 0..9, split into a training and a test part."""

    train_images: Tensor
    train_classes: Tensor
    test_images: Tensor
    test_classes: Tensor


def digits() -> Digits:
    """The 1797 digits that come with scikit-learn; every fourth, in a fixed random order, is for the test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32)[order] / 16
    classes = torch.tensor(data.target)[order]
    test = torch.arange(len(order)) % 4 == 3
    return Digits(images[~test], classes[~test], images[test], classes[test])


def fit(model: nn.Module, data: Digits, epochs: int, lr: float, batch_size: int = 64) -> float:
    """Train a classifier by AdamW and a rate that rises and falls; its accuracy on the test digits, in eval mode."""
    batches = [batch for _ in range(epochs) for batch in torch.randperm(len(data.train_images)).split(batch_size)]
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=len(batches))
    for batch in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train_images[batch]), data.train_classes[batch]).backward()
        optimizer.step()
        rate.step()
    model.eval().requires_grad_(False)
    return (model(data.test_images).argmax(-1) == data.test_classes).float().mean().item()


def progress(n: int, label: str) -> Iterable[int]:
    """range(n) with a progress bar on the terminal."""
    from tqdm import tqdm

    return tqdm(range(n), desc=label.ljust(24), leave=True, ncols=88)


def save(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    return path


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned table of text: the first column to the left, the others to the right."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    rule = "-" * len(text[0])
    return "\n".join([title, rule, text[0], rule, *text[1:], rule])


def options() -> argparse.Namespace:
    """What one can ask of an example that measures: --seeds, and --out for a JSON file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file; nothing is written without")
    return parser.parse_args()


def report(title: str, runs: Sequence[dict[str, Any]], out: Path | None = None) -> str:
    """A line for each value of the runs' first key, with means over "seed"; the runs go to `out` as JSON, if given."""
    name, *keys = (key for key in runs[0] if key != "seed")
    lines = []
    for value in dict.fromkeys(run[name] for run in runs):
        same = [run for run in runs if run[name] == value]
        means = [statistics.fmean(run[key] for run in same) for key in keys]
        lines.append([str(value), *(f"{mean:.0f}" if mean >= 100 else f"{mean:.3f}" for mean in means)])
    if out is not None:
        rounded = json.loads(json.dumps(list(runs)), parse_float=lambda digits: float(f"{float(digits):.4g}"))
        found = {"title": title, "torch": torch.__version__, "cores": os.cpu_count(), "runs": rounded}
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return table(title, [name, *keys], lines)
