"""The benchmarks run and write what they promise; their page in the docs is the one made from their JSON files."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
BENCHMARKS = HERE / "benchmarks"
PAGE = HERE / "docs" / "benchmarks.md"
RATIO = {"ours", "peer", "ours, min ms", "peer, min ms", "ratio of minima", "ratio of medians", "goal", "met"}


def run(script: str, *options: str) -> None:
    finished = subprocess.run([sys.executable, BENCHMARKS / script, *options], cwd=HERE, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
    ("script", "n_tables"),
    [
        pytest.param("mappings.py", 4, marks=pytest.mark.long),
        pytest.param("attention.py", 2, marks=pytest.mark.long),
        ("prox.py", 3 if importlib.util.find_spec("torchao") else 2),
        ("coding.py", 2),
        ("lasso.py", 1),
        pytest.param("simplex.py", 4, marks=pytest.mark.long),
        pytest.param("lista.py", 1, marks=pytest.mark.long),
    ],
)
def test_quick_run_writes_the_promised_keys(tmp_path: Path, script: str, n_tables: int) -> None:
    out = tmp_path / "out.json"
    run(script, "--quick", "--out", str(out))
    results = json.loads(out.read_text())
    assert set(results) == {"title", "command", "quick", "repeats", "allocator", "machine", "tables"}
    assert results["quick"]
    assert set(results["machine"]) >= {"cpu", "cores", "threads", "torch", "date"}
    assert len(results["tables"]) == n_tables
    for table in results["tables"]:
        assert set(table) == {"what", "rows"}
        assert table["rows"]
        if script == "simplex.py" and table in results["tables"][2:]:
            continue  # memory and accuracy
        if script not in ("lasso.py", "lista.py") and (
            script not in ("mappings.py", "attention.py") or table is not results["tables"][-1]
        ):
            assert all(set(row) >= RATIO for row in table["rows"])


def test_page_is_made_from_the_json_files(tmp_path: Path) -> None:
    fresh = tmp_path / "benchmarks.md"
    run("tables.py", "--out", str(fresh))
    assert PAGE.read_text(encoding="utf-8") == fresh.read_text(encoding="utf-8"), "run `python benchmarks/tables.py`"


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.json")), ids=lambda path: path.name)
def test_stored_results_are_no_quick_run(path: Path) -> None:
    assert not json.loads(path.read_text())["quick"]


def test_the_recipe_has_the_figures_of_the_stored_runs() -> None:
    lenet, mlp, neurons = (
        json.loads((BENCHMARKS / f"networks-{name}.json").read_text())["tables"][0]["rows"]
        for name in ("lenet", "mlp", "neurons")
    )
    none, plain, *moved = (row for row in lenet if row["method"] == "none" or row["method"].startswith("ours"))
    mean = {key: sum(row[key] for row in moved) / 3 for key in ("weights zero %", "neurons zero %", "test error %")}
    dense, sparse = (
        next(row for row in mlp if row["penalty"] == name) for name in ("none, as long", "l1, then frozen")
    )
    wide, small = neurons[0], next(row for row in neurons if row["lam"] == 3e-5)
    page = (HERE / "docs" / "recipe.md").read_text()
    for line in (
        f"| LeNet-5-Caffe, MNIST, no augmentation, one seed | 431,080 parameters | {none['test error %']} | "
        f"{100 - plain['weights zero %']:.2f} % of them, {100 - plain['neurons zero %']:.1f} % of 1,370 neurons | "
        f"{plain['test error %']} |",
        f"{100 - mean['weights zero %']:.2f} %, {100 - mean['neurons zero %']:.1f} % | {mean['test error %']:.2f} |",
        f"| {dense['of']:,} parameters | {100 - 100 * dense['accuracy']:.2f} | {sparse['kept %']:.1f} % of them | "
        f"{100 - 100 * sparse['accuracy']:.2f} |",
        f"| 545,810 parameters | {wide['test error %']} | {100 - small['parameters removed %']:.1f} % of them | "
        f"{small['test error %']} |",
        f"l1 keeps {sparse['kept %']:.1f} % of the weights of 784-32-32-10",
        f"function needs {100 * sparse['compacted'] / sparse['of']:.1f} %.",
    ):
        assert line in page, line
