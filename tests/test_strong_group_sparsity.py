"""The example's estimators are the optima that cvxpy and scikit-learn find, and its table is the one on the page."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import sparselayers as sl

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "strong_group_sparsity.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sample(example) -> tuple[torch.Tensor, torch.Tensor]:
    X, y, _ = example.planted(4, torch.Generator().manual_seed(0))
    return X[:60, :40], y[:60]


@pytest.mark.parametrize("name", ["lasso", "group lasso", "sparse group lasso"])
def test_a_path_holds_the_optima_of_cvxpy(example, name: str) -> None:
    cp = pytest.importorskip("cvxpy")
    X, y = sample(example)
    found = example.path(X, y, example.PENALTIES[name], tol=1e-10)
    assert (found.gap <= 1e-10).all()
    strengths = sl.lam_path(example.PENALTIES[name].lam_max(y @ X), n=16)
    w, lam, size = cp.Variable(40), cp.Parameter(nonneg=True), example.SIZE
    groups = cp.sum(cp.norm2(cp.reshape(w, (40 // size, size), order="C"), axis=1)) * size**0.5
    penalty = {"lasso": cp.norm1(w), "group lasso": groups, "sparse group lasso": (cp.norm1(w) + groups) / 2}[name]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y.numpy() - X.numpy() @ w) / 2 + lam * penalty))
    for i in (3, 9):
        lam.value = float(strengths[i])
        problem.solve(solver="CLARABEL")
        theirs, w_theirs = problem.value, w.value
        w.value = found.code[i].numpy()
        assert problem.objective.value <= theirs * (1 + 1e-9)
        np.testing.assert_allclose(found.code[i].numpy(), w_theirs, atol=1e-4)
    assert not found.code[0].any()


def test_the_lasso_is_that_of_scikit_learn(example) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    X, y = sample(example)
    found = example.path(X, y, example.PENALTIES["lasso"], tol=1e-12)
    lam = float(sl.lam_path(sl.L1().lam_max(y @ X), n=16)[7])
    fit = linear_model.Lasso(alpha=lam / len(y), fit_intercept=False, tol=1e-10, max_iter=100_000).fit(X, y)
    np.testing.assert_allclose(found.code[7].numpy(), fit.coef_, atol=1e-6)


@pytest.mark.parametrize("fill", [8, 3, 1])
def test_what_is_planted(example, fill: int) -> None:
    X, y, w = example.planted(fill, torch.Generator().manual_seed(1))
    groups = (w.view(-1, example.SIZE) != 0).sum(1)
    assert groups[groups > 0].unique().tolist() == [fill]
    assert int(groups.sum()) == example.NONZEROS
    assert w[w != 0].abs().unique().tolist() == [1.0]
    residual = y - X @ w
    assert float(residual.std()) == pytest.approx(example.NOISE, rel=0.2)


def test_the_page_has_the_table_of_the_full_run(example) -> None:
    results = json.loads(SCRIPT.with_suffix(".json").read_text())
    page = (ROOT / "docs" / "networks.md").read_text()
    assert example.shown(results["runs"], results["draws"]) in page
    assert f"--draws {results['draws']} --out FOLDER" in page
    assert f"torch {results['torch']}" in page
