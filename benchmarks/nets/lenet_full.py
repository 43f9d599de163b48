"""The paper's own schedule, 200 epochs and 5 seeds, with all seeds and strengths of a method in one program: for a GPU."""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import torch
from torch import Tensor

from nets import replicas
from nets.data import Split
from nets.lenet_methods import PENALTIES
from nets.record import Record, Records
from nets.replicas import Replicas
from nets.slim import SIZES, cut, lenet, measured
from nets.train import Plan
from sparselayers.sparsify.metric import adaptive, euclidean

LAMS = [0.1 / 60_000 * factor for factor in (0.3, 1.0, 3.0, 10.0)]  # the paper's is the second
KEYS = ("weights", "neurons", "held", "test")


def by_tenths(done: float) -> float:
    """A tenth of the rate after each fifth of the run, as in the paper."""
    return 0.1 ** int(5 * done)


def full(options: argparse.Namespace, split: Split, records: Records) -> list[Record]:
    """Means over the seeds, a record for each method and strength."""
    seeds, lams = (2, LAMS[:2]) if options.quick else (5, LAMS)
    plan = Plan(1 if options.quick else 200, batch=100, rate=by_tenths)
    split = split.to(options.device)
    means = []
    for name in PENALTIES:
        strengths = [0.0] if name == "none" else lams
        runs = records.get(f"full, {name}", lambda _, n=name, s=strengths: {"runs": together(n, s, seeds, split, plan)})
        means += [mean([run for run in runs["runs"] if run["strength"] == lam]) for lam in strengths]
    return means


def together(name: str, lams: list[float], n_seeds: int, split: Split, plan: Plan) -> list[Record]:
    """Every seed at every strength of one method, trained at once; Adam, and the prox in its metric where there is one."""
    pairs = [(seed, lam) for lam in lams for seed in range(n_seeds)]
    stacks = Replicas(lenet, [seed for seed, _ in pairs], device=split.x.device.type)
    optimizer = torch.optim.Adam(stacks.parameters.values(), lr=1e-3)
    lam = torch.tensor([lam for _, lam in pairs], device=split.x.device)

    def after(step: int) -> None:
        for layer in SIZES if PENALTIES[name] else ():
            penalty, factor = PENALTIES[name](layer)
            rates = adaptive if penalty.has_metric else euclidean
            replicas.prox_step(stacks, optimizer, penalty, factor * lam, partial(groups, layer), rates)

    seconds = replicas.fit(stacks, split.x, split.y, plan, optimizer, after, name=name)
    return [
        measured(
            cut(stacks.model(i).cpu()), split.to("cpu"),
            method=name, strength=lam, seed=seed, epochs=plan.epochs, seconds=seconds / len(pairs),
        )
        for i, (seed, lam) in enumerate(pairs)
    ]  # fmt: skip


def groups(layer: str, name: str, stack: Tensor) -> Tensor | None:
    """Of one layer's stack the filters, or the columns."""
    if name != f"{layer}.weight":
        return None
    return stack if stack.ndim == 5 else stack.transpose(1, 2)


def mean(runs: list[Record]) -> Record:
    """The mean of what was counted, and the deviation of the test error."""
    spread = statistics.stdev(run["test"] for run in runs) if len(runs) > 1 else 0.0
    return runs[0] | {key: statistics.fmean(run[key] for run in runs) for key in KEYS} | {"spread": spread, "sizes": []}
