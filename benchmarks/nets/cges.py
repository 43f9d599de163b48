"""Combined group and exclusive sparsity against each alone: who removes features, who makes outputs compete for them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import sparselayers as sl
import sparselayers.functional as F
from sparselayers import plotting

from .data import Split, mnist
from .hoyer import falls
from .neurons import network
from .record import Record, Records
from .train import Plan, Trainer, error, fit

TITLE = "Group, exclusive and combined sparsity (CGES) on MNIST"
WIDTHS = (784, 300, 100, 10)
LAYERS = ("0.weight", "2.weight", "4.weight")
RATE, MOMENTUM, EPOCHS = 0.05, 0.9, 4
EVERY = 10  # steps of SGD from prox to prox, with EVERY times their length
RUNS = {
    "none": (0.0,),
    "group": (6e-4, 1.2e-3, 2.5e-3, 5e-3),
    "exclusive": (1e-4, 3e-4, 1e-3),
    "CGES, exact prox": (3e-4, 6e-4, 1.2e-3, 2.5e-3),
    "CGES, linearised": (3e-4, 6e-4, 1.2e-3, 2.5e-3),
    "CGES, linearised, every step": (3e-4, 6e-4, 1.2e-3, 2.5e-3),
    "l1": (3e-5, 1e-4, 3e-4),
    "l2": (1e-3,),
}
NEURONS = 24  # of the first layer, in a picture
SHOWN = ("group", "exclusive", "CGES, exact prox")


def features(name: str, parameter: Tensor) -> Tensor:
    """The paper's groups, (inputs, outputs): what one input (of filters: a channel and a place) gives to all outputs."""
    return parameter.flatten(1).mT


def penalties(method: str) -> list[sl.Penalty]:
    """One a layer: the combined one goes from groups in the first layer to competition in the last."""
    if method.startswith("CGES"):
        return [sl.GroupExclusive(mu=F.cges_mu(layer, len(LAYERS))) for layer in range(len(LAYERS))]
    alone = {"l2": sl.Ridge(), "l1": sl.L1(), "group": sl.GroupL2(), "exclusive": sl.Exclusive()}
    return [alone[method]] * len(LAYERS)


def steps(model: nn.Module, method: str, lam: float) -> list[Callable[[float], None]]:
    """What is done to each layer with a step size."""
    if method == "none":
        return []
    if "linearised" in method:

        @torch.no_grad()
        def linearised(step: float) -> None:
            for layer, name in enumerate(LAYERS):
                rows = features(name, model.get_parameter(name))
                rows.copy_(F.cges_linearized_step(rows, step * lam, F.cges_mu(layer, len(LAYERS))))

        return [linearised]
    both = zip(LAYERS, penalties(method), strict=True)
    return [sl.Regularizer(model, penalty, lam, groups=features, include=name).step for name, penalty in both]


def run(method: str, lam: float, data: Split, plan: Plan, checkpoint: Path) -> Record:
    def build(model: nn.Module) -> Trainer:
        sgd, proxes = torch.optim.SGD(model.parameters(), RATE, MOMENTUM), steps(model, method, lam)
        every = 1 if method.endswith("every step") else EVERY

        def after(step: int) -> None:
            if step % every == every - 1:
                for prox in proxes:
                    # Momentum adds up gradients and no proxes: so lam counts as lam.
                    prox(every * sgd.param_groups[0]["lr"] / (1 - MOMENTUM))

        return Trainer(sgd, after_step=after)

    torch.manual_seed(plan.seed)
    start = network(*WIDTHS)
    model, seconds = fit(start, data.x, data.y, plan, build, checkpoint=checkpoint, name=f"{method} {lam:g}")
    weights = [features(name, model.get_parameter(name)) for name in LAYERS]
    used = [(w != 0).sum(1) for w in weights]  # outputs that each input feature feeds
    return {
        "zero weights %": 100 * (1 - sum(int(u.sum()) for u in used) / sum(w.numel() for w in weights)),
        "features removed %": 100 * sum(int((u == 0).sum()) for u in used) / sum(len(u) for u in used),
        "sharing": [100 * share(u, w) for u, w in zip(used, weights, strict=True)],
        "held-out error %": error(model, data.held_x, data.held_y),
        "test error %": error(model, data.test_x, data.test_y),
        "cpu s": seconds,
    }


def share(used: Tensor, weight: Tensor) -> float:
    """Of the outputs, the part that a feature feeds, the mean over the features that are left; 0 where none is."""
    alive = used[used > 0].float()
    return float(alive.mean() / weight.shape[1]) if len(alive) else 0.0


def tables(options: argparse.Namespace, records: Records) -> list[Record]:
    data = mnist(options.data).flat().to(options.device)
    plan = Plan(1, batch=20, rate=falls)
    if not options.quick:
        plan = Plan(54 if options.full else EPOCHS, bf16=True, rate=falls)
    found = {
        (method, lam): records.get(f"{method} {lam:g}", lambda file, m=method, s=lam: run(m, s, data, plan, file))
        for method, lams in RUNS.items()
        for lam in (lams[:1] if options.quick else lams)
    }
    if options.pictures:
        pictures(options.pictures, found, records)
    rows = [
        {"penalty": method, "lam": lam, **{key: value for key, value in record.items() if key != "sharing"}}
        for (method, lam), record in found.items()
    ]
    shares = [
        {"penalty": method, "lam": lam, **{f"layer {i + 1} %": each for i, each in enumerate(record["sharing"])}}
        for (method, lam), record in found.items()
    ]
    net = "-".join(map(str, WIDTHS))
    return [
        {
            "what": f"MNIST by {net}, {plan.epochs} epochs of SGD, rate {RATE}, momentum {MOMENTUM}, batch {plan.batch}, bf16, "
            f"one seed; the penalty's step after every {EVERY}th one with {EVERY} times its length; a feature is an input with "
            "its weights to all outputs of a layer",
            "rows": rows,
        },
        {"what": "Sharing: the part of a layer's outputs that a feature left in it feeds", "rows": shares},
    ]


def pictures(folder: Path, found: dict[tuple[str, float], Record], records: Records) -> None:
    """Error against zeros; which features feed which class; what the strongest neurons of the first layer read."""
    folder.mkdir(parents=True, exist_ok=True)
    methods = list(dict.fromkeys(method for method, _ in found))
    points = {
        m: [(r["zero weights %"], r["test error %"]) for (name, _), r in found.items() if name == m] for m in methods
    }
    labels = {"xlabel": "weights that are exactly 0, %", "ylabel": "test error, %"}
    plotting.against(points, title="Group, exclusive and both: what zeros cost", **labels).savefig(
        folder / "networks-cges-error.png"
    )
    shown = {method: max(lam for name, lam in found if name == method) for method in SHOWN}
    models = {
        m: torch.load(records.checkpoint(f"{m} {lam:g}"), weights_only=False)["model"] for m, lam in shown.items()
    }
    last = {method: model.get_parameter(LAYERS[-1]) for method, model in models.items()}
    title = "Which hidden feature feeds which class"
    plotting.weight_pattern(last, title=title, xlabel="feature", ylabel="class").savefig(
        folder / "networks-cges-classes.png"
    )
    strongest = [features("", m.get_parameter(LAYERS[0])) for m in models.values()]
    strongest = [w[:, w.norm(dim=0).argsort(descending=True)[:NEURONS]] for w in strongest]
    title = f"What the {NEURONS} strongest neurons read; from the top: group, exclusive, CGES"
    plotting.atoms(torch.cat(strongest, 1), title=title, columns=NEURONS).savefig(folder / "networks-cges-pixels.png")
