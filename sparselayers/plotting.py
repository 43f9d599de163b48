"""Figures of codes, dictionaries, attention and weights. Each function takes data and returns a matplotlib Figure.

No backend and no global state are involved: save a figure by `figure.savefig(path)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def curves(
    x: Sequence[float],
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    xlabel: str,
    title: str,
    styles: Mapping[str, str] | None = None,
) -> Figure:
    """One panel a quantity, side by side, with one curve a name over x; x is drawn in powers of two.

    Args:
        x: positive places, shared by all curves.
        panels: y label -> (curve name -> values at x).
        xlabel: label of x.
        title: one sentence above all panels.
        styles: curve name -> a matplotlib format such as "C0--s"; its own colour each by default.
    """
    figure = _figure(4.6 * len(panels), 4.4, title)
    for axes, (ylabel, lines) in zip(_row(figure, len(panels)), panels.items(), strict=True):
        for i, (name, y) in enumerate(lines.items()):
            axes.plot(x, y, (styles or {}).get(name, f"C{i}-o"), label=name, markersize=4)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(x), [f"{place:g}" for place in x])
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def against(lines: Mapping[str, Sequence[tuple[float, float]]], *, xlabel: str, ylabel: str, title: str) -> Figure:
    """One quantity against another: a line a name through its points (x, y), drawn from left to right."""
    figure = _figure(8.0, 5.0, title)
    (axes,) = _row(figure, 1)
    for i, (name, points) in enumerate(lines.items()):
        axes.plot(*zip(*sorted(points), strict=True), f"C{i % 10}{'-' if i < 10 else '--'}{'os^v'[i % 4]}", label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def images(pictures: Mapping[str, Tensor], *, title: str, low: float = 0.0, high: float = 1.0) -> Figure:
    """Grey pictures (height, width) side by side on one scale from `low` (black) to `high` (white), by their titles."""
    figure = _figure(3.6 * len(pictures), 4.3, title)
    for axes, (name, picture) in zip(_row(figure, len(pictures)), pictures.items(), strict=True):
        axes.imshow(_array(picture), cmap="gray", vmin=low, vmax=high)
        axes.set_title(name, fontsize=11)
        axes.set_axis_off()
    return figure


def atoms(D: Tensor, *, title: str, columns: int = 32) -> Figure:
    """The atoms of a dictionary D (n_features, n_atoms) as square tiles in a mosaic, each on its own grey scale.

    Grey is 0 in every tile; n_features must be a square number.
    """
    n_features, n_atoms = D.shape
    side = math.isqrt(n_features)
    if side * side != n_features:
        raise ValueError(f"atoms are drawn as squares and n_features must be a square number, got {n_features}")
    rows = -(-n_atoms // columns)
    tiles = _array(D / D.abs().amax(0).clamp_min(torch.finfo(D.dtype).tiny)).T.reshape(n_atoms, side, side)
    mosaic = torch.ones(rows * (side + 1) + 1, columns * (side + 1) + 1).numpy()
    for i, tile in enumerate(tiles):
        top, left = (side + 1) * (i // columns) + 1, (side + 1) * (i % columns) + 1
        mosaic[top : top + side, left : left + side] = tile
    figure = _figure(0.32 * columns, 0.32 * rows + 0.5, title)
    (axes,) = _row(figure, 1)
    axes.imshow(mosaic, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    return figure


def weight_pattern(
    weights: Mapping[str, Tensor],
    *,
    title: str,
    xlabel: str = "input",
    ylabel: str = "output (row of the weight matrix)",
) -> Figure:
    """Weight matrices (outputs, inputs) side by side by the size of their entries; exact zeros are white."""
    import matplotlib
    import numpy as np

    colours = matplotlib.colormaps["viridis"].with_extremes(bad="white")
    top = max(float(w.detach().abs().flatten().quantile(0.99)) for w in weights.values())
    figure = _figure(3.1 * len(weights) + 0.8, 4.6, title)
    panels = _row(figure, len(weights))
    for axes, (name, weight) in zip(panels, weights.items(), strict=True):
        size = _array(weight.abs())
        drawn = axes.imshow(
            np.ma.masked_equal(size, 0), cmap=colours, vmin=0, vmax=top, aspect="auto", interpolation="nearest"
        )
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(xlabel)
    panels[0].set_ylabel(ylabel)
    figure.colorbar(drawn, ax=list(panels), label="size of a weight; white: exactly 0", extend="max")
    return figure


def connections(weights: Mapping[str, Tensor], *, title: str) -> Figure:
    """Which input feeds which output: a panel for each weight matrix (outputs, inputs), inputs left, outputs right.

    A line for every weight that is not exactly 0, the stronger the larger it is, in the colour of its output; what no line
    reaches is drawn hollow. For layers of some dozen neurons.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb

    figure = _figure(3.4 * len(weights), 5.0, title)
    for axes, (name, weight) in zip(_row(figure, len(weights)), weights.items(), strict=True):
        size = weight.detach().abs() / weight.detach().abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
        places = [torch.linspace(1, 0, n) if n > 1 else torch.full((1,), 0.5) for n in reversed(size.shape)]
        lines = [(i, j, size[j, i].item()) for j, i in size.nonzero().tolist()]
        ends = [((0.0, places[0][i].item()), (1.0, places[1][j].item())) for i, j, _ in lines]
        colours = [(*to_rgb(f"C{j % 10}"), 0.15 + 0.85 * strength) for _, j, strength in lines]
        axes.add_collection(LineCollection(ends, colors=colours, linewidths=[0.4 + 1.6 * s for *_, s in lines]))
        for x, (y, fed) in enumerate(zip(places, (size.any(0), size.any(1)), strict=True)):
            outline = [f"C{j % 10}" if x else "black" for j in range(len(y))]
            fill = [c if alive else "white" for c, alive in zip(outline, fed.tolist(), strict=True)]
            axes.scatter([x] * len(y), y.tolist(), s=22, c=fill, edgecolors=outline, zorder=2)
        axes.set_title(name, fontsize=10)
        axes.set(xlim=(-0.08, 1.08), ylim=(-0.04, 1.04), xticks=(0, 1), xticklabels=("inputs", "outputs"), yticks=[])
        axes.spines[:].set_visible(False)
    return figure


