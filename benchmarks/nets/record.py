"""Finished runs as records in a JSON file, so that a second call skips them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Records:
    """Records by name, kept in `folder`/`subject`.json, beside the checkpoints of runs."""

    def __init__(self, folder: Path, subject: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{subject}.json"
        self._known: dict[str, Record] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def get(self, name: str, run: Callable[[Path], Record]) -> Record:
        """The record of this name; if there is none, that which `run(checkpoint file)` returns, kept from now on.

        The checkpoint file is the run's own and may not exist; it is left in the folder.
        """
        if name not in self._known:
            self._known[name] = run(self.checkpoint(name))
            # The new file takes the old one's place at once: a run that is cut off here leaves no half of it.
            fresh = self._path.with_suffix(".new")
            fresh.write_text(json.dumps(self._known, indent=1) + "\n")
            os.replace(fresh, self._path)
        return self._known[name]

    def checkpoint(self, name: str) -> Path:
        """The file of a run's checkpoint."""
        return self._path.parent / ("".join(c if c.isalnum() or c in ".-" else "_" for c in name) + ".pt")
