"""How much faster the network is once its dead neurons are taken out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import sparselayers as sl
from nets.slim import grown

Row = dict[str, Any]


def latency(small: nn.Module, device: str, quick: bool) -> list[Row]:
    """The whole network with its zeros, and what `compact` makes of it, at batch 1 and 256, timed in turns.

    Each as it is, and by torch.compile.
    """
    torch.manual_seed(0)
    example = torch.randn(256, 1, 28, 28, device=device)
    whole = grown(small).to(device).eval()
    compacted = sl.compact(whole, example)
    rows = timed(whole, compacted, example, "as it is", 3 if quick else 100)
    if not quick:
        both = (torch.compile(model, dynamic=False) for model in (whole, compacted))
        rows += timed(*both, example, "torch.compile", 100)
    return rows


def timed(whole: nn.Module, compacted: nn.Module, example: Tensor, run: str, repeats: int) -> list[Row]:
    """A row for each batch size."""
    found = sl.compare(whole, compacted, example, batch_sizes=(1, 256), repeats=repeats)
    pairs = zip(found.before.latencies, found.after.latencies, found.speedup(), strict=True)
    return [
        {
            "run": run,
            "batch": before.batch_size,
            "whole, ms": before.median,
            "compact, ms": after.median,
            "whole / compact": ratio,
            "parameters": found.after.parameters,
            "flops, whole / compact": found.before.flops / found.after.flops,
            "largest difference of outputs": found.largest_difference,
        }
        for before, after, ratio in pairs
    ]
