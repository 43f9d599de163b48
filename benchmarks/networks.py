"""Sparse networks: the tables of the papers this library starts from, and what it does best on the same networks.

`python benchmarks/networks.py lenet --data DIR --work DIR` trains one subject and writes `networks-lenet.json`. Finished
runs are kept in the work folder: a second call skips them, and goes on with the one that was cut off.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from pathlib import Path

import torch
from common import keep_freed_memory, machine, write
from nets.record import Records

SUBJECTS = ("lenet", "mlp", "cges", "hoyer", "neurons")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--data", type=Path, help="folder with mnist, fashion_mnist, covertype, sdd")
    parser.add_argument("--work", type=Path, help="folder for records and checkpoints; a temporary one without")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--full", action="store_true", help="the papers' schedules and number of seeds: for a GPU")
    parser.add_argument("--quick", action="store_true", help="few steps on made-up data: a test of the script")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures; none without")
    parser.add_argument("--out", type=Path, help="JSON file; beside the script by default, nowhere with --quick")
    options = parser.parse_args()
    if options.data is None and not options.quick:
        parser.error("--data DIR is needed; without data only --quick runs")
    if options.quick:
        options.data = None
    elif options.out is None:
        device = "" if options.device == "cpu" else f".{options.device}"
        options.out = Path(__file__).with_name(f"networks-{options.subject}{device}.json")
    torch.set_num_threads(options.threads)
    options.repeats, options.allocator = 1, keep_freed_memory()
    subject = importlib.import_module(f"nets.{options.subject}")
    where = machine(options.device)
    with tempfile.TemporaryDirectory() as temporary:
        tables = subject.tables(options, Records(options.work or Path(temporary), options.subject))
    full = " --full" if options.full else ""
    write(f"networks.py {options.subject}{full}", subject.TITLE, options, where, tables)


if __name__ == "__main__":
    main()
