"""Sparse reduced-rank regression with a convex and two nonconvex row penalties, on a planted model.

Y = X A B^T + noise, A (features, rank) with few nonzero rows, B (responses, rank) with orthonormal columns:

    min  1/(2 n) ‖Y - X A B^T‖² + lam sum_i R(a_i)  over A and B^T B = I

by turns: B is a Procrustes problem (U V^T of Y^T X A), A takes proximal gradient steps whose rows are the groups.
One learns: the convex penalty shrinks the rows it keeps, so that the strength that predicts best keeps rows too many;
GroupMCP and GroupL0 leave large rows alone, find the planted rows and estimate them with less error. (With NOISE = 2 they
still find the rows better, but the convex penalty then has the smaller error: shrinking pays where the noise is large.)
"""

import torch

import sparselayers as sl
from sparselayers.ops.spectral import squared_norm
from sparselayers.proxgrad import proximal_gradient

N, FEATURES, RESPONSES, RANK, ACTIVE, NOISE = 80, 60, 20, 3, 8, 1.0
PENALTIES = {"GroupL2 (convex)": sl.GroupL2(), "GroupMCP": sl.GroupMCP(gamma=1.0), "GroupL0": sl.GroupL0()}
STRENGTHS = torch.logspace(0.7, -2.5, 25).tolist()


def planted() -> tuple[torch.Tensor, ...]:
    """Correlated features, responses for training and for choosing lam, and the true coefficients A B^T."""
    mix = 0.5 ** (torch.arange(FEATURES)[:, None] - torch.arange(FEATURES)).abs().double()
    X = torch.randn(2, N, FEATURES, dtype=torch.float64) @ torch.linalg.cholesky(mix).mT
    A = torch.zeros(FEATURES, RANK, dtype=torch.float64)
    A[torch.randperm(FEATURES)[:ACTIVE]] = torch.randn(ACTIVE, RANK, dtype=torch.float64)
    B = torch.linalg.qr(torch.randn(RESPONSES, RANK, dtype=torch.float64)).Q
    Y = X @ A @ B.mT + NOISE * torch.randn(2, N, RESPONSES, dtype=torch.float64)
    return X, Y, A @ B.mT


def procrustes(M: torch.Tensor) -> torch.Tensor:
    """The matrix of orthonormal columns nearest to M."""
    U, _, Vh = torch.linalg.svd(M, full_matrices=False)
    return U @ Vh


def fit(X: torch.Tensor, Y: torch.Tensor, penalty: sl.Penalty, lam: float, A: torch.Tensor, B: torch.Tensor) -> tuple:
    """Alternate from (A, B): ten proximal gradient steps for A, then B, thirty times."""
    gram, step = X.mT @ X / N, 1 / squared_norm(X / N**0.5)
    for _ in range(30):
        target = X.mT @ (Y @ B) / N
        A = proximal_gradient(
            A,
            grad=lambda A, target=target: gram @ A - target,
            prox=lambda A, k: penalty.prox(A, step * lam),
            step=step,
            depth=10,
        ).z
        if not A.any():
            break
        B = procrustes(Y.mT @ (X @ A))
    return A, B


def f1(found: torch.Tensor, true: torch.Tensor) -> float:
    return float(2 * (found & true).sum() / (found.sum() + true.sum()).clamp_min(1))


def study(penalty: sl.Penalty, X: torch.Tensor, Y: torch.Tensor, truth: torch.Tensor) -> tuple[float, float, float]:
    """Rows kept, F1 of the support and relative error at the strength that predicts the second half of the data best."""
    rows = truth.any(-1)
    B = (
        torch.linalg.svd(Y[0], full_matrices=False).Vh[:RANK].mT
    )  # a start without a fit: the responses' main directions
    A = torch.linalg.lstsq(X[0], Y[0] @ B).solution
    best = (torch.inf, 0.0, 0.0, 0.0)
    for lam in reversed(STRENGTHS):  # from weak to strong, each from the last
        A, B = fit(X[0], Y[0], penalty, lam, A, B)
        C = A @ B.mT
        loss = float((Y[1] - X[1] @ C).square().sum())
        found = A.any(-1)
        best = min(best, (loss, float(found.sum()), f1(found, rows), float((C - truth).norm() / truth.norm())))
    return best[1:]


def main() -> None:
    torch.manual_seed(0)
    results = {name: [] for name in PENALTIES}
    for _ in range(3):
        data = planted()
        for name, penalty in PENALTIES.items():
            results[name].append(study(penalty, *data))
    print(f"{ACTIVE} of {FEATURES} rows planted, rank {RANK}; lam chosen by prediction; means of 3 draws")
    print("penalty".ljust(18), "rows kept".rjust(10), "support F1".rjust(11), "relative error".rjust(15))
    for name, found in results.items():
        kept, score, error = torch.tensor(found).mean(0).tolist()
        print(f"{name:18} {kept:10.1f} {score:11.2f} {error:15.3f}")


if __name__ == "__main__":
    main()
