"""Three ways down the Lasso objective: steepest descent by the least subgradient, ISTA, FISTA.

One learns: (1) steepest descent with an exact line search does descend, because it takes the subgradient of least norm;
(2) how the three compare, step by step, in objective minus optimum; a step of each costs about two products with D.

    python examples/descent_compared.py [--out FOLDER]     # with --out: also the curves, descent-compared.png
"""

import argparse
from pathlib import Path

import torch

import sparselayers.functional as F

LAM = 0.1
METHODS = {
    "subgradient descent": F.subgradient_descent,
    "ISTA": F.ista,
    "FISTA": lambda *problem, depth: F.fista(*problem, depth=depth, restart=None),
    "FISTA, restarts": F.fista,
}
DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def planted(n_samples: int = 32, n_features: int = 32, n_atoms: int = 64, n_active: int = 6) -> tuple:
    """Noisy signals with sparse codes, and the unit-norm dictionary."""
    D = torch.randn(n_features, n_atoms, dtype=torch.float64)
    D = D / D.norm(dim=0)
    z = torch.randn(n_samples, n_atoms, dtype=torch.float64)
    z = torch.where(torch.rand_like(z).argsort(-1) < n_active, z, 0)
    return z @ D.mT + 0.05 * torch.randn(n_samples, n_features, dtype=torch.float64), D


def objective(x: torch.Tensor, D: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return (x - z @ D.mT).square().sum(-1) / 2 + LAM * z.abs().sum(-1)


def excess() -> dict[str, list[float]]:
    """Median over the samples of objective - optimum, after each number of steps."""
    torch.manual_seed(0)
    x, D = planted()
    optimum = objective(x, D, F.fista(x, D, LAM, depth=5000))
    return {
        name: [float((objective(x, D, code(x, D, LAM, depth=k)) - optimum).median()) for k in DEPTHS]
        for name, code in METHODS.items()
    }


def draw(curves: dict[str, list[float]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.5, 4))
    for name, values in curves.items():
        axis.loglog(DEPTHS, [max(value, 1e-16) for value in values], marker="o", markersize=3, label=name)
    axis.set(
        xlabel="steps", ylabel="objective - optimum (median)", ylim=(1e-12, None), title="Lasso, 32 x 64, lam = 0.1"
    )
    axis.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Lasso objective by step")
    parser.add_argument("--out", type=Path, help="folder for the curves")
    out = parser.parse_args(arguments).out
    curves = excess()
    print("objective - optimum, median of 32 signals")
    print("steps".rjust(5), *(name.rjust(20) for name in curves))
    for i, depth in enumerate(DEPTHS):
        print(f"{depth:5d}", *(f"{values[i]:20.1e}" for values in curves.values()))
    if out:
        out.mkdir(parents=True, exist_ok=True)
        draw(curves, out / "descent-compared.png")


if __name__ == "__main__":
    main()
