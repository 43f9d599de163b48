"""The number of neurons, learned: a network that is too wide loses neurons while it trains, is cut, and trains on small."""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

import sparselayers as sl
from sparselayers import plotting

from .choice import most
from .data import READERS, Split
from .record import Record, Records
from .train import Plan, Trainer, error, fit

TITLE = "The number of neurons"
WIDTHS = (784, 500, 300, 10)
HIDDEN = ["0.weight", "2.weight"]
EPOCHS, SPARSE = 10, 5  # in all, and with the penalty
CUT = 0.1  # GroupHoyerSquare has no prox: a row goes where its norm is below this part of the rows' mean norm
STRENGTHS: dict[str, dict[str, tuple[float, ...]]] = {
    "MNIST": {
        "none": (0.0,),
        "GroupL2": (1e-5, 3e-5, 4.5e-5, 6e-5, 1e-4),
        "SparseGroup": (3e-5, 6e-5),
        "GroupHoyerSquare": (1e-3,),
    },
    "Fashion-MNIST": {"none": (0.0,), "GroupL2": (1e-5, 3e-5, 6e-5)},
}
PENALTIES = {"GroupL2": sl.GroupL2(sqrt_size=True), "SparseGroup": sl.SparseGroup(sqrt_size=True)}
BATCHES = (1, 256)
SLACK = 0.2  # per cent: held-out error may lie this much above that of the dense network


