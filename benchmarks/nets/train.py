"""The training loop: seeded epoch by epoch, so that a run resumed from its checkpoint is the run that never stopped."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from tqdm import tqdm

Augment = Callable[[Tensor], Tensor]


def nothing(*_: object) -> None:
    """The hook that does nothing."""


@dataclass
class Trainer:
    """What is done around the gradient of the loss, for one model; built anew whenever the model was cut.

    Attributes:
        optimizer: its param groups' first lr is the largest; `fit` multiplies it by its `rate`.
        extra: a term of the loss.
        before_step, after_step: called with the number of the step, from 0, over all epochs.
    """

    optimizer: Optimizer
    extra: Callable[[], Tensor] | None = None
    before_step: Callable[[int], None] = nothing
    after_step: Callable[[int], None] = nothing
    lrs: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.lrs = [group["lr"] for group in self.optimizer.param_groups]


@dataclass(frozen=True)
class Plan:
    """How long and how: the same for all rows of a table."""

    epochs: int
    batch: int = 100
    seed: int = 0
    bf16: bool = False
    augment: Augment | None = None
    rate: Callable[[float], float] = lambda done: 0.5 + 0.5 * math.cos(math.pi * done)  # done: the share of steps

    def steps(self, n: int) -> int:
        """The steps of the whole run on n samples."""
        return self.epochs * math.ceil(n / self.batch)


def fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    plan: Plan,
    build: Callable[[nn.Module], Trainer],
    *,
    after_epoch: Callable[[nn.Module, int], nn.Module] | None = None,
    checkpoint: Path | None = None,
    name: str = "",
) -> tuple[nn.Module, float]:
    """Train by cross-entropy; the model and the seconds of CPU time (wall time on another device).

    Args:
        build: model -> Trainer, called at the start and again where `after_epoch` gave another model.
        after_epoch: (model, epochs done) -> the model to go on with, the same or a smaller one.
        checkpoint: a file written after every epoch, and read at the start if it exists.
    """
    trainer, start, spent = build(model), 0, 0.0
    if checkpoint is not None and checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=False)
        model, start, spent = kept["model"], kept["epochs"], kept["seconds"]
        trainer = build(model)
        if kept["optimizer"] is not None:
            trainer.optimizer.load_state_dict(kept["optimizer"])
    clock = time.process_time if x.device.type == "cpu" else time.perf_counter
    length = math.ceil(len(x) / plan.batch)
    bar = tqdm(total=plan.epochs * length, initial=start * length, desc=name.ljust(32), mininterval=5.0)
    for epoch in range(start, plan.epochs):
        begun = clock()
        _epoch(model.train(), x, y, plan, trainer, epoch, bar)
        small = model if after_epoch is None else after_epoch(model, epoch + 1)
        spent += clock() - begun
        state = trainer.optimizer.state_dict() if small is model else None
        if small is not model:
            model, trainer = small, build(small)
        if checkpoint is not None:
            fresh = checkpoint.with_suffix(".new")
            torch.save({"model": model, "optimizer": state, "epochs": epoch + 1, "seconds": spent}, fresh)
            os.replace(fresh, checkpoint)
    bar.close()
    return model.eval(), spent


def _epoch(model: nn.Module, x: Tensor, y: Tensor, plan: Plan, trainer: Trainer, epoch: int, bar: tqdm) -> None:
    torch.manual_seed(1_000_003 * plan.seed + epoch)
    batches = torch.randperm(len(x)).to(x.device).split(plan.batch)
    for i, batch in enumerate(batches):
        step = epoch * len(batches) + i
        for group, lr in zip(trainer.optimizer.param_groups, trainer.lrs, strict=True):
            group["lr"] = lr * plan.rate(step / (plan.epochs * len(batches)))
        trainer.before_step(step)
        inputs = x[batch] if plan.augment is None else plan.augment(x[batch])
        if plan.bf16 and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=plan.bf16):
            logits = model(inputs)
        loss = cross_entropy(logits.float(), y[batch])
        if trainer.extra is not None:
            loss = loss + trainer.extra()
        trainer.optimizer.zero_grad()
        loss.backward()
        trainer.optimizer.step()
        trainer.after_step(step)
        bar.update()


@torch.no_grad()
def error(model: nn.Module, x: Tensor, y: Tensor, batch: int = 1000) -> float:
    """Per cent of wrong classes, in evaluation mode and float32."""
    model.eval()
    wrong = sum(int((model(a).argmax(-1) != b).sum()) for a, b in zip(x.split(batch), y.split(batch), strict=True))
    return 100 * wrong / len(y)
