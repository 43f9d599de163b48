"""The converged Lasso of many signals over one dictionary: time to a certificate, and iterations."""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import Row, arguments, machine, write
from torch import Tensor

import sparselayers as sl
from sparselayers.coding.solver import Solved, solve

LAM = 0.1
TOL = 1e-6
SUBSET = 200  # signals for the solvers that take one at a time
Coder = Callable[[Tensor, Tensor], Tensor]


def gaps(x: Tensor, D: Tensor, z: Tensor, chunk: int = 100_000) -> Tensor:
    """Primal less dual at the scaled residual over 1/2 ‖x‖², in float64: every contestant is judged by this."""
    D, found = D.double(), []
    for some, code in zip(x.split(chunk), z.split(chunk), strict=True):
        some, code = some.double(), code.double()
        r = some - code @ D.T
        s = (LAM / (r @ D).abs().amax(-1, keepdim=True)).clamp(max=1)
        half = 0.5 * some.square().sum(-1)
        dual = half - 0.5 * (some - s * r).square().sum(-1)
        gap = 0.5 * r.square().sum(-1) + LAM * code.abs().sum(-1) - dual
        found.append(torch.where(gap == 0, 0, gap / half))  # a patch without contrast is zero
    return torch.cat(found)


def patches(count: int, n_atoms: int) -> tuple[Tensor, Tensor]:
    """8 x 8 patches of a photograph less their mean, in units of their mean length; and atoms sampled from other ones."""
    from sklearn.datasets import load_sample_image

    grey = torch.from_numpy(load_sample_image("china.jpg").astype(np.float32)).mean(-1) / 255
    every = grey.unfold(0, 8, 1).unfold(1, 8, 1).reshape(-1, 64)
    every = every - every.mean(-1, keepdim=True)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    atoms = every[order[-20 * n_atoms :]]
    atoms = atoms[atoms.norm(dim=-1) > 0.3][:n_atoms]
    x = every[order[torch.arange(count) % (len(order) - 20 * n_atoms)]]
    if count > len(order):  # more signals than the photograph has patches: each with a little noise of its own
        x = x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return x / x.norm(dim=-1).mean(), (atoms / atoms.norm(dim=-1, keepdim=True)).T.contiguous()


def ours(x: Tensor, D: Tensor) -> Tensor:
    return solve(x, D, LAM, sl.L1(), tol=TOL, max_iter=1000).code


def scikit_learn(jobs: int) -> Coder:
    from sklearn.decomposition import sparse_encode

    def code(x: Tensor, D: Tensor) -> Tensor:
        found = sparse_encode(
            x.double().numpy(), D.double().numpy().T, algorithm="lasso_cd", alpha=LAM, max_iter=1000, n_jobs=jobs
        )
        return torch.from_numpy(found)

    return code


def one_by_one(estimator: Callable[..., Any], **settings: Any) -> Coder:
    """Their alpha is per feature; their features are our atoms."""

    def code(x: Tensor, D: Tensor) -> Tensor:
        atoms = np.asfortranarray(D.double().numpy())
        lasso = estimator(alpha=LAM / len(atoms), fit_intercept=False, **settings)
        return torch.from_numpy(np.stack([lasso.fit(atoms, row).coef_.copy() for row in x.double().numpy()]))

    return code


def contestants(device: str) -> dict[str, tuple[Coder, bool]]:
    """Each with whether it takes all signals at once."""
    known: dict[str, tuple[Coder, bool]] = {"sparselayers": (ours, True)}
    if device == "cuda":
        return known
    known["scikit-learn lasso_cd, 1 job"] = (scikit_learn(1), True)
    known["scikit-learn lasso_cd, 2 jobs"] = (scikit_learn(2), True)
    for name, settings in (("celer", {"tol": TOL}), ("skglm", {"tol": TOL})):
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed and does not take part")
            continue
        known[name] = (one_by_one(importlib.import_module(name).Lasso, **settings), False)
    return known


