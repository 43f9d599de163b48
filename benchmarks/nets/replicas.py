"""Many replicas of one network trained in one program: each parameter is a stack (R, ...), and a prox takes it as a batch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from tqdm import tqdm

import sparselayers as sl
from sparselayers.sparsify.metric import Rates, adaptive

from .train import Plan, nothing

Groups = Callable[[str, Tensor], Tensor | None]  # (name, stack) -> its view (R, n_groups, ...); None leaves it out


class Replicas:
    """R networks of one architecture as one callable, (R, batch, ...) -> (R, batch, ...); a replica for each seed.

    `parameters` and `buffers` hold a stack (R, ...) by name. A torch optimizer that works entry by entry takes
    `parameters.values()` and moves each replica as it would alone, if the replicas' losses are summed: no gradient mixes.
    """

    def __init__(self, make: Callable[[], nn.Module], seeds: Sequence[int], device: str = "cpu") -> None:
        models = []
        for seed in seeds:
            torch.manual_seed(seed)
            models.append(make().to(device))
        self.seeds = tuple(seeds)
        self.parameters, self.buffers = stack_module_state(models)
        self._model = models[0]

    def __call__(self, x: Tensor, shared: bool = False) -> Tensor:
        """`shared`: x is (batch, ...), the same for all replicas."""

        def forward(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(self._model, (parameters, buffers), (x,))

        mapped = torch.vmap(forward, in_dims=(0, 0, None if shared else 0), randomness="different")
        return mapped(self.parameters, self.buffers, x)

    def train(self, mode: bool = True) -> None:
        self._model.train(mode)

    def model(self, i: int) -> nn.Module:
        """Replica i as a module of its own."""
        model = copy.deepcopy(self._model)
        model.load_state_dict({name: stack[i].detach() for name, stack in (self.parameters | self.buffers).items()})
        return model

    def freeze(self) -> Callable[[], None]:
        """What holds the entries that are zero now at zero: call it after each step."""
        zeros = {name: stack.detach() == 0 for name, stack in self.parameters.items()}

        @torch.no_grad()
        def hold() -> None:
            for name, stack in self.parameters.items():
                stack.masked_fill_(zeros[name], 0)

        return hold


@torch.no_grad()
def prox_step(
    replicas: Replicas,
    optimizer: Optimizer,
    penalty: sl.Penalty,
    lam: Tensor,
    groups: Groups,
    rates: Callable[[Optimizer], Rates] = adaptive,
) -> None:
    """After an optimizer's step the prox of every replica at its own strength, lam (R,), in the optimizer's metric.

    The prox itself is the one of a single network: groups of all replicas are rows, and t has a value for each.
    """
    each = rates(optimizer)
    for name, stack in replicas.parameters.items():
        view = groups(name, stack)
        if view is None:
            continue
        lr, metric, *_ = each[id(stack)]
        rows = view.clone(memory_format=torch.contiguous_format).flatten(2).flatten(0, 1)
        t = (lr * lam).repeat_interleave(view.shape[1]).unsqueeze(-1)
        if metric is not None:
            second = groups(name, metric.second)
            assert second is not None
            metric = metric.over(second.flatten(2).flatten(0, 1))
        if not penalty._prox_(rows, t, metric):
            rows = penalty.prox(rows, t, None if metric is None else metric.whole())
        view.copy_(rows.view(view.shape))


def outgoing(name: str, stack: Tensor) -> Tensor:
    """The weights that leave each input and each hidden neuron; every bias alone."""
    return stack.unsqueeze(-1) if stack.ndim == 2 else stack.transpose(1, 2)


def fit(
    replicas: Replicas,
    x: Tensor,
    y: Tensor,
    plan: Plan,
    optimizer: Optimizer,
    after_step: Callable[[int], None] = nothing,
    name: str = "",
) -> float:
    """Train all replicas by cross-entropy, each in the order of its own seed; the seconds of CPU time (else wall time)."""
    clock = time.process_time if x.device.type == "cpu" else time.perf_counter
    begun, length, lrs = clock(), math.ceil(len(x) / plan.batch), [group["lr"] for group in optimizer.param_groups]
    bar = tqdm(total=plan.epochs * length, desc=name.ljust(32), mininterval=5.0)
    replicas.train()
    for epoch in range(plan.epochs):
        orders = {seed: _order(len(x), 1_000_003 * seed + epoch) for seed in replicas.seeds}
        order = torch.stack([orders[seed] for seed in replicas.seeds]).to(x.device)
        for i, batch in enumerate(order.split(plan.batch, dim=1)):
            step = epoch * length + i
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * plan.rate(step / (plan.epochs * length))
            inputs = x[batch]
            if plan.augment is not None:
                inputs = plan.augment(inputs.flatten(0, 1)).unflatten(0, batch.shape)
            logits = replicas(inputs)
            loss = cross_entropy(logits.flatten(0, 1), y[batch].flatten(), reduction="sum") / batch.shape[1]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after_step(step)
            bar.update()
    bar.close()
    replicas.train(False)
    return clock() - begun


def _order(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def accuracy(replicas: Replicas, x: Tensor, y: Tensor, batch: int = 1000) -> Tensor:
    """The share of right classes of each replica, (R,), in float64."""
    parts = zip(x.split(batch), y.split(batch), strict=True)
    return sum((replicas(a, shared=True).argmax(-1) == b).double().sum(1) for a, b in parts) / len(y)  # type: ignore[return-value]
