"""Run entmax's own test files, which ship inside its wheel, against this library: python -m tests.entmax_suite

Nothing installed is edited: in a process of its own the names of entmax's modules are bound to adapters with entmax's
signatures before its test files are imported. What this library does not have (normmax, alpha below 1) raises `NotOurs`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections import Counter
from pathlib import Path

import entmax
import pytest
import torch
from torch import Tensor, nn

import sparselayers as sl
import sparselayers.functional as F


class NotOurs(Exception):
    """Raised where a test asks for what this library does not have."""


def sparsemax(X: Tensor, dim: int = -1, k: int | None = None) -> Tensor:
    return F.sparsemax(X, dim)  # k is entmax's guess of the support size, for speed


def entmax15(X: Tensor, dim: int = -1, k: int | None = None) -> Tensor:
    return F.entmax15(X, dim)


def sparsemax_bisect(X: Tensor, dim: int = -1, n_iter: int = 50, ensure_sum_one: bool = True) -> Tensor:
    return F.sparsemax(X, dim)


def entmax_bisect(
    X: Tensor, alpha: float | Tensor = 1.5, dim: int = -1, n_iter: int = 50, ensure_sum_one: bool = True
) -> Tensor:
    if bool((torch.as_tensor(alpha) < 1).any()):
        raise NotOurs("alpha below 1")
    return F.entmax(X, alpha, dim)


def budget_bisect(X: Tensor, budget: float | Tensor = 2, dim: int = -1, n_iter: int = 50) -> Tensor:
    return F.project_budget(X, budget, dim)


def normmax_bisect(*_: object, **__: object) -> Tensor:
    raise NotOurs("normmax")


def sparsemax_threshold_and_support(X: Tensor, dim: int = -1, k: int | None = None) -> tuple[Tensor, Tensor]:
    return F.sparsemax(X, dim, return_threshold=True)[1:]


def entmax_threshold_and_support(X: Tensor, dim: int = -1, k: int | None = None) -> tuple[Tensor, Tensor]:
    return F.entmax15(2 * X, dim, return_threshold=True)[1:]  # entmax halves the scores before the call


def Sparsemax(dim: int = -1, k: int | None = None) -> nn.Module:
    return sl.Sparsemax(dim)


def Entmax15(dim: int = -1, k: int | None = None) -> nn.Module:
    return sl.Entmax15(dim)


def _loss(name: str):
    """A maker of losses with entmax's options, by the function of that name here."""

    def make(k: int | None = None, ignore_index: int | Tensor = -100, reduction: str = "elementwise_mean"):
        reduction = {"elementwise_mean": "mean"}.get(reduction, reduction)
        ours = getattr(F, name, None)
        if ours is None:
            raise NotOurs(name)
        return lambda X, y: ours(X, y, ignore_index=int(ignore_index), reduction=reduction)

    return make


ADAPTERS = {
    entmax.activations: {
        "sparsemax": sparsemax,
        "entmax15": entmax15,
        "Sparsemax": Sparsemax,
        "Entmax15": Entmax15,
        "_sparsemax_threshold_and_support": sparsemax_threshold_and_support,
        "_entmax_threshold_and_support": entmax_threshold_and_support,
    },
    entmax.root_finding: {
        "sparsemax_bisect": sparsemax_bisect,
        "entmax_bisect": entmax_bisect,
        "budget_bisect": budget_bisect,
        "normmax_bisect": normmax_bisect,
    },
    entmax.losses: {
        "SparsemaxLoss": _loss("sparsemax_loss"),
        "SparsemaxBisectLoss": _loss("sparsemax_loss"),
        "Entmax15Loss": _loss("entmax15_loss"),
        "EntmaxBisectLoss": _loss("entmax15_loss"),  # its alpha is 1.5 by default, and no test gives another
        "NormmaxBisectLoss": _loss("normmax"),
    },
}


class Tally:
    """A pytest plugin that seeds every test and keeps its outcome: "passed", "not ours: ..." or "failed: ..."."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_setup(self) -> None:
        torch.manual_seed(0)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo):
        report = yield
        if call.when == "call" or call.excinfo:
            error = call.excinfo and call.excinfo.value
            told = (
                f"not ours: {error}"
                if isinstance(error, NotOurs)
                else f"failed: {type(error).__name__}: {str(error)[:200]}"
            )
            self.outcomes[item.nodeid.rpartition("/")[2]] = told if error else "passed"
        return report


def run() -> dict[str, str]:
    """{test: outcome} of entmax's own tests with this library in the place of entmax."""
    for module, names in ADAPTERS.items():
        for name, adapter in names.items():
            assert hasattr(module, name), f"{module.__name__} has no {name} any more"
            setattr(module, name, adapter)
    files = sorted(str(path) for path in Path(entmax.__file__).parent.glob("test_*.py"))
    tally = Tally()
    options = [
        "-q",
        "-c",
        os.devnull,
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
    ]  # not by this project's settings
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main([*options, *files], plugins=[tally])
    return tally.outcomes


def main() -> int:
    outcomes = run()
    if "--json" in sys.argv:
        print(json.dumps(outcomes))
        return 0
    for test, outcome in outcomes.items():
        if outcome != "passed":
            print(f"{test}  {outcome}")
    counts = Counter(
        outcome if outcome.startswith("not ours") else outcome.partition(":")[0] for outcome in outcomes.values()
    )
    print(
        f"entmax {entmax.__version__}: {len(outcomes)} tests; "
        + ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
    )
    return int(any(outcome.startswith("failed") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
