"""What the benchmarks share: arguments, the machine, interleaved timing, and JSON."""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

Row = dict[str, Any]
THREADS = 2


class Times(NamedTuple):
    """Milliseconds of one contestant's calls."""

    minimum: float
    median: float


def arguments(script: str, description: str, data: str | None = None) -> argparse.Namespace:
    """The options every benchmark has, and --data where a folder of `data` may be given.

    Sets the number of threads and keeps freed memory in the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=THREADS, help="CPU threads of torch")
    parser.add_argument("--repeats", type=int, help="timed calls of each contestant")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes and few calls: a test of the script, no result"
    )
    parser.add_argument("--out", type=Path, help="JSON file; beside the script by default, nowhere with --quick")
    if data is not None:
        parser.add_argument("--data", type=Path, help=f"folder with {data}; without it that table is left out")
    options = parser.parse_args()
    if options.repeats is None:
        options.repeats = 2 if options.quick else 30
    if options.out is None and not options.quick:
        name = Path(script).stem + ("" if options.device == "cpu" else f".{options.device}")
        options.out = Path(script).with_name(f"{name}.json")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    options.allocator = keep_freed_memory()
    return options


def keep_freed_memory() -> str:
    """Ask glibc to hand no freed memory back, so that no contestant pays for page faults; says what was done."""
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return "default"
    mallopt = ctypes.CDLL(None).mallopt
    kept = mallopt(mmap_threshold, 2**31 - 1) and mallopt(trim_threshold, 2**31 - 1)
    return "glibc, freed memory kept in the process (mallopt), for all contestants alike" if kept else "default"


def race(
    contestants: dict[str, Callable[[], object]],
    options: argparse.Namespace,
    before: Callable[[], object] | None = None,
) -> dict[str, Times]:
    """Time the contestants in turn, A B C A B C ..., so that whatever disturbs the machine disturbs them all.

    Each timed call follows an untimed one of the same contestant: else one would find its input in the cache, warm from
    the contestant before it, and another would not. `before` runs untimed before each call.
    """
    for _ in range(1 if options.quick else 5):
        for call in contestants.values():
            _milliseconds(call, before, options.device)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    gc.collect()
    gc.disable()
    for _ in range(options.repeats):
        for name, call in contestants.items():
            _milliseconds(call, before, options.device)
            times[name].append(_milliseconds(call, before, options.device))
    gc.enable()
    return {name: Times(min(each), statistics.median(each)) for name, each in times.items()}


def _milliseconds(call: Callable[[], object], before: Callable[[], object] | None, device: str) -> float:
    if before is not None:
        before()
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return (time.perf_counter() - start) * 1e3


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ratio(ours: str, peer: str, times: dict[str, Times], goal: float | None = None) -> Row:
    """Ours over the peer's, below 1 where we are faster; `goal` is the most the ratio of minima may be."""
    row: Row = {
        "ours": ours,
        "peer": peer,
        "ours, min ms": times[ours].minimum,
        "peer, min ms": times[peer].minimum,
        "ratio of minima": times[ours].minimum / times[peer].minimum,
        "ratio of medians": times[ours].median / times[peer].median,
    }
    row["goal"] = goal
    row["met"] = None if goal is None else row["ratio of minima"] <= goal
    return row


def machine(device: str) -> Row:
    """Where and when the numbers were taken, without the machine's name."""
    found: Row = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "load before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
    return found


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write(script: str, title: str, options: argparse.Namespace, where: Row, tables: list[Row]) -> None:
    """Print the tables, each {"what": sentence, "rows": [row, ...]}, and write them as JSON if a file is wanted."""
    device = "" if options.device == "cpu" else f" --device {options.device}"
    threads = "" if options.threads == THREADS else f" --threads {options.threads}"
    device += " --data DIR" if getattr(options, "data", None) else ""
    results = {
        "title": title,
        "command": f"python benchmarks/{Path(script).name}{device}{threads}",
        "quick": options.quick,
        "repeats": options.repeats,
        "allocator": options.allocator,
        "machine": where,
        "tables": tables,
    }
    for table in tables:
        print(f"\n{table['what']}")
        for row in table["rows"]:
            print("  " + ", ".join(f"{key} {_short(value)}" for key, value in row.items() if value is not None))
    if options.out is not None:
        options.out.write_text(json.dumps(_rounded(results), indent=1) + "\n")


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _rounded(value: Any) -> Any:
    """Floats to four digits: more would be noise in the file's history."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return value