def timed(call: Callable[[], Tensor], device: str) -> tuple[float, Tensor]:
    start = time.perf_counter()
    found = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, found


def patch_race(options: argparse.Namespace, count: int, repeats: int) -> Row:
    """Every contestant once untimed on a few signals, then in turn."""
    x, D = (q.to(options.device) for q in patches(count, 256))
    known = contestants(options.device)
    sizes = {name: count if batched else min(SUBSET, count) for name, (_, batched) in known.items()}
    seconds: dict[str, list[float]] = {name: [] for name in known}
    codes = {name: code(x[:20], D) for name, (code, _) in known.items()}
    for turn in range(repeats):
        for name, (code, batched) in known.items():
            if turn and not batched:
                continue
            spent, codes[name] = timed(lambda code=code, name=name: code(x[: sizes[name]], D), options.device)
            seconds[name].append(spent)
    rows = []
    mine = min(seconds["sparselayers"]) / count
    for name, found in codes.items():
        each, gap = min(seconds[name]) / sizes[name], gaps(x[: sizes[name]], D, found)
        row: Row = {"contestant": name, "signals": sizes[name], "min s": min(seconds[name]), "us a signal": 1e6 * each}
        row["ours over theirs"] = None if name == "sparselayers" else mine / each
        row |= {"largest gap": gap.max().item(), "median gap": gap.median().item()}
        row[f"certified to {TOL:g}"] = f"{100 * (gap <= TOL).double().mean().item():.4g} %"
        rows.append(row)
    what = (
        f"{count} patches of a photograph (8 x 8 pixels without their mean, float32), 256 atoms sampled from other patches, "
        f"lam {LAM}: time until every signal is certified to a relative gap of {TOL:g}. scikit-learn, celer and skglm "
        "stop by rules of their own and work in float64; the gap of all is taken by one function in float64."
    )
    return {"what": what, "rows": rows}


def iterations(options: argparse.Namespace) -> Row:
    """Steps of the loop in torch, as it runs on every device, on the public HyperLISTA matrix."""
    from scipy.io import loadmat

    D = torch.from_numpy(
        next(v for k, v in loadmat(options.data / "A_sc.mat").items() if not k.startswith("_"))
    ).double()
    g = torch.Generator().manual_seed(0)
    codes = torch.randn(64, D.shape[1], generator=g, dtype=D.dtype) * (torch.rand(64, D.shape[1], generator=g) < 0.1)
    x, D = (codes @ D.T).to(options.device), D.to(options.device)
    rows = []
    for share, goal in ((0.1, 45), (0.01, 75)):
        lam = share * (x @ D).abs().amax(-1, keepdim=True)
        with sl.kernels(False):
            found: Solved = solve(x, D, lam, sl.L1(), tol=TOL, max_iter=1000)
        steps = found.iterations.tolist()
        median = statistics.median(steps)
        rows.append({"lam / lam_max": share, "median": median, "most": max(steps), "goal": goal, "met": median <= goal})
    what = (
        f"Steps of the loop in torch until a relative gap of {TOL:g}, looked at every 5: 64 signals of 10 % Gaussian codes, "
        "with the exact optimum of the support tried where signs rest; "
        f"the HyperLISTA matrix {D.shape[0]} x {D.shape[1]}, float64."
    )
    return {"what": what, "rows": rows}


def main() -> None:
    options = arguments(__file__, __doc__, data="HyperLISTA's A_sc.mat")
    warnings.filterwarnings("ignore", message=".*did not converge.*")
    where = machine(options.device)
    options.repeats = min(options.repeats, 3)
    count = 40 if options.quick else 1_000_000 if options.device == "cuda" else 10_000
    tables = [patch_race(options, count, options.repeats)]
    if options.data is None:
        print("without --data there is no table of iterations")
    else:
        tables.append(iterations(options))
    write(__file__, "The converged Lasso", options, where, tables)


if __name__ == "__main__":
    main()
