"""An MLP on the digits of scikit-learn, trained with and without a group lasso on its hidden neurons.

One learns: (1) `Regularizer(...).attach(optimizer)` is all that training needs; (2) groups="neuron" takes a row of
the weight with its bias, so that the neuron's output is exactly zero; (3) what `sparsity_report` prints; (4) what
the zeros cost in test accuracy, at a few strengths. The digits come with scikit-learn; nothing is downloaded.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sparselayers as sl

EPOCHS = 20


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels; pixels in [0, 1]."""
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:]
    return x[train], y[train], x[test], y[test]


def train(x: Tensor, y: Tensor, lam: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    # The last layer is left out: its rows are the classes.
    sl.Regularizer(model, sl.GroupL2(), lam, groups="neuron", include=["0.weight", "2.weight"]).attach(optimizer)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model


def main() -> None:
    x, y, x_test, y_test = digits()
    print("lam     zero neurons  zero weights  test accuracy")
    for lam in (0.0, 0.01, 0.02, 0.05):
        model = train(x, y, lam)
        report = sl.sparsity_report(model)
        with torch.no_grad():
            accuracy = (model(x_test).argmax(-1) == y_test).float().mean()
        neurons = f"{report.neurons_zero}/{report.neurons}"
        print(f"{lam:<6}  {neurons:>12}  {report.weights_zero / report.weights:12.1%}  {accuracy:13.1%}")
    print("\nthe last model:")
    print(report)


if __name__ == "__main__":
    main()
