"""When does the group lasso beat the lasso? Linear regression with w in a few groups, filled more and more thinly.

y = X w + noise, w with 48 entries of 1 or -1 among 512 in groups of 8. The groups that w touches cover k entries, k = 48
... 384 as they hold 8 ... 1 nonzero entries each: ‖w‖_0 / k is 1 where the groups fit w, 1/8 where they say nothing. Each
estimate is the certified optimum of 1/2 ‖y - X w‖² + lam R(w) at the lam of a path that predicts fresh data best.
One learns: (1) the group lasso needs groups that fit (strong group sparsity): its error grows with k at one ‖w‖_0, that of the
lasso does not; (2) SparseGroup lies between the two; (3) `F.lasso` solves them all, a whole path in one call.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

import sparselayers as sl
import sparselayers.functional as F
from sparselayers import plotting
from sparselayers.demo.common import table

N, P, SIZE, NONZEROS, NOISE = 192, 512, 8, 48, 0.1
FILL = (8, 6, 4, 3, 2, 1)  # nonzero entries in a group that w touches
PENALTIES = {
    "lasso": sl.L1(),
    "group lasso": sl.Grouped(sl.GroupL2(sqrt_size=True), SIZE),
    "sparse group lasso": sl.Grouped(sl.SparseGroup(sqrt_size=True), SIZE),
}
TITLE = f"Relative error of w, {NONZEROS} of {P} entries not 0, {N} equations, groups of {SIZE}"


def planted(fill: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """X (2 N, P) with columns of length about 1 in each half, y, and w with `fill` nonzero entries in each group it touches."""
    X = torch.randn(2 * N, P, dtype=torch.float64, generator=generator) / N**0.5
    w = torch.zeros(P // SIZE, SIZE, dtype=torch.float64)
    for group in torch.randperm(P // SIZE, generator=generator)[: NONZEROS // fill]:
        places = torch.randperm(SIZE, generator=generator)[:fill]
        w[group, places] = torch.randint(2, (fill,), generator=generator).double() * 2 - 1
    y = X @ w.flatten() + NOISE * torch.randn(2 * N, dtype=torch.float64, generator=generator)
    return X, y, w.flatten()


def path(X: Tensor, y: Tensor, penalty: sl.Penalty, tol: float = 1e-6) -> F.LassoResult:
    """The optima at 16 strengths, from that at which all is zero down to a hundredth of it."""
    strengths = sl.lam_path(penalty.lam_max(y @ X), n=16)
    return F.lasso(y.expand(len(strengths), -1), X, strengths.unsqueeze(-1), penalty=penalty, tol=tol, max_iter=5000)


def error(X: Tensor, y: Tensor, w: Tensor, penalty: sl.Penalty) -> float:
    """Of the estimate that predicts the second half of the data best."""
    found = path(X[:N], y[:N], penalty)
    assert (found.gap <= 1e-6).all()
    best = (found.code @ X[N:].mT - y[N:]).norm(dim=-1).argmin()
    return float((found.code[best] - w).norm() / w.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for strong_group_sparsity.json and a picture; nothing without")
    asked = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    runs = []
    for fill in FILL:
        errors: dict[str, list[float]] = {name: [] for name in PENALTIES}
        for _ in range(asked.draws):
            data = planted(fill, generator)
            for name, penalty in PENALTIES.items():
                errors[name].append(error(*data, penalty))
        spread = {
            name: [round(float(s), 4) for s in torch.std_mean(torch.tensor(e))[::-1]] for name, e in errors.items()
        }
        runs.append({"share": fill / SIZE, **spread})
    print(shown(runs, asked.draws))
    if out := asked.out:
        found = {"draws": asked.draws, "torch": torch.__version__, "runs": runs}
        (out / "strong_group_sparsity.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        lines = {name: [(run["share"], run[name][0]) for run in runs] for name in PENALTIES}
        labels = {"xlabel": "‖w‖_0 / k, the share of the touched groups that is not 0", "ylabel": "relative error of w"}
        plotting.against(lines, title=TITLE, **labels).savefig(out / "strong-group-sparsity.png")


def shown(runs: list[dict], draws: int) -> str:
    rows = [[f"{run['share']:.3f}", *("{:.3f} ± {:.3f}".format(*run[name]) for name in PENALTIES)] for run in runs]
    return table(f"{TITLE}, {draws} draws", ["‖w‖_0 / k", *PENALTIES], rows)


if __name__ == "__main__":
    main()
