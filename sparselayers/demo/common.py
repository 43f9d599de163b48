"""What the parts of the demo share: a table of text, a progress bar, the digits, and saving a figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

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
