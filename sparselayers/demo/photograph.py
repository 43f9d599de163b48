"""Sparse codes: patches of a photograph coded in a learned and in a random dictionary, and noise removed by coding.

A patch x of 8 x 8 pixels without its mean is coded as x ≈ D z by  argmin_z 1/2 ‖x - D z‖² + lam ‖z‖_1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import sparselayers as sl
import sparselayers.functional as F

from .. import plotting
from .common import progress, save, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 8
N_ATOMS = 256
LAM = 0.05  # for coding clean patches
NOISE = 0.1
METHODS: dict[str, tuple[Callable[..., Tensor], sl.Constant | sl.Homotopy]] = {
    "ISTA": (F.ista, sl.Constant()),
    "FISTA": (F.fista, sl.Constant()),
    "homotopy ISTA": (F.ista, sl.Homotopy()),
}


@dataclass(frozen=True)
class Curve:
    """How well a method codes held-out patches, one number a depth.

    zeros: the share of exact zeros. excess: how far the Lasso objective is above its minimum, relative to that.
    """

    dictionary: str
    method: str
    psnr: tuple[float, ...]
    zeros: tuple[float, ...]
    excess: tuple[float, ...]


@dataclass(frozen=True)
class Photograph:
    """The codes by depth, and the PSNR of a noisy crop before and after it was coded; prints as tables."""

    depths: tuple[int, ...]
    curves: tuple[Curve, ...]
    noisy: float
    denoised: dict[str, float]  # by dictionary
    figures: tuple[Path, ...]

    def __str__(self) -> str:
        head = ["steps", *map(str, self.depths)]
        names = [f"{curve.method}, {curve.dictionary} dictionary" for curve in self.curves]
        quality = [
            [name, *(f"{psnr:.1f} / {zeros:.0%}" for psnr, zeros in zip(curve.psnr, curve.zeros, strict=True))]
            for name, curve in zip(names, self.curves, strict=True)
        ]
        excess = [
            [name, *(f"{value:.1%}" for value in curve.excess)] for name, curve in zip(names, self.curves, strict=True)
        ]
        gains = [
            [f"coded, {name} dictionary", f"{value:.1f}", f"{value - self.noisy:+.1f}"]
            for name, value in self.denoised.items()
        ]
        return "\n\n".join(
            [
                table("Photograph: codes of held-out patches, PSNR in dB / exact zeros", head, quality),
                table("Photograph: Lasso objective of the same codes, above its minimum", head, excess),
                table(
                    "Photograph: noise removed from a held-out crop",
                    ["", "PSNR (dB)", "gain (dB)"],
                    [["noisy", f"{self.noisy:.1f}", ""], *gains],
                ),
            ]
        )


def run(out: Path, quick: bool = False) -> Photograph:
    """Learn a dictionary on one part of the photograph; code and denoise another part that it has not seen."""
    torch.manual_seed(0)
    training, crop = load(crop_side=64 if quick else 160)
    learned = learn_dictionary(training, n_steps=20 if quick else 300)
    dictionaries = {"learned": learned, "random": sl.ISTA(SIDE**2, N_ATOMS, depth=1).dictionary.detach()}
    depths = (1, 4) if quick else (1, 2, 4, 8, 16, 32)
    held_out = centred(patches(crop, stride=4))[0]
    curves = tuple(compare(held_out, dictionaries, depths))

    noisy = crop + NOISE * torch.randn_like(crop)
    cleaned = {name: denoise(noisy, D, stride=4 if quick else 1) for name, D in dictionaries.items()}
    pictures = {
        f"noisy, {psnr(noisy, crop):.1f} dB": noisy,
        f"denoised, {psnr(cleaned['learned'], crop):.1f} dB": cleaned["learned"],
        "clean": crop,
    }
    used = (F.fista(held_out, learned, LAM, depth=8) != 0).sum(0)
    atoms = plotting.atoms(
        learned[:, used.argsort(descending=True)],
        title=f"{N_ATOMS} learned atoms of {SIDE} x {SIDE} pixels, the most used ones first",
    )
    denoised = plotting.images(pictures, title="Noise leaves when overlapping patches are coded sparsely and averaged")
    figures = (
        save(draw(depths, curves), out / "photograph_codes.png"),
        save(atoms, out / "photograph_atoms.png"),
        save(denoised, out / "photograph_denoised.png"),
    )
    gains = {name: psnr(image, crop) for name, image in cleaned.items()}
    return Photograph(depths, curves, psnr(noisy, crop), gains, figures)


def load(crop_side: int) -> tuple[Tensor, Tensor]:
    """Patches to learn from (n, 64), and a square crop of the photograph that none of them overlaps."""
    from sklearn.datasets import load_sample_image

    photograph = torch.tensor(load_sample_image("china.jpg"), dtype=torch.float32)
    grey = photograph @ torch.tensor([0.299, 0.587, 0.114]) / 255
    top, left = 20, 200
    bands = (grey[top + crop_side :], grey[:, :left], grey[:, left + crop_side :])
    training = torch.cat([centred(patches(band, stride=2))[0] for band in bands])
    # The sky is flat: what is not is where there is something to learn.
    training = training[training.square().sum(1) > 0.3**2]
    return training, grey[top : top + crop_side, left : left + crop_side]


def patches(image: Tensor, stride: int) -> Tensor:
    """All overlapping patches of an image (height, width), as rows (n, 64)."""
    return image.unfold(0, SIDE, stride).unfold(1, SIDE, stride).reshape(-1, SIDE**2)


def centred(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(-1, keepdim=True)
    return x - mean, mean


def learn_dictionary(training: Tensor, n_steps: int, lam: float = 0.1) -> Tensor:
    """A dictionary (64, 256) that makes the Lasso objective small, by gradients through ten steps of FISTA."""
    layer = sl.unit_norm(sl.FISTA(SIDE**2, N_ATOMS, depth=10, lam=lam, schedule=sl.Constant()))
    optimizer = torch.optim.Adam(layer.parameters(), lr=2e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for _ in progress(n_steps, "learning a dictionary"):
        x = training[torch.randint(len(training), (512,))]
        z = layer(x)
        loss = (x - layer.decode(z)).square().sum(-1).mean() / 2 + lam * z.abs().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return layer.dictionary.detach()


def compare(x: Tensor, dictionaries: dict[str, Tensor], depths: tuple[int, ...]) -> list[Curve]:
    """Every method in every dictionary at every depth."""
    curves = []
    for kind, D in dictionaries.items():
        least = objective(x, D, F.fista(x, D, LAM, depth=300))
        for method, (solve, schedule) in METHODS.items():
            codes = [solve(x, D, LAM, depth=depth, schedule=schedule) for depth in depths]
            curves.append(
                Curve(
                    kind,
                    method,
                    tuple(psnr(z @ D.mT, x) for z in codes),
                    tuple(float((z == 0).float().mean()) for z in codes),
                    tuple(objective(x, D, z) / least - 1 for z in codes),
                )
            )
    return curves


def objective(x: Tensor, D: Tensor, z: Tensor) -> float:
    return float((x - z @ D.mT).square().sum() / 2 + LAM * z.abs().sum())


def denoise(noisy: Tensor, D: Tensor, stride: int) -> Tensor:
    """Code every patch, put the reconstructions back in place, and average where they overlap."""
    x, mean = centred(patches(noisy, stride))
    # A share at a time stays in the cache; a patch's code does not depend on its batch.
    z = torch.cat([F.fista(part, D, 1.6 * NOISE, depth=30) for part in x.split(1024)])
    rebuilt = (z @ D.mT + mean).mT
    total = nn.functional.fold(rebuilt, noisy.shape, SIDE, stride=stride)
    count = nn.functional.fold(torch.ones_like(rebuilt), noisy.shape, SIDE, stride=stride)
    return (total / count).squeeze(0)


def psnr(estimate: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, for values in [0, 1]."""
    return -10 * float((estimate - truth).square().mean().log10())


def draw(depths: tuple[int, ...], curves: tuple[Curve, ...]) -> Figure:
    ordered = sorted(curves, key=lambda curve: list(METHODS).index(curve.method))  # so that the legend pairs them
    names = [f"{curve.method}, {curve.dictionary}" for curve in ordered]
    styles = [f"C{list(METHODS).index(c.method)}" + ("-o" if c.dictionary == "learned" else "--s") for c in ordered]
    panels: dict[str, list[Sequence[float]]] = {
        "PSNR of the reconstruction (dB)": [curve.psnr for curve in ordered],
        "exact zeros in the code (%)": [[100 * share for share in curve.zeros] for curve in ordered],
        "Lasso objective above its minimum (%)": [[100 * share for share in curve.excess] for curve in ordered],
    }
    return plotting.curves(
        depths,
        {label: dict(zip(names, values, strict=True)) for label, values in panels.items()},
        xlabel="steps (depth of the layer)",
        title="FISTA needs the fewest steps; a learned dictionary (solid) codes better than a random one (dashed)",
        styles=dict(zip(names, styles, strict=True)),
    )
