"""sparsemax and entmax-1.5 against the entmax package and torch.softmax: time, and accuracy in three dtypes."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import entmax
import torch
from common import Row, arguments, machine, race, ratio, write
from torch import Tensor

import sparselayers.functional as F

SHAPES = ((8192, 512), (1024, 4096), (8192, 64), (256, 32000))
# The most that ours may take of torch.softmax, by mapping, forward and forward with backward.
FORWARD_GOALS = {"F.sparsemax": {(8192, 64): 3.0}, "F.entmax15": {}}
FORWARD_GOAL = {"F.sparsemax": 2.0, "F.entmax15": 3.0}
BACKWARD_GOAL = {"F.sparsemax": 3.0}
COMPILED_GOAL = 4.0  # of torch.softmax, forward, at the first two shapes
PAIRS = (
    ("F.sparsemax", "entmax.sparsemax"),
    ("F.entmax15", "entmax.entmax15"),
    ("F.sparsemax", "torch.softmax"),
    ("F.entmax15", "torch.softmax"),
)

MAPPINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.sparsemax": F.sparsemax,
    "F.entmax15": F.entmax15,
    "torch.softmax": lambda z: torch.softmax(z, -1),
    "entmax.sparsemax": lambda z: entmax.sparsemax(z, -1),
    "entmax.entmax15": lambda z: entmax.entmax15(z, -1),
}


def eager(options: argparse.Namespace, shapes: tuple[tuple[int, int], ...], backward: bool) -> list[Row]:
    rows = []
    for shape in shapes:
        z = torch.randn(shape, device=options.device, requires_grad=backward)
        pull = torch.randn(shape, device=options.device)
        # Two races: what entmax allocates would slow down whoever comes after it.
        times = {}
        for peers in (("torch.softmax",), ("entmax.sparsemax", "entmax.entmax15")):
            names = ("F.sparsemax", "F.entmax15", *peers)
            times[peers[0][:5]] = race({name: _call(MAPPINGS[name], z, pull) for name in names}, options)
        for ours, peer in PAIRS:
            row = ratio(ours, peer, times[peer[:5]], goal(ours, peer, shape, backward))
            rows.append({"shape": str(shape), **row})
    return rows


def goal(ours: str, peer: str, shape: tuple[int, int], backward: bool) -> float | None:
    if peer != "torch.softmax":
        return None
    if backward:
        return BACKWARD_GOAL.get(ours)
    return FORWARD_GOALS[ours].get(shape, FORWARD_GOAL[ours])


def _call(mapping: Callable[[Tensor], Tensor], z: Tensor, pull: Tensor) -> Callable[[], object]:
    if z.requires_grad:
        return lambda: torch.autograd.grad(mapping(z), z, pull)
    return lambda: mapping(z)


def compiled(options: argparse.Namespace, shapes: tuple[tuple[int, int], ...]) -> list[Row]:
    rows = []
    for shape in shapes:
        z = torch.randn(shape, device=options.device)
        torch.compiler.reset()
        name = "compiled F.sparsemax"
        mapping = torch.compile(F.sparsemax, fullgraph=True)
        contestants = {name: _call(mapping, z, z), "torch.softmax": _call(MAPPINGS["torch.softmax"], z, z)}
        times = race(contestants, options)
        most = COMPILED_GOAL if shape in SHAPES[:2] else None
        rows.append({"shape": str(shape), **ratio(name, "torch.softmax", times, most)})
    return rows


def accuracy(options: argparse.Namespace, sizes: tuple[int, ...]) -> list[Row]:
    rows = []
    for name, reference in (("sparsemax", sparsemax_by_sorting), ("entmax15", entmax15_by_sorting)):
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            for scale in (0.01, 1.0, 10.0):
                for n in sizes:
                    z = (scale * torch.randn(64, n, device=options.device)).to(dtype)
                    exact = reference(z.double())
                    row: Row = {"mapping": name, "dtype": str(dtype).partition(".")[2], "scale": scale, "n": n}
                    for who, mapping in (("ours", MAPPINGS[f"F.{name}"]), ("entmax", MAPPINGS[f"entmax.{name}"])):
                        p = mapping(z).double()
                        row[f"{who}, max error"] = (p - exact).abs().max().item()
                        row[f"{who}, max abs(sum - 1)"] = (p.sum(-1) - 1).abs().max().item()
                    rows.append(row)
    return rows


def sparsemax_by_sorting(z: Tensor) -> Tensor:
    """Martins and Astudillo 2016, algorithm 1."""
    z = z - z.amax(-1, keepdim=True)
    falling = z.sort(-1, descending=True).values
    k = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
    levels = (falling.cumsum(-1) - 1) / k
    size = (falling > levels).sum(-1, keepdim=True)
    return (z - levels.gather(-1, size - 1)).clamp_min(0)


def entmax15_by_sorting(z: Tensor) -> Tensor:
    """Peters, Niculae and Martins 2019, algorithm 2."""
    s = (z - z.amax(-1, keepdim=True)) / 2
    falling = s.sort(-1, descending=True).values
    k = torch.arange(1, s.shape[-1] + 1, dtype=s.dtype, device=s.device)
    mean, square = falling.cumsum(-1) / k, falling.square().cumsum(-1) / k
    levels = mean - ((1 - k * (square - mean.square())) / k).clamp_min(0).sqrt()
    size = (levels <= falling).sum(-1, keepdim=True)
    return (s - levels.gather(-1, size - 1)).clamp_min(0).square()


def main() -> None:
    options = arguments(__file__, __doc__)
    where = machine(options.device)
    shapes = ((64, 32),) if options.quick else SHAPES
    sizes = (64,) if options.quick else (64, 1024, 16384)
    tables = [
        {"what": "Forward, eager, float32 rows of randn.", "rows": eager(options, shapes, backward=False)},
        {"what": "Forward and backward, eager, float32 rows of randn.", "rows": eager(options, shapes, backward=True)},
        {
            "what": "Forward, torch.compile(F.sparsemax, fullgraph=True) against torch.softmax in eager mode.",
            "rows": compiled(options, shapes),
        },
        {
            "what": "Largest error of entries (reference: float64, by sorting) and of sums; 64 rows of scale * randn.",
            "rows": accuracy(options, sizes),
        },
    ]
    write(__file__, "Mappings: sparsemax and entmax-1.5", options, where, tables)


if __name__ == "__main__":
    main()
