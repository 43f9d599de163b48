"""Sparse codes at a fixed depth: ISTA, FISTA and homotopy on a planted problem.

One learns: (1) how far each method is from the converged Lasso code after 4 to 64 steps, with the same number of
products with D; (2) that a homotopy layer is scale-equivariant: ten times the signal at ten times lam gives ten
times the code; (3) that a loud sample in the batch does not change the code of a quiet one, because lam_max is
taken per sample.
"""

import torch

import sparselayers as sl
import sparselayers.functional as F

LAM = 0.05
METHODS = {
    "ISTA": (F.ista, sl.Constant()),
    "ISTA + homotopy": (F.ista, sl.Homotopy()),
    "FISTA": (F.fista, sl.Constant()),
    "FISTA + homotopy": (F.fista, sl.Homotopy()),
}


def planted(n_samples: int = 32, n_features: int = 32, n_atoms: int = 64, n_active: int = 4) -> tuple:
    """Signals x = D z with a sparse z, and the unit-norm dictionary D."""
    D = torch.randn(n_features, n_atoms, dtype=torch.float64)
    D = D / D.norm(dim=0)
    z = torch.randn(n_samples, n_atoms, dtype=torch.float64)
    active = torch.rand_like(z).argsort(-1) < n_active
    return torch.where(active, z, 0) @ D.mT, D


def relative_error(z: torch.Tensor, optimum: torch.Tensor) -> float:
    return float((z - optimum).norm() / optimum.norm())


def main() -> None:
    torch.manual_seed(0)
    x, D = planted()
    optimum = F.fista(x, D, LAM, depth=1000)

    print("relative distance to the converged code")
    print("depth".rjust(5), *(name.rjust(18) for name in METHODS))
    for depth in (4, 8, 16, 32, 64):
        codes = (method(x, D, LAM, depth=depth, schedule=schedule) for method, schedule in METHODS.values())
        print(f"{depth:5d}", *(f"{relative_error(z, optimum):18.4f}" for z in codes))

    layer = sl.ISTA(32, 64, depth=16, lam=LAM, dictionary=D, learn=())
    louder = sl.ISTA(32, 64, depth=16, lam=10 * LAM, dictionary=D, learn=())
    print("\nscale equivariance: largest difference between code(10 x; 10 lam) and 10 code(x; lam)")
    print(f"{float((louder(10 * x) - 10 * layer(x)).abs().max()):.1e}")

    mixed = torch.cat([x[:16], 1000 * x[16:]])
    print("\nlargest change of the quiet samples' codes when the other half of the batch gets 1000 times louder")
    print(f"{float((layer(mixed)[:16] - layer(x)[:16]).abs().max()):.1e}")


if __name__ == "__main__":
    main()
