"""DeepHoyer's three phases on LeNet-300-100, beside penalties whose prox makes exact zeros while the network trains."""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import sparselayers as sl
from sparselayers import plotting

from .choice import most
from .data import Split, mnist
from .neurons import network
from .record import Record, Records
from .train import Plan, Trainer, error, fit

TITLE = "LeNet-300-100 on MNIST: DeepHoyer and exact zeros"
WIDTHS = (784, 300, 100, 10)
WEIGHTS = 784 * 300 + 300 * 100 + 100 * 10
DENSE, SPARSE, TUNE = 4, 8, 4  # epochs of each phase
CUTS = (0.1, 0.3)  # DeepHoyer: weights below this part of their layer's deviation go
EVERY = 10  # steps from prox to prox, with EVERY times the rate
RUNS: dict[str, tuple[sl.Penalty, tuple[float, ...]]] = {
    "HoyerSquare": (sl.HoyerSquare(), (2e-5, 5e-5)),
    "L0": (sl.L0(), (1.0, 2.0)),
    "MCP(gamma=0.1)": (sl.MCP(gamma=0.1), (1.0, 2.0)),
    "TransformedL1(a=0.1)": (sl.TransformedL1(a=0.1), (0.05,)),
}
SLACK = 0.2


def falls(done: float) -> float:
    """The rate of the sparse phase: from 1 to a tenth in a line, never 0, as a prox step is as long as the rate."""
    return 1 - 0.9 * done


def dense(data: Split, plan: Plan, checkpoint: Path) -> nn.Module:
    """Where all rows start."""
    torch.manual_seed(0)
    build = lambda model: Trainer(torch.optim.Adam(model.parameters(), 1e-3, fused=True))  # noqa: E731
    return fit(network(*WIDTHS), data.x, data.y, plan, build, checkpoint=checkpoint, name="dense")[0]


def sparsify(
    model: nn.Module, method: str, lam: float, data: Split, plan: Plan, checkpoint: Path
) -> tuple[nn.Module, float]:
    """The sparse phase: HoyerSquare as a term of the loss, the others by their prox after Adam's steps."""
    penalty = RUNS[method][0]

    def build(model: nn.Module) -> Trainer:
        adam = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
        if method == "HoyerSquare":
            return Trainer(adam, extra=sl.Regularizer(model, penalty, lam, groups="tensor").value)
        regularizer = sl.Regularizer(model, penalty, lam, groups="element")
        rising = sl.LamSchedule(lam, warmup=plan.steps(len(data.x)) * 3 // 4)

        def prox(step: int) -> None:
            if step % EVERY == EVERY - 1:
                regularizer.lam = rising.at(step)
                regularizer.step(EVERY * adam.param_groups[0]["lr"])

        return Trainer(adam, after_step=prox)

    return fit(model, data.x, data.y, plan, build, checkpoint=checkpoint, name=f"{method} {lam:g}")


@torch.no_grad()
def cut(model: nn.Module, share: float) -> None:
    """DeepHoyer's second phase: weights below a share of their layer's standard deviation become zero."""
    for weight in model.parameters():
        if weight.ndim == 2:
            weight[weight.abs() < share * weight.std()] = 0


def tune(model: nn.Module, data: Split, plan: Plan, checkpoint: Path) -> tuple[nn.Module, float]:
    """The last phase: the zeros are held, the other weights train on."""
    patterns = []

    def build(model: nn.Module) -> Trainer:
        patterns.append(sl.Regularizer(model, sl.L1(), 0.0, groups="element").freeze())
        return Trainer(torch.optim.Adam(model.parameters(), 1e-3, fused=True))

    found = fit(model, data.x, data.y, plan, build, checkpoint=checkpoint, name=checkpoint.stem)
    for pattern in patterns:
        pattern.remove()
    return found


def run(method: str, lam: float, share: float, data: Split, plans: list[Plan], records: Records) -> Record:
    """All phases of one row; the sparse phase is trained once for both cuts."""
    key = f"{method} {lam:g}"
    model = dense(data, plans[0], records.checkpoint("start"))
    seconds = 0.0
    if method != "none":
        model, seconds = sparsify(copy.deepcopy(model), method, lam, data, plans[1], records.checkpoint(key))
        cut(model, share)
        plan = plans[2]
    else:
        plan = replace(plans[2], epochs=plans[1].epochs + plans[2].epochs)
    before = error(model, data.held_x, data.held_y)
    model, more = tune(model, data, plan, records.checkpoint(f"{key} {share:g} tuned"))
    kept = [int((p != 0).sum()) for p in model.parameters() if p.ndim == 2]
    return {
        "weights kept": sum(kept),
        "by layer": "-".join(map(str, kept)),
        "compression": WEIGHTS / sum(kept),
        "held-out error before tuning %": before,
        "held-out error %": error(model, data.held_x, data.held_y),
        "test error %": error(model, data.test_x, data.test_y),
        "cpu s": seconds + more,
    }


def tables(options: argparse.Namespace, records: Records) -> list[Record]:
    data = mnist(options.data).flat().to(options.device)
    phases = (1, 1, 1) if options.quick else (250, 250, 100) if options.full else (DENSE, SPARSE, TUNE)
    batch, bf16 = (20, False) if options.quick else (100, True)
    rates = (falls, falls, Plan(1).rate)
    plans = [Plan(n, batch, seed, bf16, rate=rate) for seed, (n, rate) in enumerate(zip(phases, rates, strict=True))]
    rows = []
    for method, lams in {"none": (0.0,), **{name: lams for name, (_, lams) in RUNS.items()}}.items():
        for lam in lams[:1] if options.quick else lams:
            for share in CUTS if method == "HoyerSquare" else (0.0,):
                key = f"{method} {lam:g} {share:g}"
                found = records.get(key, lambda _, m=method, s=lam, c=share: run(m, s, c, data, plans, records))
                rows.append({"penalty": method, "lam": lam, "cut": share or None, **found})
    if options.pictures:
        picture(options.pictures, rows)
    bound = rows[0]["held-out error %"] + SLACK + 1e-9  # for the rounding of the sum
    chosen = most(rows[1:], "penalty", "compression", bound)
    schedule = f"{phases[0]} dense epochs, {phases[1]} sparse, {phases[2]} with the zeros held, batch 100, Adam, bf16, one seed"
    how = f"the prox after every {EVERY}th step of Adam with {EVERY} times its rate, lam rising for 3/4 of the sparse phase"
    return [
        {
            "what": f"LeNet-300-100 on MNIST ({WEIGHTS:,} weights), {schedule}; HoyerSquare as a term of the loss and a cut, "
            f"the others by {how}: exact zeros without a cut. Of each penalty the row that compresses most with a held-out "
            f"error of at most {bound:.2f} %, {SLACK} above the dense network's; "
            "strengths to try were set after short looks at runs that printed both errors",
            "rows": [rows[0], *chosen] if chosen else rows[:1],
        },
        {"what": "All rows behind that choice", "rows": rows},
    ]


def picture(folder: Path, rows: list[Record]) -> None:
    """Test error against compression, a line a penalty."""
    names = dict.fromkeys(row["penalty"] for row in rows[1:])
    lines = {
        name: [(row["compression"], row["test error %"]) for row in rows if row["penalty"] == name] for name in names
    }
    folder.mkdir(parents=True, exist_ok=True)
    labels = {"xlabel": "weights of the network / weights kept", "ylabel": "test error, %"}
    title = f"LeNet-300-100 on MNIST; without zeros {rows[0]['test error %']:.2f} %"
    plotting.against(lines, title=title, **labels).savefig(folder / "networks-hoyer.png")
