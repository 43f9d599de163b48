"""Sparse codes in 16 steps: ISTA, FISTA, homotopy and the LISTA family, by their error against the codes that were planted.

Whatever is fitted or picked is fitted on 400 signals (Adam draws more) and reported on 1000 to 5000 others. Without
noise they are of the same kind; with noise a tenth more atoms are active in those that are fitted, so that the rare
signals with many active atoms, which rule a mean error, count.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from common import Row, arguments, machine, write
from torch import Tensor

import sparselayers as sl
import sparselayers.functional as F
from sparselayers.coding.random_search import random_search

DEPTH = 16
DENSER = 1.1  # times as many active atoms in the fitting signals with noise
NUMBERS = ("lam", "rate", "most", "step", "start")
LAMS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
Coder = Callable[[Tensor], Tensor]


class Signals(NamedTuple):
    x: Tensor
    codes: Tensor


class Problem(NamedTuple):
    what: str
    D: Tensor
    p: float  # share of the atoms that a code uses
    decibel: float  # of the noise, below the signal
    fit: Signals
    test: Signals
    goals: dict[str, float]


def nmse(z: Tensor, codes: Tensor) -> float:
    """10 log10 of the squared error over the squared norm, both summed over all signals; inf where it is no number."""
    ratio = float((z - codes).double().square().sum() / codes.double().square().sum())
    return 10 * math.log10(ratio) if 0 < ratio < math.inf else math.inf


def bernoulli(n_samples: int, n_atoms: int, p: float, generator: torch.Generator) -> Tensor:
    """Codes with each entry active with probability p, then standard normal."""
    z = torch.randn(n_samples, n_atoms, generator=generator)
    return torch.where(torch.rand(n_samples, n_atoms, generator=generator) < p, z, 0)


def noisy(codes: Tensor, D: Tensor, decibel: float, generator: torch.Generator) -> Signals:
    """x = D z with Gaussian noise of exactly this distance below each signal; inf is none."""
    x = codes @ D.mT
    noise = torch.randn(x.shape, generator=generator)
    scale = x.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True) * 10 ** (-decibel / 20)
    return Signals(x + scale * noise, codes)


def best_of(coders: Iterable[tuple[str, Coder]], signals: Signals) -> tuple[str, Coder]:
    """The settings with the least error on these signals."""
    return min(coders, key=lambda named: nmse(named[1](signals.x), signals.codes))


def alista(
    D: Tensor,
    lam: float,
    start: float = 1.0,
    support: sl.SupportSelection | None = None,
) -> sl.LISTA:
    schedule = sl.Homotopy(start=start)
    return sl.LISTA(
        *D.shape,
        depth=DEPTH,
        lam=lam,
        dictionary=D,
        variant="alista",
        schedule=schedule,
        support=support,
        learn=(),
    )


def selecting(D: Tensor, rate: float, most: float, lam: float) -> tuple[str, Coder]:
    return f"lam {lam}, rate {rate}, most {most}", alista(D, lam, support=sl.SupportSelection(rate, most))


def homotopy_of(numbers: Tensor, D: Tensor, learn: tuple[str, ...]) -> sl.LISTA:
    """An alista from five positive numbers: see NUMBERS; rate and most in percent of the atoms."""
    lam, rate, most, step, start = numbers.tolist()
    return sl.LISTA(
        *D.shape,
        depth=DEPTH,
        lam=lam,
        dictionary=D,
        variant="alista",
        step=step,
        schedule=sl.Homotopy(start=min(start, 1.0)),
        support=sl.SupportSelection(rate, min(most, 100.0)),
        learn=learn,
    )


def picked_alista(problem: Problem, trials: int) -> tuple[str, Tensor]:
    """The five numbers of `homotopy_of` by random search on the fitting signals, from the better of two starts."""

    def score(numbers: Tensor) -> float:
        return nmse(homotopy_of(numbers, problem.D, ())(problem.fit.x), problem.fit.codes)

    share = 100 * problem.p
    fast, safe = (
        [0.02, 0.12 * share, 1.3 * share, 0.9, 1.0],
        [0.05, 0.1 * share, 2 * share, 0.9, 0.7],
    )
    with torch.no_grad():
        start = min(
            (torch.tensor(numbers, dtype=torch.float64) for numbers in (fast, safe)),
            key=score,
        )
        found = random_search(score, start, trials, torch.Generator().manual_seed(3))
    return ", ".join(f"{name} {v:.3g}" for name, v in zip(NUMBERS, found.tolist(), strict=True)), found


def trained(layer: sl.LISTA, problem: Problem, steps: int) -> sl.LISTA:
    """By Adam on fresh signals; what does best on the fitting signals is kept, the start included.

    The loss is the mean over the signals of the logarithm of their relative error, so that no signal drowns the others.
    """
    D, g = problem.D, torch.Generator().manual_seed(2)

    def score(layer: sl.LISTA) -> float:
        with torch.no_grad():
            return nmse(layer(problem.fit.x), problem.fit.codes)

    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=steps)
    best, kept = score(layer), copy.deepcopy(layer)
    for step in range(1, steps + 1):
        x, codes = noisy(bernoulli(100, D.shape[1], DENSER * problem.p, g), D, problem.decibel, g)
        error = (layer(x) - codes).square().sum(-1) / codes.square().sum(-1)
        optimizer.zero_grad()
        error.log().mean().backward()
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0 and (reached := score(layer)) < best:
            best, kept = reached, copy.deepcopy(layer)
    return kept


def compare(problem: Problem, options: argparse.Namespace) -> list[Row]:
    D, fit = problem.D, problem.fit
    trials = 4 if options.quick else 70
    share = 100 * problem.p
    settings = [
        selecting(D, round(rate * share, 2), round(1.3 * share, 2), lam)
        for rate in (0.12, 0.15)
        for lam in (0.005, 0.01)
    ]
    step = 1 / torch.linalg.matrix_norm(D, 2) ** 2
    hyper = sl.LISTA(*D.shape, depth=DEPTH, dictionary=D, variant="hyper")
    stalling = sl.LISTA(*D.shape, depth=DEPTH, dictionary=D, variant="hyper", fall=1.0)

    def unrolled(code: Callable[..., Tensor]) -> list[tuple[str, Coder]]:
        return [(f"lam {lam}", lambda x, lam=lam: code(x, D, lam, depth=DEPTH, step=step)) for lam in LAMS]

    def row(method: str, picked: str, fitted: str, coder: Coder) -> Row:
        codes = torch.cat([coder(x) for x in problem.test.x.split(1000)])
        reached, goal = nmse(codes, problem.test.codes), problem.goals.get(method)
        met = None if goal is None else reached <= goal
        return {
            "method": method,
            "settings": picked,
            "fitted": fitted,
            "NMSE, dB": reached,
            "goal": goal,
            "met": met,
        }

    with torch.no_grad():
        rows = [
            row("ISTA", *_two(best_of(unrolled(F.ista), fit), "lam, of 6")),
            row("FISTA", *_two(best_of(unrolled(F.fista), fit), "lam, of 6")),
            row("homotopy, analytic weight", "lam 0.01", "nothing", alista(D, 0.01)),
            row(
                "homotopy from half of lam_max",
                "lam 0.01",
                "nothing",
                alista(D, 0.01, start=0.5),
            ),
            row(
                "homotopy, SupportSelection()",
                "lam 0.01",
                "nothing",
                alista(D, 0.01, support=sl.SupportSelection()),
            ),
            row(
                "homotopy + support selection",
                *_two(best_of(settings, fit), "rate, lam, of 4"),
            ),
            row("hyper, the residual alone (fall=1)", "", "nothing", stalling),
            row("hyper, default constants", "", "nothing", hyper),
        ]
        tuned = copy.deepcopy(hyper).tune(*fit, trials=trials)
        shown = ", ".join(f"{c:.3g}" for c in tuned.constants or ())
        rows.append(
            row(
                "hyper, tuned",
                f"constants {shown}",
                f"3 constants, {trials} trials",
                tuned,
            )
        )
    if problem.decibel < math.inf:
        steps, tries = (20, 4) if options.quick else (60, 50)
        shown, numbers = picked_alista(problem, tries)
        start = sl.LISTA(
            *D.shape,
            depth=DEPTH,
            dictionary=D,
            variant="hyper",
            learn=("lam", "step"),
            constants=tuned.constants,
        )
        learned = (
            trained(homotopy_of(numbers, D, ("lam", "step")), problem, steps),
            trained(start, problem, steps),
        )
        with torch.no_grad():
            rows += [
                row(
                    "hyper, tuned, then trained",
                    "19 numbers",
                    f"{steps} steps of Adam",
                    learned[1],
                ),
                row(
                    "alista, picked",
                    shown,
                    f"5 numbers, {tries} trials",
                    homotopy_of(numbers, D, ()),
                ),
                row(
                    "alista, trained",
                    "32 numbers, from those",
                    f"{steps} steps of Adam",
                    learned[0],
                ),
            ]
    return rows


def _two(chosen: tuple[str, Coder], fitted: str) -> tuple[str, str, Coder]:
    return chosen[0], fitted, chosen[1]


def public(options: argparse.Namespace) -> list[Problem]:
    """The two published matrices with ALISTA's test signals, p = 0.1, no noise."""
    import numpy as np
    from scipy.io import loadmat

    folder = options.data
    codes = torch.from_numpy(np.load(folder / "alista" / "xtest.npy")).float().T.contiguous()
    goals = {
        "FISTA": -10.8,
        "homotopy from half of lam_max": -24.0,
        "homotopy + support selection": -58.0,
        "hyper, tuned": -70.0,
    }
    problems = []
    for name, path in (
        ("HyperLISTA", "hyperlista/A_sc.mat"),
        ("ALISTA", "alista/D.mat"),
    ):
        (matrix,) = (value for key, value in loadmat(folder / path).items() if not key.startswith("__"))
        D, g = (
            torch.from_numpy(np.ascontiguousarray(matrix)).float(),
            torch.Generator().manual_seed(1),
        )
        other = bernoulli(400, D.shape[1], 0.1, g)
        what = (
            f"{name}'s matrix, 250 x 500, without noise, the 1000 test signals of ALISTA (50 of 500 atoms on average)."
        )
        problems.append(
            Problem(
                what,
                D,
                0.1,
                math.inf,
                Signals(other @ D.mT, other),
                Signals(codes @ D.mT, codes),
                goals,
            )
        )
    return problems


