"""How long models take for a forward pass, in turns, so that what else the machine does falls on all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .evaluation import Example, call, evaluating

WARMUP = 3


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass of a batch: the median and the fastest of the repeats."""

    batch_size: int
    median: float
    fastest: float


def timed(
    models: Sequence[nn.Module], example_input: Example, sizes: Sequence[int], repeats: int
) -> list[tuple[Latency, ...]]:
    """Latencies of each model: the models in turns, so that what else the machine does falls on all alike."""
    found: list[list[Latency]] = [[] for _ in models]
    for size in sizes:
        batch = repeated(example_input, size)
        times: list[list[float]] = [[] for _ in models]
        with torch.inference_mode(), evaluating(*models):
            for turn in range(WARMUP + repeats):
                for model, seconds in zip(models, times, strict=True):
                    spent = _spent(partial(call, model, batch), device_of(batch))
                    if turn >= WARMUP:
                        seconds.append(1000 * spent)
        for latencies, seconds in zip(found, times, strict=True):
            latencies.append(Latency(size, statistics.median(seconds), min(seconds)))
    return [tuple(latencies) for latencies in found]


def _spent(run: Callable[[], object], device: torch.device) -> float:
    """Seconds; on a CUDA device by its own events, as a call there returns before its work is done."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def rows_of(example_input: Example) -> int | None:
    """The length of the first axis of the first tensor that has one."""
    return next((x.shape[0] for x in tree_leaves(plain(example_input)) if isinstance(x, Tensor) and x.ndim), None)


def repeated(example_input: Example, size: int) -> Example:
    """The example with `size` rows: its own, as often as needed, in every tensor that has as many as the first."""
    rows = rows_of(example_input)

    def repeat(x: object) -> object:
        if not isinstance(x, Tensor) or not x.ndim or x.shape[0] != rows or rows == size:
            return x
        return x.index_select(0, torch.arange(size, device=x.device) % rows)

    return tree_map(repeat, plain(example_input))


def plain(tree: object) -> object:
    """Dict-like outputs as dicts, whose tensors are then seen."""
    return dict(tree) if isinstance(tree, Mapping) else tree


def device_of(example_input: Example) -> torch.device:
    return next(x.device for x in tree_leaves(plain(example_input)) if isinstance(x, Tensor))
