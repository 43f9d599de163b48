"""`python -m sparselayers demo`: the library on a photograph and on handwritten digits, in a minute, no download.

Three parts, one file each, to be read as a tutorial: sparse codes (photograph), sparse attention (attention), sparse
weights (neurons).
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from . import attention, neurons, photograph

Result = photograph.Photograph | attention.Attention | neurons.Neurons


def run(out: Path, quick: bool = False) -> list[Result]:
    """Run the three parts, print a table for each, write the figures to the folder `out`, and return the results."""
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    # One thread is as fast on tensors this small, and does not wait for cores that other programs use.
    torch.set_num_threads(1)
    try:
        results: list[Result] = []
        for part in (photograph, attention, neurons):
            results.append(part.run(out, quick))
            print(f"\n{results[-1]}\n", flush=True)
    finally:
        torch.set_num_threads(threads)
    print("Figures written:")
    for result in results:
        for figure in result.figures:
            print(f"  {figure}")
    print(f"Total time: {time.perf_counter() - start:.0f} s")
    return results
