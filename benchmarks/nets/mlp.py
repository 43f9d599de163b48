"""Logistic regression and small perceptrons under the penalties of a paper on group sparsity, and what does best there.

Chen, Dai, Pan and Sheng, "Benefit of group sparsity in deep learning", 2020, after Scardapane, Comminiello, Hussain and
Uncini 2017. Groups: the weights that leave an input, those that leave a hidden neuron, every bias alone; each norm is
weighed by the root of its group's size. All seeds and strengths of one penalty are trained in one program.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import sparselayers as sl
from sparselayers import plotting

from .data import READERS, Split
from .gain import gain
from .record import Record, Records
from .replicas import Replicas, accuracy, fit, outgoing, prox_step
from .train import Plan

TITLE = "Perceptrons: logistic regression and two hidden layers of 32, under l2, l1, group lasso and sparse group lasso"
SEEDS, FULL_SEEDS = 3, 5
LOSS = 0.005  # of accuracy on the held-out part, against no penalty: what zeros may cost
GROUP, SPARSE_GROUP = sl.GroupL2(sqrt_size=True), sl.SparseGroup(sqrt_size=True)
PENALTIES: dict[str, tuple[sl.Penalty, tuple[float, ...]]] = {
    "none": (sl.L1(), (0.0,)),
    "l2": (sl.Ridge(), (1e-4, 1e-3)),
    "l1": (sl.L1(), (3e-5, 1e-4, 3e-4)),
    "group lasso": (GROUP, (3e-5, 1e-4, 3e-4)),
    "sparse group lasso": (SPARSE_GROUP, (6e-5, 2e-4, 6e-4)),
}
FROZEN: dict[str, tuple[sl.Penalty, tuple[float, ...]]] = {
    "none, as long": (sl.L1(), (0.0,)),
    "l1, then frozen": (sl.L1(), (4e-4, 5e-4, 6e-4)),
    "group lasso, then frozen": (GROUP, (3e-4, 6e-4, 1.2e-3)),
}
KEPT, FREEZE = 0.4, 0.4  # of the parameters, at most; of the steps, with the penalty
RIDGE = {"MNIST": 2e-3, "Covertype": 0.0, "SDD": 0.0}  # after the freeze: on MNIST the network overfits
# Of all strengths, of the rows and of those that freeze: the networks differ in size and in loss.
SCALE = {"MNIST": (1.0, 1.0), "Covertype": (4.0, 2.0), "SDD": (10.0, 3.0)}
EPOCHS = {"MNIST": (12, 36), "Covertype": (10, 20), "SDD": (150, 300)}  # of the rows, and of those that freeze
BATCH, LR = 256, 4e-3
# A weight stays at 0 while the mean of its gradients is below lam: over ten steps that mean is mostly noise.
BETAS = (0.98, 0.999)


class Job(NamedTuple):
    """One program: replicas over seeds and strengths."""

    data: str
    network: str
    penalty: str
    method: sl.Penalty
    strengths: tuple[float, ...]
    epochs: int
    batch: int = BATCH
    seeds: int = SEEDS
    freeze: float | None = None  # the share of the steps after which the pattern is held and the penalty ends

    @property
    def name(self) -> str:
        return f"{self.data}, {self.network}, {self.penalty}"

    @property
    def grid(self) -> list[tuple[int, float]]:
        return [(seed, lam) for lam in self.strengths for seed in range(self.seeds)]


def perceptron(network: str, n_inputs: int, n_classes: int) -> nn.Sequential:
    if network == "logistic":
        return nn.Sequential(nn.Linear(n_inputs, n_classes))
    return nn.Sequential(nn.Linear(n_inputs, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, n_classes))


def jobs(quick: bool, full: bool) -> list[Job]:
    """`full`: four times the epochs, which are then the 20 of the paper or more, and five seeds."""
    found = []
    for data, (epochs, longer) in EPOCHS.items():
        if quick and data != "MNIST":
            continue
        short = {"batch": 64 if data == "SDD" or quick else BATCH, "seeds": FULL_SEEDS if full else SEEDS}
        (scale, milder), times = SCALE[data], 4 if full else 1
        epochs, longer = (1, 2) if quick else (times * epochs, times * longer)
        for name, (penalty, strengths) in PENALTIES.items():
            found.append(Job(data, "mlp", name, penalty, scaled(strengths, scale), epochs, **short))
        for name, (penalty, strengths) in FROZEN.items():
            found.append(Job(data, "mlp", name, penalty, scaled(strengths, milder), longer, **short, freeze=FREEZE))
        for name in PENALTIES:
            penalty, strengths = PENALTIES[name]
            found.append(Job(data, "logistic", name, penalty, scaled(strengths, scale), max(1, epochs // 2), **short))
    return found


def scaled(strengths: tuple[float, ...], scale: float) -> tuple[float, ...]:
    return tuple(float(f"{scale * lam:.2g}") for lam in strengths)


def prepare(data: str, split: Split) -> Split:
    """Pictures as rows, and pixels without ink 0: one that never has any gets no gradient, and its weights go first."""
    if data != "MNIST":
        return split
    low = split.x.min()
    flat = split.flat()
    return flat._replace(x=flat.x - low, held_x=flat.held_x - low, test_x=flat.test_x - low)


def train(job: Job, split: Split, device: str, checkpoint: Path) -> Record:
    """All replicas of a job; a list for each measure, in the order of the grid. Their weights go to the checkpoint."""
    seeds, lam = zip(*job.grid, strict=True)
    n_classes = int(split.y.max()) + 1
    replicas = Replicas(partial(perceptron, job.network, split.x.shape[1], n_classes), seeds, device)
    plan, optimizer = (
        schedule(job),
        torch.optim.AdamW(replicas.parameters.values(), LR, BETAS, weight_decay=0.0, fused=True),
    )
    strengths, ramp = torch.tensor(lam, device=device), plan.steps(len(split.x)) / job.epochs
    last = round((job.freeze or 1.0) * plan.steps(len(split.x)))
    held: list[Callable[[], None]] = []

    def after_step(step: int) -> None:
        if step < last:
            # A neuron that the first batches do not excite has a tiny metric, and would be gone before it has begun.
            now = strengths * min(1.0, step / ramp)
            prox_step(replicas, optimizer, job.method, now, outgoing)
        elif RIDGE[job.data]:
            prox_step(replicas, optimizer, sl.Ridge(), torch.full_like(strengths, RIDGE[job.data]), outgoing)
        if step == last - 1 and job.freeze is not None:
            held.append(replicas.freeze())
        for hold in held:
            hold()

    seconds = fit(replicas, split.x, split.y, plan, optimizer, after_step, job.name)
    torch.save({name: stack.detach().cpu() for name, stack in replicas.parameters.items()}, checkpoint)
    return measure(replicas, split) | {"grid": job.grid, "seconds": round(seconds, 1), "epochs": job.epochs}


def schedule(job: Job) -> Plan:
    """A cosine from the whole rate to 0; where a pattern is frozen on the way, one to there and one after it."""
    cosine, share = Plan(job.epochs, job.batch).rate, job.freeze or 1.0

    def rate(done: float) -> float:
        return cosine(done / share) if done < share else cosine((done - share) / (1 - share)) if share < 1 else 0.0

    return Plan(job.epochs, job.batch, rate=rate)


@torch.no_grad()
def measure(replicas: Replicas, split: Split) -> dict[str, list[Any]]:
    weights = [stack for stack in replicas.parameters.values() if stack.ndim == 3]
    active = torch.stack([(stack != 0).any(1).sum(1) for stack in weights], 1)  # (R, layers): read by the next layer
    kept = sum((stack != 0).flatten(1).sum(1) for stack in replicas.parameters.values())
    assert isinstance(kept, Tensor)
    return {
        "held": accuracy(replicas, split.held_x, split.held_y).tolist(),
        "test": accuracy(replicas, split.test_x, split.test_y).tolist(),
        "inputs": active[:, 0].tolist(),
        "hidden": active[:, 1:].sum(1).tolist(),
        "kept": kept.tolist(),
    }


def choose(record: Record, none: float, penalty: str, total: int) -> float:
    """The strength, by the held-out part alone.

    l2: the best there; then frozen: the best of those that keep at most KEPT of the parameters, or the sparsest; else the
    strongest that loses at most LOSS against no penalty.
    """
    strengths = sorted({lam for _, lam in record["grid"]})
    held = {lam: mean(record, "held", lam) for lam in strengths}
    best = max(strengths, key=lambda lam: held[lam])
    if penalty in FROZEN:
        few = [lam for lam in strengths if mean(record, "kept", lam) <= KEPT * total]
        return max(few or strengths[-1:], key=lambda lam: held[lam])
    if penalty == "l2":
        return best
    return max((lam for lam in strengths if held[lam] >= none - LOSS), default=best)


def values(record: Record, what: str, lam: float) -> Tensor:
    return torch.tensor([v for v, (_, each) in zip(record[what], record["grid"], strict=True) if each == lam]).double()


def mean(record: Record, what: str, lam: float) -> float:
    return float(values(record, what, lam).mean())


def row(job: Job, record: Record, lam: float, small: float, total: int) -> Record:
    test = values(record, "test", lam)
    network = "logistic" if job.network == "logistic" else "32-32"
    return {
        "data": job.data,
        "network": network,
        "penalty": job.penalty,
        "lam": lam,
        "accuracy": float(test.mean()),
        "deviation": float(test.std()),
        "inputs active": round(mean(record, "inputs", lam)),
        "hidden active": None if job.network == "logistic" else round(mean(record, "hidden", lam)),
        "parameters kept": round(mean(record, "kept", lam)),
        "kept %": 100 * mean(record, "kept", lam) / total,
        "compacted": round(small),
        "of": total,
        "epochs": record["epochs"],
        "CPU s a network": record["seconds"] / len(record["grid"]),
    }


def tables(options: argparse.Namespace, records: Records) -> list[Record]:
    all_jobs = jobs(options.quick, options.full)
    splits = {
        data: prepare(data, READERS[data](options.data)).to(options.device) for data in {j.data for j in all_jobs}
    }
    found, rows = {}, []
    for job in all_jobs:
        found[job.name] = records.get(job.name, partial(train, job, splits[job.data], options.device))
    for job in all_jobs:
        split, record = splits[job.data], found[job.name]
        build = partial(perceptron, job.network, split.x.shape[1], int(split.y.max()) + 1)
        total = sum(p.numel() for p in build().parameters())
        none = mean(found[f"{job.data}, {job.network}, none"], "held", 0.0)
        lam = choose(record, none, job.penalty, total)
        small = compacted(build, record, torch.load(records.checkpoint(job.name)), lam, split.test_x[:500].cpu())
        rows.append(row(job, record, lam, small, total))
    if options.pictures is not None:
        draw(found, records, rows, options.pictures)
    what = (
        f"Test accuracy, mean and deviation of {all_jobs[0].seeds} seeds, at the strength chosen on a held-out part of the "
        "training set. MNIST is whole; of Covertype a 16 % sample, of SDD 2,200 rows"
    )
    return [{"what": what, "rows": rows}, gain(options)]


def compacted(
    build: Callable[[], nn.Module], record: Record, stacks: dict[str, Tensor], lam: float, x: Tensor
) -> float:
    """The parameters that `sl.compact` leaves, in the mean over the seeds."""
    counts = []
    for i, (_, each) in enumerate(record["grid"]):
        if each == lam:
            model = build()
            model.load_state_dict({name: stack[i] for name, stack in stacks.items()})
            counts.append(sum(p.numel() for p in sl.compact(model.eval(), x).parameters()))
    return sum(counts) / len(counts)


def draw(found: dict[str, Record], records: Records, rows: list[Record], folder: Path) -> None:
    """Accuracy against the parameters kept, and which pixels are read, on MNIST."""
    lines = {}
    names = [*list(PENALTIES)[2:], *FROZEN]
    for name in names:
        record = found[f"MNIST, mlp, {name}"]
        strengths = sorted({lam for _, lam in record["grid"]})
        lines[name] = [(100 * mean(record, "kept", lam) / 26506, mean(record, "test", lam)) for lam in strengths]
    labels = {"xlabel": "parameters that are not 0, % of 26,506", "ylabel": "test accuracy"}
    title = "MNIST by 784-32-32-10: what zeros cost"
    plotting.against(lines, title=title, **labels).savefig(folder / "networks-mlp-accuracy.png")
    pictures = {}
    for chosen in rows:
        if (chosen["data"], chosen["network"]) == ("MNIST", "32-32") and chosen["penalty"] in names and chosen["lam"]:
            job = f"MNIST, mlp, {chosen['penalty']}"
            first = [lam for _, lam in found[job]["grid"]].index(chosen["lam"])
            weight = torch.load(records.checkpoint(job))["0.weight"][first]
            pictures[f"{chosen['penalty']}: {int(weight.any(0).sum())} pixels"] = (
                (weight != 0).double().mean(0).view(28, 28)
            )
    title = "The share of the 32 neurons that read a pixel, at the chosen strength"
    plotting.images(pictures, title=title).savefig(folder / "networks-mlp-pixels.png")


def page(rows: list[Record]) -> str:
    """The rows as the table of docs/networks.md."""
    head = ("data", "network", "penalty", "accuracy", "inputs", "hidden", "parameters", "%", "compacted")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for found in rows:
        accuracy = f"{found['accuracy']:.4f} ± {found['deviation']:.4f}"
        hidden = "" if found["hidden active"] is None else found["hidden active"]
        counts = (
            found["inputs active"],
            hidden,
            found["parameters kept"],
            f"{found['kept %']:.1f}",
            found["compacted"],
        )
        cells = (found["data"], found["network"], found["penalty"], accuracy, *map(str, counts))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
