"""The rows of the table for LeNet: how each method enters the training loop, and what makes its zeros exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sparselayers as sl
import sparselayers.functional as F
from nets.slim import SIZES, lenet
from nets.train import Trainer, nothing

LR, MOMENTUM = 0.05, 0.9
EVERY = 10  # steps from one prox step to the next, which is then as much longer
Build = Callable[[nn.Module, float, int], Trainer]  # (model, lam, steps of the whole run)
Cut = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Method:
    """A row: its strengths, how a Trainer is built, what precedes and what follows training.

    `shrinks`: exact zeros appear while it trains, so that dead neurons can be cut out every epoch.
    """

    strengths: tuple[float, ...]
    build: Build
    shrinks: bool = True
    before: Cut = lambda model: model
    after: Cut = lambda model: model


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, nesterov=True)


def regularizers(model: nn.Module, penalty_of: Callable[[str], tuple[sl.Penalty, float]]) -> list[tuple]:
    """(regularizer, factor of lam) a layer: groups are the filters of convolutions, the inputs of the others.

    The sizes of groups are those of the whole network, so that a cut changes nothing.
    """
    found = []
    for name in SIZES:
        penalty, factor = penalty_of(name)
        groups = "output" if name.startswith("conv") else "input"
        found.append((sl.Regularizer(model, penalty, 0.0, groups=groups, include=f"{name}.weight"), factor))
    return found


def group_lasso(name: str) -> tuple[sl.Penalty, float]:
    """sqrt(n) ‖w‖_2."""
    return sl.GroupL2(), SIZES[name] ** 0.5


def sparse_group_lasso(name: str) -> tuple[sl.Penalty, float]:
    """sqrt(n) ‖w‖_2 + ‖w‖_1."""
    total = 1 + SIZES[name] ** 0.5
    return sl.SparseGroup(ratio=1 / total), total


def sparse_group_l0(name: str) -> tuple[sl.Penalty, float]:
    """sqrt(n) ‖w‖_2 + ‖w‖_0."""
    total = 1 + SIZES[name] ** 0.5
    return sl.SparseGroupL0(ratio=1 / total), total


def cges(name: str) -> tuple[sl.Penalty, float]:
    """(1 - mu) ‖w‖_2 + mu 1/2 ‖w‖_1², mu by layer as in the paper."""
    return sl.GroupExclusive(mu=_mu(name)), 1.0


def _mu(name: str) -> float:
    return F.cges_mu(list(SIZES).index(name), len(SIZES))


def by_prox(penalty_of: Callable[[str], tuple[sl.Penalty, float]]) -> Build:
    """SGD, and every tenth step an exact prox step ten times as long."""

    def build(model: nn.Module, lam: float, steps: int) -> Trainer:
        optimizer, ramp = sgd(model), sl.LamSchedule(lam, warmup=steps // 4)
        layers = regularizers(model, penalty_of)

        def after(step: int) -> None:
            if step % EVERY == EVERY - 1:
                for regularizer, factor in layers:
                    regularizer.lam = ramp.at(step) * factor
                    regularizer.step(_lr(optimizer))

        return Trainer(optimizer, after_step=after)

    return build


def _lr(optimizer: torch.optim.Optimizer) -> float:
    """What EVERY steps with momentum move a weight by, for a gradient of 1."""
    return EVERY * optimizer.param_groups[0]["lr"] / (1 - MOMENTUM)


def linearised(model: nn.Module, lam: float, steps: int) -> Trainer:
    """The paper's own step in the place of the prox of CGES."""
    optimizer, ramp = sgd(model), sl.LamSchedule(lam, warmup=steps // 4)

    @torch.no_grad()
    def after(step: int) -> None:
        if step % EVERY == EVERY - 1:
            for name in SIZES:
                weight = getattr(model, name).weight
                rows = weight.flatten(1) if weight.ndim == 4 else weight.mT
                shrunk = F.cges_linearized_step(rows, _lr(optimizer) * ramp.at(step), mu=_mu(name))
                weight.copy_(shrunk.view_as(weight) if weight.ndim == 4 else shrunk.mT)

    return Trainer(optimizer, after_step=after)


def decomposition(model: nn.Module, lam: float, steps: int) -> Trainer:
    """Algorithm 1 of the sparse group l0asso paper; beta from 500 lam to 12,500 lam in eight parts of the run."""
    optimizer = sgd(model)
    layers = [
        sl.PenaltyDecomposition(
            model, lam, 500 * lam, 1.5, "output" if "conv" in name else "input", include=f"{name}.*t"
        )
        for name in SIZES
    ]

    def after(step: int) -> None:
        for layer in layers:
            layer.beta = 500 * lam * 1.5 ** (8 * step // steps)
            layer.step()
            if step == steps - 1:
                layer.apply()

    return Trainer(optimizer, extra=lambda: torch.stack([layer.value() for layer in layers]).sum(), after_step=after)


def without(model: nn.Module, lam: float, steps: int) -> Trainer:
    """The loss alone."""
    return Trainer(sgd(model), after_step=nothing)


def gated(model: nn.Module) -> nn.Module:
    """The same network with a gate at every neuron."""
    layers: list[nn.Module] = []
    for name, layer in model.named_children():
        layers.append(layer)
        if name == "relu1":
            layers.append(sl.HardConcrete(20, dim=1, keep=0.9))
        elif name == "relu2":
            layers.append(sl.HardConcrete(50, dim=1, keep=0.9))
        elif name == "flat":
            layers.append(sl.HardConcrete(800, keep=0.9))
        elif name == "relu3":
            layers.append(sl.HardConcrete(500, keep=0.9))
    return nn.Sequential(*layers)


def with_gates(model: nn.Module, lam: float, steps: int) -> Trainer:
    """lam times the expected number of weights that gates keep; gates have ten times the rate."""
    gates = [layer for layer in model if isinstance(layer, sl.HardConcrete)]
    held = {id(p) for gate in gates for p in gate.parameters()}
    others = [p for p in model.parameters() if id(p) not in held]
    rates = [{"params": others, "lr": LR}, {"params": [gate.log_alpha for gate in gates], "lr": 10 * LR}]
    optimizer, ramp = torch.optim.SGD(rates, lr=LR, momentum=MOMENTUM, nesterov=True), sl.LamSchedule(lam, steps // 4)
    now = [0.0]

    def before(step: int) -> None:
        now[0] = ramp.at(step)

    def extra() -> Tensor:
        return now[0] * sum(n * gate.expected_l0() for n, gate in zip(SIZES.values(), gates, strict=True))

    return Trainer(optimizer, extra=extra, before_step=before)


@torch.no_grad()
def ungated(model: nn.Module) -> nn.Module:
    """Gates z >= 0 folded into the weights: z relu(w x + b) = relu(z w x + z b)."""
    model.eval()
    gates = [layer() for layer in model if isinstance(layer, sl.HardConcrete)]
    layers = [layer for layer in model if isinstance(layer, nn.Conv2d | nn.Linear)]
    plain = lenet()
    for name, layer in zip(SIZES, layers, strict=True):
        getattr(plain, name).load_state_dict(layer.state_dict())
    for conv, gate in zip((plain.conv1, plain.conv2), gates, strict=False):
        conv.weight *= gate[:, None, None, None]
        conv.bias *= gate
    plain.fc1.weight *= gates[2]
    plain.fc2.weight *= gates[3]
    return plain


PENALTIES = {
    "none": None,
    "group lasso": group_lasso,
    "sparse group lasso": sparse_group_lasso,
    "CGES, exact prox": cges,
    "sparse group l0asso, exact prox": sparse_group_l0,
}
METHODS = {
    "none": Method((0.0,), without),
    "group lasso": Method((5e-4, 2e-4), by_prox(group_lasso)),
    "sparse group lasso": Method((4e-4, 2e-4), by_prox(sparse_group_lasso)),
    "CGES, exact prox": Method((2e-3, 5e-4), by_prox(cges)),
    "CGES, the paper's step": Method((2e-3, 5e-4), linearised),
    "l0, gates": Method((3e-5, 3e-4), with_gates, shrinks=False, before=gated, after=ungated),
    "sparse group l0asso, Algorithm 1": Method((3e-4, 1e-4), decomposition, shrinks=False),
    "sparse group l0asso, exact prox": Method((3e-4, 1e-4), by_prox(sparse_group_l0)),
}
