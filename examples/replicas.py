"""Twenty-four networks in one program: 4 seeds x 6 strengths of a group lasso, on the digits of scikit-learn.

A stack of R networks has parameters (R, ...): vmap runs it, one Adam moves it, and the prox takes it as it is, since leading
axes are batch and t may have a value for each row: (R, 1, 1) is a strength a network.
One learns: (1) the sum of the replicas' losses keeps their gradients apart, so that each trains as it would alone; (2) a
sweep over strengths with a mean and a deviation over seeds costs a fraction of a loop over its runs.
"""

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

import sparselayers as sl
from sparselayers.demo.common import digits, table

SEEDS, STRENGTHS = range(4), (0.0, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
LR, BETA, EPS, EPOCHS, BATCH = 0.01, 0.999, 1e-8, 16, 64
PENALTY = sl.GroupL2()


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 60), nn.ReLU(), nn.Linear(60, 30), nn.ReLU(), nn.Linear(30, 10))


def outgoing(stack: Tensor) -> Tensor:
    """The groups of a stack of weights (R, out, in): what leaves each input or hidden neuron, (R, in, out)."""
    return stack.mT


@torch.no_grad()
def shrink(stacks: dict[str, Tensor], optimizer: torch.optim.Adam, lam: Tensor) -> None:
    """The prox in Adam's metric, as sl.ProxAdamW takes it: D = sqrt(v_hat) + eps."""
    for name, stack in stacks.items():
        if name.endswith("weight"):
            state, lr = optimizer.state[stack], optimizer.param_groups[0]["lr"]
            metric = (state["exp_avg_sq"] / (1 - BETA ** state["step"])).sqrt() + EPS
            groups = outgoing(stack)
            groups.copy_(PENALTY.prox(groups, lr * lam.view(-1, 1, 1), outgoing(metric)))


def train(seeds: list[int], lam: Tensor, x: Tensor, y: Tensor, epochs: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network for each seed with the strength at its place; all see the same batches."""
    networks = [network(seed) for seed in seeds]
    stacks, _ = stack_module_state(networks)
    optimizer = torch.optim.Adam(stacks.values(), LR, (0.9, BETA), EPS)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(x) // BATCH))
    torch.manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(BATCH):
            logits = run(networks[0], stacks, x[batch])
            classes = y[batch].expand(len(seeds), -1)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="sum") / len(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shrink(stacks, optimizer, lam)
            rate.step()
    return copy.deepcopy(networks[0]), stacks


def run(network: nn.Module, stacks: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.vmap(lambda parameters: functional_call(network, parameters, (x,)))(stacks)


def main() -> None:
    data = digits()
    x, x_test = data.train_images.flatten(1), data.test_images.flatten(1)
    grid = [(seed, lam) for lam in STRENGTHS for seed in SEEDS]
    seeds, lam = [seed for seed, _ in grid], torch.tensor([lam for _, lam in grid])
    network, stacks = train(seeds, lam, x, data.train_classes, EPOCHS)
    with torch.no_grad():
        right = (run(network, stacks, x_test).argmax(-1) == data.test_classes).float().mean(1)
    alive = {i: outgoing(stacks[f"{i}.weight"]).any(-1).sum(1).float() for i in (0, 2, 4)}
    rows = []
    for strength in STRENGTHS:
        same = lam == strength
        counts = [f"{a[same].mean():.1f} ± {a[same].std():.1f}" for a in alive.values()]
        rows.append([f"{strength:g}", f"{right[same].mean():.1%} ± {right[same].std():.1%}", *counts])
    head = ["lam", "test accuracy", "pixels of 64", "neurons of 60", "neurons of 30"]
    print(
        table(f"Digits, {len(grid)} networks in one program, {EPOCHS} epochs; mean ± deviation of 4 seeds", head, rows)
    )


if __name__ == "__main__":
    main()
