"""Every example runs as it is, in a fresh process, with warnings as errors, and prints a table."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparselayers.demo.common import report

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# One idea fits in a hundred lines. Not so two tasks, a model from its parts and the pictures of a page of docs/.
LINES = {"attention_swap": 300, "sparsify_mlp": 112, "scale_free_attention": 160}


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.stem for example in EXAMPLES])
def test_example_runs(example: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(example)]
    # One thread each: several test workers with two threads on two cores wait for each other most of the time.
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) >= 4
    assert list(tmp_path.iterdir()) == []  # an example leaves no files behind


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.stem for example in EXAMPLES])
def test_example_is_short_and_says_what_one_learns(example: Path) -> None:
    source = example.read_text()
    assert source.startswith('"""')
    assert len(source.splitlines()) <= LINES.get(example.stem, 100)


def test_the_page_of_attention_swap_has_the_tables_of_its_full_run() -> None:
    script = ROOT / "examples" / "attention_swap.py"
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    results = json.loads(script.with_suffix(".json").read_text())
    page = (ROOT / "docs" / "attention-swap.md").read_text()
    assert results["command"] == "python examples/attention_swap.py --full --out FOLDER"
    assert [row["model"] for table in results["tables"] for row in table["rows"]] == 2 * list(module.MODELS)
    for table in results["tables"]:
        assert f"{table['what']}.\n\n{module.markdown(table['rows'])}\n" in page
    assert all(str(results["machine"][key]) in page for key in ("cpu", "cores", "threads", "torch"))


def test_the_page_of_scale_free_attention_has_the_tables_of_its_run() -> None:
    script = ROOT / "examples" / "scale_free_attention.py"
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    results = json.loads(script.with_suffix(".json").read_text())
    page = (ROOT / "docs" / "scale-free-experiment.md").read_text()
    for task in ("digits", "mnist"):
        assert f"{results[task]['schedule']}.\n\n{module.markdown(results[task]['runs'])}\n" in page
    assert f"torch {results['machine']['torch']}" in page


@pytest.mark.parametrize("name", ["crate_block", "sae_encoder", "scattering_classifier"])
def test_the_page_of_blocks_has_the_tables_of_the_runs(name: str) -> None:
    results = json.loads((ROOT / "examples" / f"{name}.json").read_text())
    assert report(results["title"], results["runs"]) in (ROOT / "docs" / "blocks.md").read_text()


def test_the_page_of_sparsify_has_the_table_of_its_run() -> None:
    script = ROOT / "examples" / "sparsify_mlp.py"
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    results = json.loads(script.with_suffix(".json").read_text())
    page = (ROOT / "docs" / "sparsify.md").read_text()
    assert module.shown(results["runs"], results["epochs"]) in page
    assert f"--epochs {results['epochs']} --out FOLDER" in page
    assert f"torch {results['torch']}" in page
    assert {run[0] for run in results["runs"]} == set(module.METHODS)


def test_a_report_has_means_over_the_seeds_and_keeps_the_runs(tmp_path: Path) -> None:
    runs = [
        {"name": name, "seed": seed, "share": share, "size": 1000}
        for name, seed, share in (("a", 0, 0.1), ("a", 1, 0.3))
    ]
    text = report("Two runs", runs, tmp_path / "runs.json")
    assert text.splitlines()[0] == "Two runs"
    assert text.splitlines()[-2].split() == ["a", "0.200", "1000"]
    assert json.loads((tmp_path / "runs.json").read_text())["runs"] == runs


def test_the_page_of_dictionary_learning_has_the_figures_of_its_run() -> None:
    results = json.loads((ROOT / "examples" / "dictionary_learning.json").read_text())
    page = (ROOT / "docs" / "dictionaries.md").read_text()
    assert f"| learned for {results['seconds']:g} s on one thread by |" in page
    assert results["threads"] == 1
    for name, row in (("averages", "averaged"), ("Adam", "adam"), ("scikit-learn, coordinate descent", "scikit_learn")):
        assert f"| {name} | {results[row]['objective']:.3f} | {results[row]['active']:.2f} |" in page
