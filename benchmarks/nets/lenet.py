"""LeNet-5-Caffe on MNIST: the table of the sparse group l0asso paper with exact zeros, and our recipe beside it."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nets.augment import jitter
from nets.data import Split, mnist
from nets.lenet_best import best
from nets.lenet_full import full
from nets.lenet_methods import METHODS, Method, sgd
from nets.lenet_pictures import draw
from nets.lenet_speed import latency
from nets.record import Record, Records
from nets.slim import NEURONS, PARAMETERS, cut, lenet, measured
from nets.train import Plan, Trainer, fit

Row = dict[str, Any]
TITLE = "Networks: LeNet-5-Caffe on MNIST"
SEEDS = 3
MARGIN = 0.2  # points of held-out error that zeros may cost
FULL = "The paper's schedule: 200 epochs, Adam from 1e-3 to 1e-7 in five stages, 5 seeds; in Adam's metric, but for l0."
SPEED = "The whole network with its zeros, and what sl.compact makes of it, one thread, medians."
PLAIN, MOVED = "ours, without augmentation", "ours, with moved pictures"
PAPER = {  # arXiv 1912.07868, Table 1: means of 5 runs of 200 epochs, entries below 1e-5 counted as zero
    "l0": (0.02, 0.0, 0.69),
    "CGES": (94.12, 39.33, 0.65),
    "group lasso": (88.38, 69.39, 0.76),
    "sparse group lasso": (93.50, 73.52, 0.77),
    "sparse group l0asso": (89.27, 68.25, 0.67),
}


def tables(options: argparse.Namespace, records: Records) -> list[Row]:
    split = mnist(options.data)
    if options.full:
        return [{"what": FULL, "rows": [shown(run) for run in full(options, split, records)]}]
    short = Plan(2, bf16=True)
    alone, brief, long = (1, (20, 2), (20, 2)) if options.quick else (2, (3, 6), (6, 30))
    ours = [recipe(lenet, split.whole(), split, records, long, MOVED, seed) for seed in range(SEEDS)]
    begun = beginning(split, records, alone)
    rows = sweep(begun, split, records, short, quick=options.quick)
    ours.insert(0, recipe(lambda: copy.deepcopy(begun), split, split, records, brief, PLAIN, 0))
    chosen = [choose(rows, name) for name in METHODS] + ours
    small = trained(records, f"{MOVED}, seed 0")
    if options.pictures:
        draw(rows, ours, PAPER, small, options.pictures)
    faster = records.get("latency", lambda _: {"rows": speed(records, options)})
    schedule = f"{alone} epochs without a penalty, the same for all, then {short.epochs} with it, one seed"
    return [
        {
            "what": f"Exact zeros among {PARAMETERS:,} parameters and {NEURONS:,} neurons. Rows with a strength: {schedule}; "
            f"shown is the strength with the most zeros whose held-out error is at most {MARGIN} points above that of the "
            f"network without a penalty, or the nearest to it. Ours: epochs while the penalty grows until the goal is met, "
            f"then without it: {brief[0]} + {brief[1]} from the same start, {long[0]} + {long[1]} from none on all 60,000, "
            "each moved a little every time, which the other rows do not do. Minutes are of one core, the start not counted.",
            "rows": [shown(row) for row in chosen],
        },
        {
            "what": "As published (arXiv 1912.07868, Table 1): 5 runs of 200 epochs, what is below 1e-5 counts as zero.",
            "rows": [dict(zip(("method", *COLUMNS), (name, *row), strict=True)) for name, row in PAPER.items()],
        },
        {"what": f"Every strength tried: {schedule}.", "rows": [shown(row) for row in rows]},
        {"what": SPEED, "rows": faster["rows"]},
    ]


COLUMNS = ("weights zero %", "neurons zero %", "test error %")


def beginning(split: Split, records: Records, epochs: int) -> nn.Module:
    """The network from which all rows start: trained without a penalty."""

    def start(file: Path) -> Record:
        torch.manual_seed(0)
        plan = Plan(epochs, bf16=True, rate=lambda done: 1.0)
        _, seconds = fit(lenet(), split.x, split.y, plan, lambda m: Trainer(sgd(m)), checkpoint=file, name="start")
        return {"seconds": seconds}

    records.get("start", start)
    return trained(records, "start")


def sweep(begun: nn.Module, split: Split, records: Records, plan: Plan, quick: bool) -> list[Record]:
    """Every method at each of its strengths."""
    tried = [
        (i, name, method, lam)
        for name, method in METHODS.items()
        for i, lam in enumerate(method.strengths[: 1 if quick else None])
    ]
    return [  # the first strength of all methods, then the second
        records.get(f"{name}, {lam:g}", lambda file, of=(name, method, lam): one(*of, begun, split, plan, file))
        for _, name, method, lam in sorted(tried, key=lambda each: each[0])
    ]


def one(name: str, method: Method, lam: float, begun: nn.Module, split: Split, plan: Plan, file: Path) -> Record:
    """One method at one strength."""
    steps = plan.steps(len(split.x))
    torch.manual_seed(0)
    model, seconds = fit(
        method.before(copy.deepcopy(begun)),
        split.x,
        split.y,
        plan,
        lambda m: method.build(m, lam, steps),
        after_epoch=(lambda m, _: cut(m)) if method.shrinks else None,
        checkpoint=file,
        name=f"{name}, {lam:g}",
    )
    return measured(cut(method.after(model)), split, method=name, strength=lam, epochs=plan.epochs, seconds=seconds)


def trained(records: Records, name: str) -> nn.Module:
    """The network that a run left."""
    return torch.load(records.checkpoint(name), weights_only=False)["model"].eval()


def speed(records: Records, options: argparse.Namespace) -> list[Row]:
    """The latency of both of our networks."""
    return [
        {"network": name} | row
        for name in (PLAIN, MOVED)
        for row in latency(trained(records, f"{name}, seed 0"), options.device, options.quick)
    ]


def recipe(
    begin: Callable[[], nn.Module],
    seen: Split,
    split: Split,
    records: Records,
    epochs: tuple[int, int],
    name: str,
    seed: int,
) -> Record:
    """Our recipe on the training part of `seen`, counted and tested on `split`."""

    def run(file: Path) -> Record:
        torch.manual_seed(seed)
        augment = jitter if name == MOVED else None
        model, seconds = best(begin(), seen, epochs, seed, augment, file, f"{name}, seed {seed}")
        return measured(model, split, method=name, strength=None, epochs=sum(epochs), seconds=seconds) | {"seed": seed}

    return records.get(f"{name}, seed {seed}", run)


def choose(runs: list[Record], name: str) -> Record:
    """Of a method's runs the one with the fewest weights that costs at most MARGIN points on held-out data."""
    most = next(run["held"] for run in runs if run["method"] == "none") + MARGIN
    mine = [run for run in runs if run["method"] == name]
    return min(mine, key=lambda run: (max(run["held"] - most, 0), run["weights"]))


def shown(run: Record) -> Row:
    return {
        "method": run["method"],
        "strength": run["strength"],
        "weights zero %": round(100 - 100 * run["weights"] / PARAMETERS, 2),
        "neurons zero %": round(100 - 100 * run["neurons"] / NEURONS, 2),
        "test error %": round(run["test"], 2),
        "± %": round(run["spread"], 2) if "spread" in run else None,
        "held-out error %": round(run["held"], 2) if run["method"] != MOVED else None,
        "left": "-".join(map(str, run["sizes"])) or None,
        "epochs": run["epochs"],
        "minutes": round(run["seconds"] / 60, 1),
    }
