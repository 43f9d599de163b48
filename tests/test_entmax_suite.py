"""entmax's own tests pass with this library in its place, with kernels and without, but for what is not offered here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("kernels", [pytest.param("0", marks=pytest.mark.long), "1"])
def test_entmax_suite(kernels: str) -> None:
    command = [sys.executable, "-m", "tests.entmax_suite", "--json"]
    environment = os.environ | {"SPARSELAYERS_KERNELS": kernels, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=True)
    outcomes = json.loads(done.stdout)
    assert {test: outcome for test, outcome in outcomes.items() if outcome.startswith("failed")} == {}
    counts = Counter(outcomes.values())
    assert set(counts) == {"passed", "not ours: normmax", "not ours: alpha below 1"}
    assert counts["passed"] >= 100