def random(n_features: int, n_atoms: int, n_active: int, n_test: int, goals: dict[str, float]) -> Problem:
    """A Gaussian matrix of unit columns and signals at 40 dB, as NA-ALISTA takes them."""
    g = torch.Generator().manual_seed(0)
    D = torch.nn.functional.normalize(torch.randn(n_features, n_atoms, generator=g), dim=0)
    p = n_active / n_atoms
    fit, test = (noisy(bernoulli(n, n_atoms, share, g), D, 40.0, g) for n, share in ((400, DENSER * p), (n_test, p)))
    what = (
        f"A Gaussian matrix {n_features} x {n_atoms}, {n_active} active atoms on average, noise 40 dB below the signal."
    )
    return Problem(what, D, n_active / n_atoms, 40.0, fit, test, goals)


def main() -> None:
    options = arguments(__file__, __doc__, data="the matrices and signals of ALISTA and HyperLISTA")
    options.repeats = 1  # errors, no times
    where = machine(options.device)
    if options.quick:
        problems = [random(20, 40, 2, 50, {"alista, trained": -42.0})]
    else:
        problems = [
            *(public(options) if options.data else []),
            random(250, 500, 50, 1000, {"alista, trained": -42.0}),
            random(
                250,
                1000,
                50,
                5000,
                dict.fromkeys(
                    ("alista, trained", "hyper, tuned", "hyper, tuned, then trained"),
                    -39.0,
                ),
            ),
        ]
    tables = [{"what": f"NMSE after {DEPTH} steps. {p.what}", "rows": compare(p, options)} for p in problems]
    write(__file__, "LISTA: codes in 16 steps", options, where, tables)


if __name__ == "__main__":
    main()
