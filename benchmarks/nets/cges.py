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
from .record import Record, Records
from .train import Plan, Trainer, error, fit

TITLE = "Group, exclusive and combined sparsity (CGES) on MNIST"
FILTERS, HIDDEN = (8, 16), 256  # a quarter of the CGES paper's
LAYERS = ("0.weight", "3.weight", "7.weight", "9.weight")
RATE, EPOCHS = 0.1, 4
EVERY = 10  # steps of SGD from prox to prox, with EVERY times the rate
RUNS = {
    "none": (0.0,),
    "l2": (1e-3,),
    "l1": (1e-4, 3e-4, 1e-3),
    "group": (3e-4, 1e-3, 3e-3),
    "exclusive": (3e-4, 1e-3, 3e-3),
    "CGES, exact prox": (3e-4, 1e-3, 3e-3),
    "CGES, linearised step": (3e-4, 1e-3, 3e-3),
}
SHOWN = ("group", "exclusive", "CGES, exact prox")


def network() -> nn.Sequential:
    """The paper's net at a quarter of its width: two convolutions that keep the size, a hidden layer, ten classes."""
    a, b = FILTERS
    convolutions = [nn.Conv2d(1, a, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    convolutions += [nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(49 * b, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))


def features(name: str, parameter: Tensor) -> Tensor:
    """The paper's groups, (inputs, outputs): what one input feature (of a filter: channel and place) gives to all outputs."""
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
    if method == "CGES, linearised step":

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
        sgd, proxes = torch.optim.SGD(model.parameters(), RATE), steps(model, method, lam)

        def after(step: int) -> None:
            if step % EVERY == EVERY - 1:
                for prox in proxes:
                    prox(EVERY * sgd.param_groups[0]["lr"])

        return Trainer(sgd, after_step=after)

    torch.manual_seed(plan.seed)
    start = network()
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
    data = mnist(options.data).to(options.device)
    plan = Plan(1, batch=10, rate=falls)
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
    net = f"{FILTERS[0]}c5-{FILTERS[1]}c5-{HIDDEN}-10 (a quarter of the paper's widths)"
    return [
        {
            "what": f"MNIST by {net}, {plan.epochs} epochs of SGD at the rate {RATE}, batch {plan.batch}, one seed; the "
            f"penalty's step after every {EVERY}th one with {EVERY} times the rate; a feature is an input with its weights to "
            "all outputs",
            "rows": rows,
        },
        {"what": "Sharing: the part of a layer's outputs that a feature left in it feeds", "rows": shares},
    ]


def pictures(folder: Path, found: dict[tuple[str, float], Record], records: Records) -> None:
    """Error against zeros; which features feed which class; the first filters; sharing layer by layer."""
    folder.mkdir(parents=True, exist_ok=True)
    methods = list(dict.fromkeys(method for method, _ in found))
    points = {
        m: [(r["zero weights %"], r["test error %"]) for (name, _), r in found.items() if name == m] for m in methods
    }
    labels = {"xlabel": "weights that are exactly 0, %", "ylabel": "test error, %"}
    plotting.against(points, title="Group, exclusive and both: what zeros cost", **labels).savefig(
        folder / "cges-error.png"
    )
    shown = {method: max(lam for name, lam in found if name == method) for method in SHOWN}
    sharing = {method: list(enumerate(found[method, lam]["sharing"], 1)) for method, lam in shown.items()}
    labels = {"xlabel": "layer", "ylabel": "outputs that a feature feeds, %"}
    plotting.against(sharing, title="Sharing in low layers, competition in high ones", **labels).savefig(
        folder / "cges-sharing.png"
    )
    models = {
        m: torch.load(records.checkpoint(f"{m} {lam:g}"), weights_only=False)["model"] for m, lam in shown.items()
    }
    last = {method: model.get_parameter(LAYERS[-1]) for method, model in models.items()}
    title = "Which hidden feature feeds which class"
    plotting.weight_pattern(last, title=title, xlabel="feature", ylabel="class").savefig(folder / "cges-classes.png")
    first = torch.cat([features("", model.get_parameter(LAYERS[0])) for model in models.values()], 1)
    title = f"First filters, from the top: {', '.join(shown)}"
    plotting.atoms(first, title=title, columns=FILTERS[0]).savefig(folder / "cges-filters.png")
