"""One prox step on the weights of a WRN-28-10 against one AdamW step, in its metric too, against a loop, and torchao's PAT."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from common import Row, arguments, machine, race, ratio, write
from torch import Tensor, nn

import sparselayers as sl
from sparselayers.ops.diagonal import Diagonal
from sparselayers.prox import Penalty
from sparselayers.sparsify.groups import cut_model
from sparselayers.sparsify.metric import Rate
from sparselayers.sparsify.multitensor import prox_

LR, LAM = 0.1, 5e-4
OF_FOREACH = {"Exclusive prox": 0.5, "L1 prox in Adam's metric": 0.5, "GroupL2 prox in Adam's metric": 0.5}
OF_FUSED = {"L1 prox": 1.0, "GroupL2 prox": 1.0, "SparseGroup prox": 1.0}
OF_PAT, OF_LOOP = 1 / 3, 1 / 5
IN_METRIC = (sl.L1(), sl.GroupL2())
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
    contestants |= {
        f"{type(penalty).__name__} prox in Adam's metric": step_in_metric(model, penalty) for penalty in IN_METRIC
    }
    ours = list(contestants)
    times = race(contestants | {"AdamW, foreach": foreach.step, "AdamW, fused": fused.step}, options, weights.restore)
    peers = (("AdamW, fused", OF_FUSED), ("AdamW, foreach", OF_FOREACH))
    return [ratio(name, peer, times, goals.get(name)) for peer, goals in peers for name in ours]


def step_in_metric(model: nn.Module, penalty: Penalty) -> Callable[[], None]:
    """The prox in the metric (sqrt(v) + eps) / lr of an Adam whose second moments v spread over four decades."""
    parameters, blocks = dict(model.named_parameters()), cut_model(model, "output", None)
    seconds = {name: 10 ** (4 * torch.rand_like(parameter) - 8) for name, parameter in parameters.items()}
    rates = {name: Rate(1.0, Diagonal(second, 1 / LR, 1e-8 / LR, 0.0)) for name, second in seconds.items()}
    return lambda: prox_(penalty, blocks, parameters, rates, LAM)


class Idle(torch.optim.Optimizer):
    """Leaves the weights as they are: what remains of a step is the prox, and whatever its driver does around it."""

    def __init__(self, params: list, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Callable | None = None) -> None:
        pass


def against_pat(options: argparse.Namespace, model: nn.Module, weights: Weights) -> list[Row]:
    """The prox alone, and with a step of fused SGD: ours by attach, torchao's by its wrapper, on the same groups."""
    try:
        from torchao.prototype.pat.optim import PruneOptimizer
    except ImportError:
        print("torchao is not installed: its rows are left out")
        return []
    rows = []
    for penalty, groups, prox, grouper in (
        (sl.L1(), "element", "ProxLasso", "ElemGrouper"),
        (sl.GroupL2(sqrt_size=True), "output", "ProxGroupLasso", "Dim0Grouper"),
    ):
        for before, make in (("", Idle), ("SGD + ", partial(torch.optim.SGD, fused=True))):
            ours, peer = f"{before}{type(penalty).__name__}", f"torchao PAT, {before}{prox}"
            attached = make(weights.live, lr=LR)
            sl.Regularizer(model, penalty, LAM, groups=groups).attach(attached)
            base = make([{"params": weights.live, "prox_type": prox, "group_type": grouper}], lr=LR)
            wrapped = PruneOptimizer(base, reg_lambda=LAM)
            times = race({ours: attached.step, peer: wrapped.step}, options, weights.restore)
            rows.append(ratio(ours, peer, times, OF_PAT))
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
        rows.append(ratio(ours, peer, race(contestants, options, weights.restore), OF_LOOP))
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
    pat = against_pat(options, large, large_weights)
    if pat:
        what = f"A prox step, alone and after one of SGD, against torchao's PAT: {large_weights}, float32."
        tables.append({"what": what, "rows": pat})
    write(__file__, "Prox steps on weights", options, where, tables)


if __name__ == "__main__":
    main()