def network(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def widths_of(model: nn.Module) -> tuple[int, ...]:
    weights = [p for p in model.parameters() if p.ndim == 2]
    return (weights[0].shape[1], *(len(w) for w in weights))


def n_parameters(widths: tuple[int, ...]) -> int:
    return sum(n_out * (n_in + 1) for n_in, n_out in pairwise(widths))


@torch.no_grad()
def narrow(model: nn.Module) -> nn.Sequential:
    """The same function without the neurons whose row and bias are zero."""
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    alive = [(layer.weight != 0).any(1) | (layer.bias != 0) for layer in linear[:-1]]
    alive = [torch.ones(WIDTHS[0], dtype=torch.bool), *alive, torch.ones(WIDTHS[-1], dtype=torch.bool)]
    small = network(*(int(each.sum()) for each in alive))
    for new, old, columns, rows in zip(small[::2], linear, alive, alive[1:], strict=False):
        new.weight.copy_(old.weight[rows][:, columns])
        new.bias.copy_(old.bias[rows])
    return small


def group_hoyer(model: nn.Module, lam: float) -> Tensor:
    weights = [model.get_parameter(name) for name in HIDDEN]
    return lam * torch.stack([sl.GroupHoyerSquare().value(w) for w in weights]).sum()


@torch.no_grad()
def cut_rows(model: nn.Module) -> None:
    for name in HIDDEN:
        weight = model.get_parameter(name)
        norms = weight.norm(dim=1)
        small = norms < CUT * norms.mean()
        weight[small] = 0
        model.get_parameter(name.replace("weight", "bias"))[small] = 0


def train(method: str, lam: float, data: Split, plan: Plan, checkpoint: Path) -> tuple[nn.Module, float]:
    """SPARSE of the epochs with the penalty on the hidden neurons, then the cut, then the small network without it."""
    sparse = plan.epochs * SPARSE // EPOCHS

    def build(model: nn.Module) -> Trainer:
        if method == "none" or getattr(model, "is_cut", False):
            return Trainer(torch.optim.Adam(model.parameters(), 1e-3, fused=True))
        if method == "GroupHoyerSquare":
            adam = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
            return Trainer(adam, extra=lambda: group_hoyer(model, lam))
        rising = sl.LamSchedule(lam, warmup=plan.steps(len(data.x)) // plan.epochs)
        regularizer = sl.Regularizer(model, PENALTIES[method], rising, groups="neuron", include=HIDDEN)
        return Trainer(sl.ProxAdamW(model.parameters(), 1e-3, fused=True, regularizer=regularizer))

    def after_epoch(model: nn.Module, done: int) -> nn.Module:
        if method == "none" or done != sparse:
            return model
        if method == "GroupHoyerSquare":
            cut_rows(model)
        torch.save(model, checkpoint.with_suffix(".wide.pt"))
        small = narrow(model)
        small.is_cut = True
        return small

    torch.manual_seed(plan.seed)
    model = network(*WIDTHS)
    return fit(model, data.x, data.y, plan, build, after_epoch=after_epoch, checkpoint=checkpoint, name=checkpoint.stem)


def run(method: str, lam: float, data: Split, plan: Plan, checkpoint: Path) -> Record:
    model, seconds = train(method, lam, data, plan, checkpoint)
    widths = widths_of(model)
    removed = 100 * (1 - n_parameters(widths) / n_parameters(WIDTHS))
    return {
        "widths": "-".join(map(str, widths)),
        "parameters removed %": removed,
        "zero weights %": 100 * sum(int((p == 0).sum()) for p in model.parameters()) / n_parameters(widths),
        "held-out error %": error(model, data.held_x, data.held_y),
        "test error %": error(model, data.test_x, data.test_y),
        "cpu s": seconds,
    }


def compacted(checkpoint: Path, example: Tensor) -> Record:
    """What `sl.compact` makes of the wide network as it was when the penalty ended."""
    wide = torch.load(checkpoint.with_suffix(".wide.pt"), weights_only=False)
    found = sl.compare(wide, sl.compact(wide, example), example, batch_sizes=BATCHES, repeats=50)
    row: Record = {"parameters": found.before.parameters, "after": found.after.parameters}
    row["counted"] = n_parameters(widths_of(narrow(wide)))
    row["largest difference"] = found.largest_difference / found.largest_output
    for old, new, ratio in zip(found.before.latencies, found.after.latencies, found.speedup(), strict=True):
        n = old.batch_size
        row |= {f"batch {n}, ms": old.median, f"batch {n} after, ms": new.median, f"batch {n}, ratio": ratio}
    return row


def small(row: Record, options: argparse.Namespace, records: Records) -> Record:
    """The row of the compaction table for a row of the first."""
    example = READERS[row["data"]](options.data).flat().test_x[: max(BATCHES)]
    checkpoint = records.checkpoint(name_of(row))
    found = records.get(f"compact {name_of(row)}", lambda _: compacted(checkpoint, example))
    return {key: row[key] for key in ("data", "penalty", "lam")} | found


def name_of(row: Record) -> str:
    return f"{row['data']} {row['penalty']} {row['lam']:g}"


def tables(options: argparse.Namespace, records: Records) -> list[Record]:
    plan = Plan(2, batch=40) if options.quick else Plan(EPOCHS, bf16=True)
    rows: list[Record] = []
    chosen: list[Record] = []
    for name, methods in STRENGTHS.items():
        data = READERS[name](options.data).flat().to(options.device)
        here = []
        for method, strengths in methods.items():
            for lam in strengths[:1] if options.quick else strengths:
                row = {"data": name, "penalty": method, "lam": lam}
                found = records.get(name_of(row), lambda file, m=method, s=lam, d=data: run(m, s, d, plan, file))
                here.append(row | found)
        bound = here[0]["held-out error %"] + SLACK + 1e-9  # for the rounding of the sum
        best = most(here[1:], "penalty", "parameters removed %", bound)
        rows += here
        chosen += [here[0], *best]
    if options.pictures:
        picture(options.pictures, rows)
    net = "-".join(map(str, WIDTHS))
    sparse = plan.epochs * SPARSE // EPOCHS
    what = (
        f"{net}, {plan.epochs} epochs of Adam, batch {plan.batch}, bf16, one seed; the penalty on the hidden neurons for the "
        f"first {sparse} epochs, then the cut, then the small network without a penalty. Shown is of each penalty the row that "
        f"removes most with a held-out error at most {SLACK} above that of the network without one; "
        "strengths to try were set after short looks at runs that printed both errors"
    )
    cut = [small(row, options, records) for row in chosen if row["penalty"] != "none"]
    at_the_cut = (
        f"The same rows at the cut: the wide network and what sl.compact makes of it; {torch.get_num_threads()} thread"
    )
    return [
        {"what": what, "rows": chosen},
        *([{"what": at_the_cut, "rows": cut}] if cut else []),
        {"what": "All rows behind that choice", "rows": rows},
    ]


def picture(folder: Path, rows: list[Record]) -> None:
    """Error against the parameters removed, a line for each penalty and data set; the network without one is its start."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        point = row["parameters removed %"], row["test error %"]
        if row["penalty"] == "none":
            start = point
        else:
            lines.setdefault(f"{row['data']}, {row['penalty']}", [start]).append(point)
    folder.mkdir(parents=True, exist_ok=True)
    labels = {"xlabel": "parameters removed, %", "ylabel": "test error, %"}
    plotting.against(lines, title="What fewer neurons cost", **labels).savefig(folder / "networks-neurons.png")
