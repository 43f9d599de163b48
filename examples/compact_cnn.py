"""A convolutional network on the digits of scikit-learn, made sparse by a group lasso, then made smaller.

One learns: (1) groups="neuron" takes a filter with its bias and its normalisation, so that what dies is 0 behind the ReLU and
can go though the next convolution pads; (2) `sl.compact` cuts what is dead, in one line, with the same outputs; (3) the smaller
model trains on, with a new optimizer; (4) `sl.compare` says what it saves. The digits come with scikit-learn.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sparselayers as sl

WIDTH, EPOCHS, LAM = 24, 8, 0.4


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels; pixels in [0, 1]."""
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:]
    return x[train], y[train], x[test], y[test]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, WIDTH, 3, padding=1),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * WIDTH, 50),
        nn.ReLU(),
        nn.Linear(50, 10),
    )


def train(model: nn.Module, x: Tensor, y: Tensor, lam: float, epochs: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    if lam:
        hidden = ["0.weight", "3.weight", "8.weight"]
        sl.Regularizer(model, sl.GroupL2(), lam, groups="neuron", include=hidden).attach(optimizer)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return (model(x).argmax(-1) == y).float().mean().item()


def main() -> None:
    torch.manual_seed(0)
    x, y, x_test, y_test = digits()
    model = network()
    train(model, x, y, LAM, EPOCHS)
    small = sl.compact(model, x_test[:2])
    print("layer        before            after")
    for name, before in model.named_parameters():
        if before.ndim > 1:
            after = small.get_parameter(name)
            print(f"{name:<12} {'x'.join(map(str, before.shape)):<17} {'x'.join(map(str, after.shape))}")
    print(f"\ntest accuracy: {accuracy(model, x_test, y_test):.1%} before, {accuracy(small, x_test, y_test):.1%} after")
    with torch.no_grad():
        assert torch.allclose(small(x_test), model(x_test), atol=1e-4)
    print(sl.compare(model, small, x_test[:1], batch_sizes=(1, 256)))
    train(small, x, y, 0.0, 2)
    print(f"\ntest accuracy after two more epochs of the smaller model: {accuracy(small, x_test, y_test):.1%}")


if __name__ == "__main__":
    main()
