"""The data sets, standardised, with a part of the training set held out: strengths are chosen there, never on test."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

HELD = 5_000  # of the pictures, the last ones
MD5 = {  # of MNIST's uncompressed files
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class Split(NamedTuple):
    """Inputs (n, ...) in float32 and their classes, 0-based, in three parts."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def flat(self) -> Split:
        """The same with pictures as rows."""
        return Split(*(part.flatten(1) if part.ndim > 1 else part for part in self))

    def whole(self) -> Split:
        """The same with the held-out part back in the training part."""
        return self._replace(x=torch.cat([self.x, self.held_x]), y=torch.cat([self.y, self.held_y]))

    def to(self, device: str) -> Split:
        return Split(*(part.to(device) for part in self))


def mnist(folder: Path | None) -> Split:
    """55,000 + 5,000 + 10,000 pictures (n, 1, 28, 28); None: made-up ones of that shape, few."""
    return _pictures(folder, "mnist", 0.1307, 0.3081, MD5)


def fashion_mnist(folder: Path | None) -> Split:
    """As MNIST, of clothes."""
    return _pictures(folder, "fashion_mnist", 0.2860, 0.3530, {})


def covertype(folder: Path | None) -> Split:
    """A 16 % sample of Covertype: 54 features, 7 classes; a fifth for the test, a tenth of the rest held out."""
    if folder is None:
        return made_up((54,), 7)
    table = np.loadtxt(folder / "covertype" / "covtype_sample16.csv.gz", delimiter=",", skiprows=1, dtype=np.float32)
    return _rows(table[:, :-1], table[:, -1] - 1)


def sdd(folder: Path | None) -> Split:
    """2,200 rows of Sensorless Drive Diagnosis: 48 features, 11 classes; split as Covertype."""
    if folder is None:
        return made_up((48,), 11)
    with np.load(folder / "sdd" / "sdd_2200.npz") as found:
        return _rows(found["X"], found["y"])


READERS: dict[str, Callable[[Path | None], Split]] = {
    "MNIST": mnist,
    "Fashion-MNIST": fashion_mnist,
    "Covertype": covertype,
    "SDD": sdd,
}


def made_up(shape: tuple[int, ...], n_classes: int, n: int = 700) -> Split:
    """A point a class and noise around it: a test of the script, no data."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % n_classes
    x = torch.randn(n_classes, *shape, generator=generator)[y] + torch.randn(n, *shape, generator=generator)
    return Split(x[:400], y[:400], x[400:500], y[400:500], x[500:], y[500:])


def _pictures(folder: Path | None, name: str, mean: float, std: float, md5: dict[str, str]) -> Split:
    if folder is None:
        return made_up((1, 28, 28), 10)

    def read(file: str, skip: int) -> Tensor:
        raw = gzip.decompress((folder / name / f"{file}.gz").read_bytes())
        found = hashlib.md5(raw).hexdigest()
        if file in md5 and found != md5[file]:
            raise ValueError(f"{file} has the md5 {found}, expected {md5[file]}: it is not the original")
        return torch.frombuffer(bytearray(raw[skip:]), dtype=torch.uint8)

    x, test_x = (
        ((read(f"{part}-images-idx3-ubyte", 16).view(-1, 1, 28, 28) / 255) - mean) / std for part in ("train", "t10k")
    )
    y, test_y = (read(f"{part}-labels-idx1-ubyte", 8).long() for part in ("train", "t10k"))
    return Split(x[:-HELD], y[:-HELD], x[-HELD:], y[-HELD:], test_x, test_y)


def _rows(features: np.ndarray, classes: np.ndarray) -> Split:
    """In a fixed random order, every column with the mean 0 and the deviation 1 of the training part."""
    order = np.random.default_rng(0).permutation(len(classes))
    x, y = torch.as_tensor(features[order], dtype=torch.float32), torch.as_tensor(classes[order]).long()
    n_test = len(y) // 5
    n_held = (len(y) - n_test) // 10
    n = len(y) - n_test - n_held
    mean, std = x[:n].mean(0), x[:n].std(0)
    x = (x - mean) / torch.where(std > 0, std, 1)
    return Split(x[:n], y[:n], x[n : n + n_held], y[n : n + n_held], x[n + n_held :], y[n + n_held :])
