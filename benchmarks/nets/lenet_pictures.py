"""The two pictures of LeNet: what zeros cost, and what is left of the network."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from nets.record import Record
from nets.slim import PARAMETERS, grown
from sparselayers import plotting

WORST = 5.0  # % of test error; what is worse is not drawn
Points = list[tuple[float, float]]


def draw(rows: list[Record], ours: list[Record], published: dict[str, tuple], best: nn.Module, folder: Path) -> None:
    """Test error over zeros, a line a method; the whole network's filters, kernels and places with what is zero in white."""
    lines: dict[str, Points] = {}
    for row in (run for run in rows + ours if run["test"] < WORST):
        lines.setdefault(row["method"], []).append((100 - 100 * row["weights"] / PARAMETERS, row["test"]))
    lines |= {f"{name}, published": [(zeros, error)] for name, (zeros, _, error) in published.items() if zeros > 50}
    labels = {"xlabel": "% of 431,080 parameters that are exactly 0", "ylabel": "test error, %"}
    plotting.against(lines, title="LeNet-5-Caffe on MNIST: what zeros cost", **labels).savefig(
        folder / "networks-lenet-error.png", dpi=80
    )
    left = {
        "filters of conv1 by pixel": filters(best),
        "kernels of conv2": kernels(best),
        "maps by place": places(best),
    }
    title = "What is left of 20 filters, 50 x 20 kernels and 50 maps of 16 places"
    plotting.weight_pattern(left, title=title, xlabel="pixel, map, place", ylabel="filter, map").savefig(
        folder / "networks-lenet-left.png", dpi=80
    )


def filters(model: nn.Module) -> Tensor:
    """(20, 25): the first layer's weights."""
    return grown(model).conv1.weight.detach().flatten(1)


def kernels(model: nn.Module) -> Tensor:
    """(50, 20): the norms of the second layer's kernels."""
    return grown(model).conv2.weight.detach().flatten(2).norm(dim=2)


def places(model: nn.Module) -> Tensor:
    """(50, 16): the norms of the weights that leave each place of each map."""
    return grown(model).fc1.weight.detach().norm(dim=0).view(50, 16)
