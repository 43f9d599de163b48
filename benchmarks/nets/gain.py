"""Replicas in one program against a loop over them: the time of the same training steps."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import torch
from common import Row, race, ratio
from torch import nn
from torch.nn.functional import cross_entropy

import sparselayers as sl

from .replicas import Replicas, outgoing, prox_step

SIZES = ((784, 32, 32, 10), (54, 32, 32, 7))
COUNTS, BATCH, STEPS, LAM = (4, 16), 32, 10, 1e-4


def make(sizes: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def together(sizes: tuple[int, ...], count: int, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    replicas = Replicas(lambda: make(sizes), range(count), str(x.device))
    optimizer = torch.optim.AdamW(replicas.parameters.values(), 1e-3, weight_decay=0.0, fused=True)
    lam, penalty = torch.full((count,), LAM, device=x.device), sl.GroupL2(sqrt_size=True)

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            cross_entropy(replicas(x).flatten(0, 1), y.flatten(), reduction="sum").div(BATCH).backward()
            optimizer.step()
            prox_step(replicas, optimizer, penalty, lam, outgoing)

    return steps


def one_by_one(sizes: tuple[int, ...], count: int, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    runs = []
    for seed in range(count):
        torch.manual_seed(seed)
        model = make(sizes).to(x.device)
        regularizer = sl.Regularizer(model, sl.GroupL2(sqrt_size=True), LAM, groups="outgoing")
        runs.append(
            (model, sl.ProxAdamW(model.parameters(), 1e-3, fused=True, regularizer=regularizer), x[seed], y[seed])
        )

    def steps() -> None:
        for model, optimizer, inputs, classes in runs:
            for _ in range(STEPS):
                optimizer.zero_grad()
                cross_entropy(model(inputs), classes).backward()
                optimizer.step()

    return steps


def gain(options: argparse.Namespace) -> Row:
    """A table of ratios for a benchmark's JSON."""
    timing = argparse.Namespace(device=options.device, quick=options.quick, repeats=1 if options.quick else 7)
    rows = []
    for sizes in SIZES:
        for count in COUNTS:
            x = torch.randn(count, BATCH, sizes[0], device=options.device)
            y = torch.randint(sizes[-1], (count, BATCH), device=options.device)
            calls = {"one program": together(sizes, count, x, y), "a loop": one_by_one(sizes, count, x, y)}
            name = {"network": "-".join(map(str, sizes)), "replicas": count}
            rows.append(name | ratio("one program", "a loop", race(calls, timing)))
    what = (
        f"Replicas of a network trained in one program against a loop over them: {STEPS} steps of each, batches of {BATCH}, "
        "Adam, group lasso"
    )
    return {"what": what, "rows": rows}
