"""Write docs/benchmarks.md from the JSON files beside this script."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
INTRODUCTION = """# Benchmarks

Every time is a ratio against a peer timed in the same run: the contestants take turns, so that whatever disturbs the
machine disturbs them all. A ratio is our time over the peer's: below 1 we are faster. A goal is the most that the ratio
of minima may be. Milliseconds are the least of all calls. The tables of LISTA hold errors, no times.
This page is generated: `python benchmarks/tables.py`.
"""


def page(folder: Path = HERE) -> str:
    """The whole page, from all JSON files of a folder in alphabetical order."""
    return "\n".join([INTRODUCTION, *(section(json.loads(path.read_text())) for path in sorted(folder.glob("*.json")))])


def section(results: dict[str, Any]) -> str:
    place = ", ".join(f"{key} {value}" for key, value in results["machine"].items() if value is not None)
    lines = [
        f"## {results['title']}\n",
        f"Machine: {place}. Calls of each: {results['repeats']}. Allocator: {results['allocator']}.\n",
        f"To repeat: `{results['command']}`\n",
    ]
    for table in results["tables"]:
        lines += [f"{table['what']}\n", markdown(table["rows"])]
    return "\n".join(lines)


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table with the rows' keys as columns; a column that is empty throughout is left out."""
    columns = [key for key in rows[0] if any(row[key] is not None for row in rows)]
    lines = [columns, ["---"] * len(columns), *([cell(row[key]) for key in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.parse_args().out.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
