"""Regularizers of models sharded by FSDP2, made before and after: the same as those of the whole model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
available = torch.distributed.is_available() and hasattr(torch.distributed, "init_process_group")


@pytest.mark.skipif(not available, reason="torch without torch.distributed")
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_sharded_model_is_regularized_as_the_whole_one(processes: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.sharded_model", str(processes), str(tmp_path / "meeting")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("the same\n")
