"""A network that is too wide learns how many neurons it needs, and is then cut down to them.

One learns: (1) a group lasso on whole neurons removes them while the network trains; (2) `sl.compact` makes the smaller
network, which gives the same outputs; (3) that network trains on by itself, without a penalty; (4) `sl.compare` says what
was gained. The plain network has the same epochs and rates. The digits come with scikit-learn; nothing is downloaded.
"""

import torch
from torch import nn

import sparselayers as sl
from sparselayers.demo.common import Digits, digits, table

WIDTHS = (64, 300, 200, 10)
HIDDEN = ["0.weight", "2.weight"]  # the last layer has a neuron a class and keeps them all
EPOCHS, SPARSE = 45, 30  # in all, and with the penalty
LAM = 3e-4


def network() -> nn.Sequential:
    torch.manual_seed(0)
    a, b, c, d = WIDTHS
    return nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.ReLU(), nn.Linear(c, d))


def train(model: nn.Sequential, data: Digits, epochs: int, lr: float, lam: float = 0.0) -> None:
    """Adam, and with lam > 0 the exact prox of the group lasso in Adam's metric."""
    lasso = sl.Regularizer(model, sl.GroupL2(sqrt_size=True), lam, groups="neuron", include=HIDDEN)
    optimizer = sl.ProxAdamW(model.parameters(), lr, regularizer=lasso if lam else None)
    for epoch in range(epochs):
        torch.manual_seed(epoch)
        for batch in torch.randperm(len(data.train_images)).split(64):
            optimizer.zero_grad()
            logits = model(data.train_images[batch].flatten(1))
            nn.functional.cross_entropy(logits, data.train_classes[batch]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    return (model(data.test_images.flatten(1)).argmax(1) == data.test_classes).float().mean().item()


def row(name: str, model: nn.Sequential, data: Digits) -> list[str]:
    kept = [sum(bool(neuron.any()) for neuron in model[i].weight) for i in (0, 2)]
    size = sum(p.numel() for p in model.parameters())
    return [name, f"{kept[0]} + {kept[1]}", f"{size:,}", f"{accuracy(model, data):.1%}"]


def main() -> None:
    data = digits()
    plain = network()
    train(plain, data, SPARSE, lr=4e-3)
    train(plain, data, EPOCHS - SPARSE, lr=1e-3)
    wide = network()
    train(wide, data, SPARSE, lr=4e-3, lam=LAM)
    rows = [row("plain", plain, data), row("with the group lasso", wide, data)]
    small = sl.compact(wide, data.test_images.flatten(1))
    rows.append(row("compacted", small, data))
    compared = sl.compare(wide, small, data.test_images.flatten(1)[:1], batch_sizes=(1, 256), repeats=20)
    train(small, data, EPOCHS - SPARSE, lr=1e-3)
    rows.append(row("compacted, trained on", small, data))
    print(table("Digits: the number of neurons learned", ["network", "neurons", "parameters", "test accuracy"], rows))
    print(f"\nBefore and after sl.compact:\n{compared}")


if __name__ == "__main__":
    main()
