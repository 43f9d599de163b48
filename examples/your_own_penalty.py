"""A penalty of your own, written once and used in the three places where the library runs a prox.

One learns: (1) a penalty is a frozen dataclass with `value`, `_prox` and, for homotopy, `_lam_max`; (2) it then
works in a coding layer, (3) in `proximal_gradient`, the loop under everything, here for attention weights of either
sign, and (4) on the weights of a model. The penalty is an l1 norm that charges negative entries more than positive
ones (the pinball function of Koenker and Bassett 1978, summed): R(v) = sum up max(v, 0) + down max(-v, 0).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sparselayers as sl
from sparselayers.proxgrad import proximal_gradient


@dataclass(frozen=True)
class AsymmetricL1(sl.Penalty):
    up: float = 1.0
    down: float = 1.0
    separable = True
    has_metric = True

    def value(self, v: Tensor) -> Tensor:
        return (self.up * torch.relu(v) + self.down * torch.relu(-v)).sum(-1)

    def _prox(self, v: Tensor, t: float | Tensor, metric: Tensor | None) -> Tensor:
        t = t if metric is None else t / metric
        return torch.relu(v - self.up * t) - torch.relu(-v - self.down * t)

    def _lam_max(self, c: Tensor, step: float | Tensor) -> Tensor:
        return torch.maximum(c.amax(-1) / self.up, -c.amin(-1) / self.down)


def shares(v: Tensor) -> str:
    """The share of negative, zero and positive entries, as three columns."""
    return "  ".join(f"{float(part.float().mean()):8.1%}" for part in (v < 0, v == 0, v > 0))


def codes(penalty: sl.Penalty) -> Tensor:
    torch.manual_seed(0)
    layer = sl.ISTA(32, 64, depth=32, lam=0.2, penalty=penalty)
    return layer(torch.randn(100, 32)).detach()


def attention(penalty: sl.Penalty) -> Tensor:
    """Each query as a signed combination of the keys: 1/2 ‖q - y K‖² + lam R(y), by accelerated proximal gradient."""
    torch.manual_seed(0)
    query, key = torch.randn(50, 16), torch.randn(40, 16)
    step = float(1 / torch.linalg.matrix_norm(key, 2) ** 2)
    return proximal_gradient(
        torch.zeros(50, 40),
        grad=lambda y: (y @ key - query) @ key.mT,
        prox=lambda v, k: penalty.prox(v, step * 0.5),
        step=step,
        depth=100,
        momentum=True,
        restart="sample",
    ).z


def weights(penalty: sl.Penalty) -> Tensor:
    torch.manual_seed(0)
    model, x = nn.Linear(32, 8), torch.randn(200, 32)
    target = x @ torch.randn(32, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    sl.Regularizer(model, penalty, lam=0.1, groups="output").attach(optimizer)
    for _ in range(100):
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()
    return model.weight.detach()


def main() -> None:
    print("use        penalty                          negative      zero  positive")
    for penalty in (sl.L1(), AsymmetricL1(up=1.0, down=3.0)):
        for use in (codes, attention, weights):
            print(f"{use.__name__:9s}  {penalty!r:32s} {shares(use(penalty))}")


if __name__ == "__main__":
    main()
