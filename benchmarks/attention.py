"""Attention with sparse weights against torch's softmax attention: time and peak memory, forward and backward."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch
from common import Row, arguments, machine, race, ratio, write
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import sparselayers.functional as F
from sparselayers.attention import lean

TIMED = ((4, 8, 1024, 64), (1, 4, 4096, 64))  # batch, heads, length, width
GOAL = 1.5  # of torch's math path, at the first shape
LENGTHS = (4096, 8192)
MATH = "torch softmax, math path"
FUSED = "torch softmax, its own choice"


def torch_math(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


def torch_choice(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


def ours(mapping: str) -> Callable[..., Tensor]:
    return lambda q, k, v, causal=False: F.scaled_dot_product_attention(q, k, v, is_causal=causal, mapping=mapping)


def whole_weights(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Our sparsemax attention with all weights in memory at once."""
    worth, lean.WORTH = lean.WORTH, 2**60
    try:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    finally:
        lean.WORTH = worth


CONTESTANTS: dict[str, Callable[..., Tensor]] = {
    "sparsemax": ours("sparsemax"),
    "entmax15": ours("entmax15"),
    "softmax, ours": ours("softmax"),
    "sparsemax, whole weights": whole_weights,
    MATH: torch_math,
    FUSED: torch_choice,
}


def inputs(shape: tuple[int, ...], device: str, scale: float = 1.0) -> tuple[Tensor, ...]:
    q, k, v, g = (torch.randn(shape, device=device) for _ in range(4))
    return (scale * q).requires_grad_(), k.requires_grad_(), v.requires_grad_(), g


def step(attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, g: Tensor, causal: bool = False) -> None:
    torch.autograd.grad(attention(q, k, v, causal), (q, k, v), g)


def times(options: argparse.Namespace, shape: tuple[int, ...], causal: bool, scale: float) -> list[Row]:
    given = inputs(shape, options.device, scale)
    calls = {name: (lambda each=each: step(each, *given, causal=causal)) for name, each in CONTESTANTS.items()}
    measured = race(calls, options)
    rows = []
    for name in ("sparsemax", "entmax15", "softmax, ours", "sparsemax, whole weights"):
        goal = GOAL if name in ("sparsemax", "entmax15") and shape == TIMED[0] and scale == 1.0 and not causal else None
        case = {"shape (B, H, n, d)": str(shape), "causal": causal, "queries times": scale}
        rows.append({**case, **ratio(name, MATH, measured, goal)})
    rows.append({**case, **ratio("sparsemax", FUSED, measured)})
    return rows


def _peak(connection, name: str, shape: tuple[int, ...], device: str, threads: int) -> None:
    """The growth of the process (or of the GPU's memory) in one forward and backward, in MiB."""
    torch.set_num_threads(threads)
    step(CONTESTANTS[name], *inputs(shape, device))  # code, libraries and kernels are loaded
    given = inputs(shape, device)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(CONTESTANTS[name], *given)
        connection.send((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before = _status("VmRSS")
    step(CONTESTANTS[name], *given)
    connection.send((_status("VmHWM") - before) / 2**10)


def _status(field: str) -> int:
    """A field of Linux's account of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak(name: str, shape: tuple[int, ...], options: argparse.Namespace) -> float:
    """In a process of its own, started afresh."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(sender, name, shape, options.device, options.threads))
    process.start()
    found = receiver.recv()
    process.join()
    return found


def memory(options: argparse.Namespace, lengths: tuple[int, ...]) -> list[Row]:
    rows = []
    for n in lengths:
        shape = (1, 4, n, 64)
        found = {name: peak(name, shape, options) for name in ("sparsemax", "sparsemax, whole weights", MATH, FUSED)}
        for other in ("sparsemax, whole weights", MATH, FUSED):
            goal = {("sparsemax, whole weights", 8192): 0.2, (MATH, 4096): 1.0}.get((other, n))
            share = found["sparsemax"] / found[other] if found[other] else float("nan")
            rows.append(
                {
                    "shape (B, H, n, d)": str(shape),
                    "ours": "sparsemax",
                    "peer": other,
                    "ours, MiB": found["sparsemax"],
                    "peer, MiB": found[other],
                    "ratio": share,
                    "goal": goal,
                    "met": None if goal is None else share <= goal,
                }
            )
    return rows


def main() -> None:
    options = arguments(__file__, __doc__)
    options.repeats = min(options.repeats, 7)  # a call takes a second
    where = machine(options.device)
    shapes = ((1, 2, 64, 16),) if options.quick else TIMED
    lengths = (64,) if options.quick else LENGTHS
    timed = []
    for shape in shapes:
        for causal, scale in ((False, 1.0), (True, 1.0), (False, 0.1)):
            timed += times(options, shape, causal, scale)
    tables = [
        {
            "what": "Time of forward and backward, float32, randn queries (times 1 or 0.1: many keys share the weight), "
            "keys and values.",
            "rows": timed,
        },
        {
            "what": "Peak memory of forward and backward beyond inputs, each in a process of its own.",
            "rows": memory(options, lengths),
        },
    ]
    write(__file__, "Attention", options, where, tables)


if __name__ == "__main__":
    main()
