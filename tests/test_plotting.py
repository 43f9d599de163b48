"""What a figure shows is read back from it: its lines, its labels, its blanks."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgba

from sparselayers import plotting


def test_connections_draw_the_weights_that_are_not_zero(tmp_path) -> None:
    weight = torch.tensor([[1.0, 0.0, -0.5], [0.0, 0.0, 0.0]], requires_grad=True)
    figure = plotting.connections({"a": weight, "none": torch.zeros(2, 3), "one": torch.ones(1, 1)}, title="t")
    axes, none, one = figure.axes
    (lines,), outputs = axes.collections[:1], axes.collections[2]
    ends = [path.vertices.tolist() for path in lines.get_paths()]
    assert ends == [[[0.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]]  # from inputs 0 and 2 to output 0
    assert lines.get_colors()[:, 3].tolist() == pytest.approx([1.0, 0.15 + 0.85 / 2])
    assert outputs.get_facecolors().tolist() == [list(to_rgba("C0")), list(to_rgba("white"))]
    assert axes.collections[1].get_facecolors()[:, :3].tolist() == [[0.0] * 3, [1.0] * 3, [0.0] * 3]
    assert not none.collections[0].get_paths()
    assert len(one.collections[0].get_paths()) == 1
    figure.savefig(tmp_path / "t.png")


def test_a_weight_pattern_says_what_its_axes_are() -> None:
    plain = plotting.weight_pattern({"a": torch.eye(3)}, title="t").axes[0]
    assert (plain.get_xlabel(), plain.get_ylabel()) == ("input", "output (row of the weight matrix)")
    named = plotting.weight_pattern({"a": torch.eye(3)}, title="t", xlabel="pixel", ylabel="class").axes[0]
    assert (named.get_xlabel(), named.get_ylabel()) == ("pixel", "class")
    assert plain.images[0].get_array().mask.tolist() == (torch.eye(3) == 0).tolist()


def test_points_are_drawn_from_left_to_right(tmp_path) -> None:
    figure = plotting.against({"a": [(2.0, 1.0), (1.0, 3.0)]}, xlabel="x", ylabel="y", title="t")
    (line,) = figure.axes[0].lines
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([1.0, 2.0], [3.0, 1.0])
    figure.savefig(tmp_path / "t.png")