def attention_maps(pictures: Tensor, weights: Mapping[str, Tensor], *, title: str) -> Figure:
    """Attention weights over pictures: one row a name, one column a picture; a weight of exactly 0 is left blank.

    Args:
        pictures: (n, height, width), drawn in grey in the first row.
        weights: name -> (n, rows, columns), weights of a grid of places centred on the picture.
        title: one sentence above the figure.
    """
    import matplotlib
    import numpy as np

    n, height, width = pictures.shape
    colours = matplotlib.colormaps["Reds"].with_extremes(bad=(0, 0, 0, 0))
    figure = _figure(1.35 * n + 1.2, 1.45 * (len(weights) + 1) + 0.6, title)
    grid = figure.subplots(len(weights) + 1, n, squeeze=False)
    for i, axes in enumerate(grid[0]):
        axes.imshow(_array(pictures[i]), cmap="gray_r", vmin=0, vmax=float(pictures.max()))
    grid[0, 0].set_ylabel("input")
    for line, (name, maps) in zip(grid[1:], weights.items(), strict=True):
        down, across = (height - maps.shape[1]) / 2 - 0.5, (width - maps.shape[2]) / 2 - 0.5
        extent = (across, across + maps.shape[2], down + maps.shape[1], down)
        for i, axes in enumerate(line):
            axes.imshow(_array(pictures[i]), cmap="gray_r", vmin=0, vmax=3 * float(pictures.max()))
            heat = np.ma.masked_equal(_array(maps[i]), 0)
            # The root lets small weights be seen beside large ones.
            axes.imshow(heat**0.5, cmap=colours, vmin=0, vmax=1, extent=extent, alpha=0.75, interpolation="nearest")
        line[0].set_ylabel(name)
    for axes in grid.flat:
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    return figure


def _figure(width: float, height: float, title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=12)
    return figure


def _row(figure: Figure, n: int) -> Sequence[Axes]:
    return figure.subplots(1, n, squeeze=False)[0]


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()
