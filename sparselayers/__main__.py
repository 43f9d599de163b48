"""The command line: `python -m sparselayers demo | doctor | bench`."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

BENCHMARKS = ("mappings", "attention", "prox", "coding", "simplex", "lasso")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sparselayers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="codes, attention and weights on real data: tables and figures in a minute")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for the figures (default: ./demo)")
    demo.add_argument("--quick", action="store_true", help="a tiny version in a few seconds; its numbers mean little")
    doctor = commands.add_parser("doctor", help="what works on this machine, and how to get what is missing")
    doctor.add_argument("--fast", action="store_true", help="leave out torch.compile, which takes some seconds to try")
    benchmarks = commands.add_parser("bench", help="run the benchmarks of a clone of the repository")
    benchmarks.add_argument("--quick", action="store_true", help="only see whether they run, in seconds")
    chosen = parser.parse_args(argv)
    if chosen.command == "demo":
        return _demo(chosen.out, chosen.quick)
    if chosen.command == "doctor":
        from .doctor import run

        return run(chosen.fast)
    return bench(Path(__file__).parent.parent, chosen.quick)


def _demo(out: Path, quick: bool) -> int:
    missing = [name for name in ("sklearn", "tqdm", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"The demo needs {', '.join(missing)}: pip install 'sparselayers[demo]'", file=sys.stderr)
        return 1
    from . import demo

    demo.run(out, quick)
    return 0


def bench(repository: Path, quick: bool = False) -> int:
    """Run the benchmarks of a clone in turn; 2 where there are none, else the first code that is not 0, or 0."""
    scripts = [repository / "benchmarks" / f"{subject}.py" for subject in BENCHMARKS]
    # Beside an installed package a folder of this name belongs to somebody else.
    if not (repository / "pyproject.toml").exists() or not all(script.exists() for script in scripts):
        print(
            "No benchmarks here: they are not part of the installed package. Clone the repository and run "
            "`python -m sparselayers bench` in it.",
            file=sys.stderr,
        )
        return 2
    options = ["--quick"] if quick else []
    codes = []
    for script in scripts:
        print(f"== {script.name}", flush=True)
        codes.append(subprocess.run([sys.executable, str(script), *options], cwd=repository, check=False).returncode)
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
