"""Eleven ways to make a network sparse, on the digits of scikit-learn: what do exact zeros cost in accuracy?

One learns: (1) a prox step after each step of the optimizer (`attach`) makes exact zeros while training, for any penalty;
(2) a penalty without a prox goes into the loss and needs a cut at the end; (3) gates need a rate of their own, and are
folded into the weights; (4) some penalties remove neurons, others only entries. Nothing is downloaded.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import nn

import sparselayers as sl
from sparselayers import plotting
from sparselayers.demo.common import Digits, digits, table

HIDDEN = ["0.weight", "3.weight"]
METHODS = {  # each at three strengths
    "dense": (sl.L1(), (0.0,)),
    "L1": (sl.L1(), (3e-3, 6e-3, 0.01)),
    "GroupL2": (sl.GroupL2(), (0.03, 0.05, 0.08)),
    "SparseGroup": (sl.SparseGroup(), (5e-3, 0.01, 0.02)),
    "Exclusive": (sl.Exclusive(), (3e-4, 1e-3, 3e-3)),
    "GroupExclusive": (sl.GroupExclusive(mu=0.1), (3e-3, 0.01, 0.03)),
    "SparseGroupL0": (sl.SparseGroupL0(), (0.01, 0.02, 0.04)),
    "GroupL0": (sl.GroupL0(), (2.5, 3.0, 3.5)),
    "GroupMCP": (sl.GroupMCP(), (0.04, 0.06, 0.08)),
    "HardConcrete": (sl.HardConcrete, (3e-3, 6e-3, 0.01)),
    "HoyerSquare, cut at 0.02": (sl.HoyerSquare(), (1e-4, 3e-4, 1e-3)),
    "PenaltyDecomposition": (sl.PenaltyDecomposition, (1e-4, 2e-4, 4e-4)),
}
COLUMNS = ("penalty", "lam", "test accuracy", "zero weights", "neurons removed of 150", "flops removable")


def train(method: sl.Penalty | type, lam: float, data: Digits, epochs: int) -> nn.Sequential:
    torch.manual_seed(0)
    gates = [sl.HardConcrete(n) if method is sl.HardConcrete else nn.Identity() for n in (100, 50)]
    first, second, last = nn.Linear(64, 100), nn.Linear(100, 50), nn.Linear(50, 10)
    model = nn.Sequential(first, nn.ReLU(), gates[0], second, nn.ReLU(), gates[1], last)
    rates = [{"params": layer.parameters(), "lr": 0.5 if layer in gates else 0.05} for layer in model]
    optimizer = torch.optim.SGD(rates, momentum=0.9)
    split = extra = None
    if method is sl.PenaltyDecomposition:
        split = sl.PenaltyDecomposition(model, lam, beta=0.1, include=HIDDEN)
        extra = split.value
    elif method is sl.HardConcrete:
        extra = lambda: lam * (gates[0].expected_l0() + gates[1].expected_l0())  # noqa: E731
    elif method == sl.HoyerSquare():
        extra = sl.Regularizer(model, method, lam, include=HIDDEN).value
    else:
        sl.Regularizer(model, method, lam, include=HIDDEN).attach(optimizer)
    for epoch in range(epochs):
        for batch in torch.randperm(len(data.train_images)).split(64):
            loss = nn.functional.cross_entropy(model(data.train_images.flatten(1)[batch]), data.train_classes[batch])
            optimizer.zero_grad()
            (loss + extra() if extra else loss).backward()
            optimizer.step()
            if split:
                split.step()
        if split and epoch % 4 == 3:
            split.grow()
    model.eval().requires_grad_(False)
    for i in (0, 3):  # exact zeros for those that have none while they train
        if method is sl.HardConcrete:  # a gate z >= 0 on a ReLU: z relu(w x + b) = relu(z w x + z b)
            model[i].weight *= model[i + 2]()[:, None]
            model[i].bias *= model[i + 2]()
            model[i + 2] = nn.Identity()
        elif method == sl.HoyerSquare():
            model[i].weight[model[i].weight.abs() < 0.02] = 0
    if split:
        split.apply()
    return model


def shown(runs: list[list], epochs: int) -> str:
    rows = [[name, f"{lam:g}", f"{a:.1%}", f"{z:.1%}", str(n), f"{f:.1%}"] for name, lam, a, z, n, f in runs]
    return table(f"Digits by a network of 100 and 50 hidden neurons, {epochs} epochs", COLUMNS, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, help="folder for sparsify_mlp.json and two pictures; nothing without")
    asked, data, runs, first = parser.parse_args(), digits(), [], {}
    for name, (method, strengths) in METHODS.items():
        for lam in strengths:
            model = train(method, lam, data, asked.epochs)
            accuracy = (model(data.test_images.flatten(1)).argmax(1) == data.test_classes).float().mean().item()
            count = sl.sparsity_report(model, torch.zeros(1, 64))
            removed = sum(layer.groups_zero for layer in count.layers[:2])
            zeros, flops = count.weights_zero / count.weights, count.flops_removable / count.flops
            runs.append([name, lam, round(accuracy, 4), round(zeros, 4), removed, round(flops, 4)])
            first[name] = model[0].weight
    print(shown(runs, asked.epochs))
    if out := asked.out:
        found = {"epochs": asked.epochs, "torch": torch.__version__, "columns": COLUMNS, "runs": runs}
        (out / "sparsify_mlp.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        lines = {name: [(run[3], run[2]) for run in runs if run[0] == name] for name in METHODS}
        labels = {"xlabel": "share of weights that are exactly 0", "ylabel": "test accuracy"}
        plotting.against(lines, title="What zeros cost", **labels).savefig(out / "sparsify-mlp-accuracy.png")
        some = {name: first[name] for name in ("L1", "GroupL2", "Exclusive", "GroupExclusive")}
        labels = {"xlabel": "pixel", "ylabel": "neuron"}
        plotting.weight_pattern(some, title="Which pixel feeds which neuron, at the largest lam", **labels).savefig(
            out / "sparsify-mlp-weights.png"
        )


if __name__ == "__main__":
    main()
