"""One prox step on the weights of a WRN-28-10 against one AdamW step, and the joined path against a Python loop."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import Row, arguments, machine, race, ratio, write
from torch import Tensor, nn

import sparselayers as sl
from sparselayers.prox import Penalty

LR, LAM = 0.1, 5e-4
GOALS = {"L1 prox": 0.35, "GroupL2 prox": 0.35, "Exclusive prox": 0.5}  # of AdamW(foreach=True)
PENALTIES = (sl.L1(), sl.GroupL2(), sl.Exclusive(), sl.SparseGroup())


def wide_resnet(depth: int, widen: int) -> nn.Module:
    """The convolutions and the last layer of a WRN for CIFAR-10 (Zagoruyko and Komodakis 2016), as a bare list."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, bias=False)]
    channels = 16
    for width in (16 * widen, 32 * widen, 64 * widen):
        for _ in range((depth - 4) // 6):
            layers += [nn.Conv2d(channels, width, 3, bias=False), nn.Conv2d(width, width, 3, bias=False)]
            if channels != width:
                layers.append(nn.Conv2d(channels, width, 1, bias=False))
            channels = width
    return nn.ModuleList([*layers, nn.Linear(channels, 10, bias=False)])


class Weights:
    """A model's weights with a gradient each, and a copy to restore them from, so that every call starts alike."""

    def __init__(self, model: nn.Module) -> None:
        self.live = list(model.parameters())
        for parameter in self.live:
            parameter.grad = 1e-3 * torch.randn_like(parameter)
        self.saved = [parameter.detach().clone() for parameter in self.live]

    @torch.no_grad()
    def restore(self) -> None:
        torch._foreach_copy_(self.live, self.saved)

    def __str__(self) -> str:
        return f"{sum(p.numel() for p in self.live) / 1e6:.3g} M weights in {len(self.live)} tensors"


def against_adamw(options: argparse.Namespace, model: nn.Module, weights: Weights) -> list[Row]:
    foreach = torch.optim.AdamW(weights.live, lr=1e-3, foreach=True)
    fused = torch.optim.AdamW(weights.live, lr=1e-3, fused=True)
    contestants = {f"{type(penalty).__name__} prox": prox_step(model, penalty) for penalty in PENALTIES}
    contestants |= {"AdamW, foreach": foreach.step, "AdamW, fused": fused.step}
    times = race(contestants, options, weights.restore)
    rows = []
    for peer, goals in (("AdamW, foreach", GOALS), ("AdamW, fused", {})):
        for penalty in PENALTIES:
            ours = f"{type(penalty).__name__} prox"
            rows.append(ratio(ours, peer, times, goals.get(ours)))
    return rows


def prox_step(model: nn.Module, penalty: Penalty) -> Callable[[], None]:
    regularizer = sl.Regularizer(model, penalty, LAM, groups="output")
    return lambda: regularizer.step(LR)


@torch.no_grad()
def loop_step(parameters: list[Tensor], penalty: Penalty) -> None:
    """What one writes without the library's joined path."""
    for parameter in parameters:
        rows = parameter.flatten(1)
        parameter.copy_(penalty.prox(rows, LR * LAM).view(parameter.shape))


def against_loop(options: argparse.Namespace, model: nn.Module, weights: Weights) -> list[Row]:
    rows = []
    for penalty in PENALTIES:
        name = type(penalty).__name__
        ours, peer = f"{name}, Regularizer.step", f"{name}, loop over parameters"
        contestants = {ours: prox_step(model, penalty), peer: lambda penalty=penalty: loop_step(weights.live, penalty)}
        rows.append(ratio(ours, peer, race(contestants, options, weights.restore)))
    return rows


def main() -> None:
    options = arguments(__file__, __doc__)
    where = machine(options.device)
    large = wide_resnet(10, 1) if options.quick else wide_resnet(28, 10)
    small = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(20 if options.quick else 2000)))
    large, small = large.to(options.device), small.to(options.device)
    large_weights, small_weights = Weights(large), Weights(small)
    tables = [
        {
            "what": f"One Regularizer.step by output groups against one AdamW step: {large_weights}, float32.",
            "rows": against_adamw(options, large, large_weights),
        },
        {
            "what": f"Small tensors joined in one prox against a loop of prox and copy_: {small_weights}, float32.",
            "rows": against_loop(options, small, small_weights),
        },
    ]
    write(__file__, "Prox steps on weights", options, where, tables)


if __name__ == "__main__":
    main()
