"""Gradients through many steps of ISTA are unstable; the implicit gradient is not.

While the support of a code still changes, the derivative of the steps in the dictionary gathers errors (Malezieux, Moreau and
Kowalski, ICLR 2022; their setting: D 30 x 50, density 0.3, noise 0.1, lam 0.1 lam_max). One learns: (1) how far the dictionary
gradients of 50 samples through N steps are from those at the optimum, and how many are worse than no gradient at all, an error
above 1; (2) that the implicit gradient of F.lasso agrees with finite differences on every sample.

    python examples/unrolled_instability.py [--steps 10000] [--out FOLDER]      # with a folder: draws the errors
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import sparselayers.functional as F

SAMPLES, FEATURES, ATOMS, DENSITY, NOISE = 50, 30, 50, 0.3, 0.1
DEPTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


def planted() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Signals D z + noise, the dictionary, and a gradient of the codes that is to be pulled back."""
    D = torch.randn(FEATURES, ATOMS, dtype=torch.float64)
    D = D / D.norm(dim=0)
    z = torch.randn(SAMPLES, ATOMS, dtype=torch.float64) * (torch.rand(SAMPLES, ATOMS) < DENSITY)
    x = z @ D.mT
    return x + NOISE * torch.randn_like(x), D, torch.randn(SAMPLES, ATOMS, dtype=torch.float64)


def pulled_back(
    code: Callable, x: torch.Tensor, D: torch.Tensor, lam: torch.Tensor, pull: torch.Tensor
) -> torch.Tensor:
    """The gradient of sum(code * pull) in D, one a sample: (samples, features * atoms)."""
    loss = torch.func.grad(lambda D, x, lam, pull: (code(x, D, lam) * pull).sum())
    return torch.func.vmap(loss, (None, 0, 0, 0))(D, x, lam, pull).flatten(1)


def slopes(
    x: torch.Tensor, D: torch.Tensor, lam: torch.Tensor, pull: torch.Tensor, moves: torch.Tensor
) -> torch.Tensor:
    """By finite differences of converged codes along some moves of D: (samples, moves)."""
    there, back = (torch.stack([F.lasso(x, D + s * 1e-6 * m, lam, tol=1e-13).code for m in moves]) for s in (1, -1))
    return ((there - back) * pull).sum(-1).mT / 2e-6


def relative(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (found - expected).norm(dim=-1) / expected.norm(dim=-1)


def draw(depths: list[int], errors: torch.Tensor, folder: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.loglog(depths, errors, color="tab:blue", alpha=0.4)
    axes.axhline(1, color="black", linestyle="--")
    axes.set(
        xlabel="steps N", ylabel="relative error of the gradient", title="One line a sample; above 1: worse than none"
    )
    axes.set_ylim(bottom=1e-8)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "unrolled_instability.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    x, D, pull = planted()
    lam, step = 0.1 * (x @ D).abs().amax(-1, keepdim=True), 1 / float(torch.linalg.matrix_norm(D, 2)) ** 2

    implicit = pulled_back(lambda x, D, lam: F.lasso(x, D, lam, tol=1e-13).code, x, D, lam, pull)
    depths = [depth for depth in DEPTHS if depth <= options.steps]
    unrolled = [partial(F.ista, depth=depth, step=step) for depth in depths]
    errors = torch.stack([relative(pulled_back(code, x, D, lam, pull), implicit) for code in unrolled])

    print(f"gradients through N steps of ISTA, {SAMPLES} samples: relative error")
    print("    N    median   largest   samples above 1")
    for depth, error in zip(depths, errors, strict=True):
        print(f"{depth:5d}  {error.median():8.1e}  {error.max():8.1e}  {100 * (error > 1).double().mean():12.0f} %")
    print(f"above 1 at some N: {100 * (errors > 1).any(0).double().mean():.0f} % of the samples")

    moves = torch.randn(20, FEATURES, ATOMS, dtype=torch.float64)
    checked = relative(implicit @ moves.flatten(1).mT, slopes(x, D, lam, pull, moves))
    print("\nthe implicit gradient against finite differences")
    print(
        f"largest relative error: {checked.max():.1e}; above 1: {100 * (checked > 1).double().mean():.0f} % of the samples"
    )
    if options.out:
        draw(depths, errors, options.out)


if __name__ == "__main__":
    main()
