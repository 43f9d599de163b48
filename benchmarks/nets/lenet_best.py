"""Our recipe: the penalty grows until the network is as small as asked, then the small network is trained on without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import sparselayers as sl
from nets.data import Split
from nets.lenet_methods import LR, MOMENTUM, regularizers, sgd
from nets.slim import NEURONS, PARAMETERS, cut, left
from nets.train import Augment, Plan, Trainer, fit

GOAL = (int(PARAMETERS * (1 - 0.9412)), int(NEURONS * (1 - 0.7352)))  # parameters and neurons left at most
SHRINK = 28.0  # where the ramp would end, far beyond the goal, times the number of steps
LOOKS = 400  # how often neurons are counted


def balanced(name: str) -> tuple[sl.Penalty, float]:
    """‖w‖_2, more of it on the first filters, which take most of the time, and less on the 10 weights of a hidden neuron."""
    return sl.GroupL2(), {"conv1": 3.0, "fc2": 0.4}.get(name, 1.0)


def small_enough(model: nn.Module) -> bool:
    return all(n <= most for n, most in zip(left(model), GOAL, strict=True))


def select(model: nn.Module, steps: int) -> Trainer:
    """Group lasso by ProxSGD with a strength that grows; once the goal is met the pattern is frozen, the strength 0."""
    layers = regularizers(model, balanced)
    optimizer = sl.ProxSGD(
        model.parameters(), LR, MOMENTUM, nesterov=True, regularizer=[regularizer for regularizer, _ in layers]
    )
    ramp, met = sl.LamSchedule(SHRINK / steps, warmup=7 * steps // 8, delay=steps // 8), [small_enough(model)]

    def before(step: int) -> None:
        for regularizer, factor in layers:
            regularizer.lam = 0.0 if met[0] else ramp.at(step) * factor

    def after(step: int) -> None:
        if not met[0] and step % max(1, steps // LOOKS) == 0 and small_enough(model):
            met[0] = True
            for regularizer, _ in layers:
                regularizer.freeze()

    return Trainer(optimizer, before_step=before, after_step=after)


def best(
    start: nn.Module, split: Split, epochs: tuple[int, int], seed: int, augment: Augment | None, file: Path, name: str
) -> tuple[nn.Module, float]:
    """The small network and the seconds it took; `epochs` to select at a constant rate and to train on to rate 0."""
    first = Plan(epochs[0], seed=seed, bf16=True, augment=augment, rate=lambda done: 1.0)
    steps = first.steps(len(split.x))

    def cut_out(model: nn.Module, epoch: int) -> nn.Module:
        return cut(model)

    model, spent = fit(
        start, split.x, split.y, first, lambda m: select(m, steps),
        after_epoch=cut_out, checkpoint=file.with_suffix(".select.pt"), name=f"{name}: select",
    )  # fmt: skip
    if not small_enough(model):
        raise RuntimeError(f"{name}: {left(model)} parameters and neurons are left, more than {GOAL}; use more epochs")
    second = replace(Plan(epochs[1], seed=seed + 1000, bf16=True, augment=augment))
    torch.manual_seed(seed)
    model, more = fit(
        model, split.x, split.y, second, lambda m: Trainer(sgd(m)), checkpoint=file, name=f"{name}: train on"
    )
    return model, spent + more
