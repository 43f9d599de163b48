"""The subject `mlp` of `benchmarks/networks.py`: what it trains, how it chooses, and that it runs."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sparselayers as sl

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def mlp() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("nets.mlp")
    finally:
        sys.path.remove(str(BENCHMARKS))


def record(strengths: list[float], held: list[float], kept: list[int]) -> dict:
    """Two seeds a strength, alike."""
    both = lambda values: [value for value in values for _ in range(2)]  # noqa: E731
    grid = [(seed, lam) for lam in strengths for seed in range(2)]
    return {"grid": grid, "held": both(held), "test": both(held), "kept": both(kept)}


@pytest.mark.parametrize(
    ("penalty", "held", "chosen"),
    [
        ("l1", [0.970, 0.966, 0.950], 0.2),  # the strongest within half a point of no penalty
        ("l1", [0.960, 0.950, 0.940], 0.1),  # none is: the best
        ("l2", [0.969, 0.971, 0.950], 0.2),  # no zeros to gain: the best
        ("l1, then frozen", [0.980, 0.971, 0.972], 0.3),  # the best of those that keep few enough
    ],
)
def test_a_strength_is_chosen_on_the_held_out_part(mlp: ModuleType, penalty: str, held: list, chosen: float) -> None:
    assert mlp.choose(record([0.1, 0.2, 0.3], held, [900, 400, 300]), 0.970, penalty, 1000) == chosen


def test_the_rate_falls_to_the_freeze_and_once_more_after_it(mlp: ModuleType) -> None:
    job = mlp.Job("MNIST", "mlp", "l1, then frozen", sl.L1(), (0.1,), 10, freeze=0.4)
    assert [round(mlp.schedule(job).rate(done), 3) for done in (0.0, 0.2, 0.4, 0.7, 1.0)] == [1.0, 0.5, 1.0, 0.5, 0.0]
    assert [round(mlp.schedule(job._replace(freeze=None)).rate(done), 3) for done in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]


def test_the_networks_have_as_many_parameters_as_the_papers(mlp: ModuleType) -> None:
    for n_inputs, n_classes, total in ((784, 10, 26506), (54, 7, 3047), (48, 11, 2987)):
        assert sum(p.numel() for p in mlp.perceptron("mlp", n_inputs, n_classes).parameters()) == total


def test_the_full_run_has_more_seeds_and_epochs(mlp: ModuleType) -> None:
    short, full = mlp.jobs(False, False), mlp.jobs(False, True)
    assert [job.name for job in short] == [job.name for job in full]
    assert all(long.epochs == 4 * job.epochs for job, long in zip(short, full, strict=True) if job.network == "mlp")
    assert len(full[0].grid) == 5
    assert short[1].grid[:4] == [(0, 1e-4), (1, 1e-4), (2, 1e-4), (0, 1e-3)]


def test_what_is_counted(mlp: ModuleType) -> None:
    replicas = mlp.Replicas(lambda: mlp.perceptron("mlp", 6, 3), (0, 1))
    with torch.no_grad():
        replicas.parameters["0.weight"][0, :, :2] = 0  # two inputs that no neuron reads
        replicas.parameters["2.weight"][1, :, 5] = 0  # one neuron that none reads
    split = mlp.Split(*(part for _ in range(3) for part in (torch.randn(10, 6), torch.arange(10) % 3)))
    found, total = mlp.measure(replicas, split), 6 * 32 + 32 + 32 * 32 + 32 + 32 * 3 + 3
    assert (found["inputs"], found["hidden"]) == ([4, 6], [64, 63])
    assert found["kept"] == [total - 64, total - 32]


def test_the_pattern_is_frozen_with_its_zeros(mlp: ModuleType, tmp_path: Path) -> None:
    """Before the step that would move them all: half of the steps come after the penalty's last one."""
    split = mlp.prepare("MNIST", mlp.READERS["MNIST"](None))
    job = mlp.Job("MNIST", "mlp", "l1", sl.L1(), (0.02,), 6, batch=100, freeze=0.5)
    found = mlp.train(job, split, "cpu", tmp_path / "weights.pt")
    assert all(0 < kept < 13000 for kept in found["kept"])


def test_a_quick_run_gives_both_tables(mlp: ModuleType, tmp_path: Path) -> None:
    records = importlib.import_module("nets.record").Records
    options = argparse.Namespace(data=None, device="cpu", quick=True, full=False, pictures=tmp_path)
    trained, gain = mlp.tables(options, records(tmp_path / "work", "mlp"))
    assert [row["penalty"] for row in trained["rows"]] == [*mlp.PENALTIES, *mlp.FROZEN, *mlp.PENALTIES]
    assert all(row["parameters kept"] <= row["of"] for row in trained["rows"])
    assert all(row["ratio of minima"] > 0 for row in gain["rows"])
    assert {path.name for path in tmp_path.glob("*.png")} == {"networks-mlp-accuracy.png", "networks-mlp-pixels.png"}
    again = mlp.tables(options, records(tmp_path / "work", "mlp"))[0]  # every run is there
    assert again == trained


def test_the_page_has_the_table_of_the_stored_run(mlp: ModuleType) -> None:
    trained, gain = json.loads((BENCHMARKS / "networks-mlp.json").read_text())["tables"]
    page = (BENCHMARKS.parent / "docs" / "networks.md").read_text()
    assert mlp.page(trained["rows"]) in page
    assert [row["penalty"] for row in trained["rows"]] == 3 * [*mlp.PENALTIES, *mlp.FROZEN, *mlp.PENALTIES]
    best = next(row for row in trained["rows"] if row["penalty"] == "l1, then frozen")
    assert best["data"] == "MNIST"
    assert best["accuracy"] >= 0.9723  # the dense network of the paper
    assert best["kept %"] <= 40
    assert all(row["ratio of minima"] < 1 for row in gain["rows"])
