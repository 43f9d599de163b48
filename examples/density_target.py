"""A share of nonzero groups in the place of a strength: a network on the digits of scikit-learn at three densities.

One learns: (1) `sl.DensityTarget(0.2)` stands where a strength stood, and nothing is tuned; (2) the share is reached at the
end of the warm-up and kept after every later step; (3) what it costs in test accuracy, for entries (L1), for neurons that
also shrink (GroupL2) and for neurons that do not (GroupL0); (4) what `freeze()` and lam = 0 bring back. No downloads.

With `--out FILE` the densities over training are drawn (needs matplotlib).
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sparselayers as sl

DENSE, WARMUP, HELD, TUNED = 100, 250, 100, 150  # steps: dense, to the target, at it, and fine-tuned on the pattern


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels; pixels in [0, 1]."""
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:]
    return x[train], y[train], x[test], y[test]


def density(regularizer: sl.Regularizer) -> float:
    parameters = dict(regularizer.model.named_parameters())
    weights = [parameters[name].detach() != 0 for name in regularizer.names]
    alive = [w.flatten() if regularizer.penalty.separable else w.any(1) for w in weights]
    return float(torch.cat(alive).float().mean())


def run(penalty: sl.Penalty, target: float, data: tuple[Tensor, ...]) -> tuple[list[float], float, float]:
    """The density after every step, and the accuracy at the target and after fine-tuning."""
    x, y, x_test, y_test = data
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
    rule = sl.DensityTarget(target, warmup=WARMUP, delay=DENSE)
    regularizer = sl.Regularizer(model, penalty, rule, exclude="4.*")  # its rows are the classes
    optimizer = sl.ProxSGD(model.parameters(), lr=0.05, momentum=0.9, regularizer=regularizer)

    def steps(n: int) -> list[float]:
        seen = []
        for _ in range(n):
            batch = torch.randint(len(x), (64,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            seen.append(density(regularizer))
        return seen

    def accuracy() -> float:
        with torch.no_grad():
            return float((model(x_test).argmax(-1) == y_test).float().mean())

    seen = steps(DENSE + WARMUP + HELD)
    sparse = accuracy()
    held = regularizer.freeze()
    regularizer.lam = 0.0
    steps(TUNED)
    held.remove()
    return seen, sparse, accuracy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="an image file for the densities over training")
    out = parser.parse_args().out
    data, curves = digits(), []
    print("penalty    target  density held     accuracy  fine-tuned")
    for penalty in (sl.L1(), sl.GroupL2(), sl.GroupL0()):
        for target in (0.5, 0.2, 0.1):
            seen, sparse, tuned = run(penalty, target, data)
            kept = seen[-HELD:]
            name = type(penalty).__name__
            print(f"{name:<9}  {target:>6}  {min(kept):.3f} to {max(kept):.3f}  {sparse:8.1%}  {tuned:10.1%}")
            curves.append((f"{name} {target}", seen))
    if out:
        from matplotlib.figure import Figure

        axes = Figure().subplots()
        for name, seen in curves:
            axes.plot(seen, label=name)
        axes.set(xlabel="step", ylabel="density")
        axes.legend()
        axes.figure.savefig(out)


if __name__ == "__main__":
    main()
