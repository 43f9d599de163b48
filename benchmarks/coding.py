"""F.ista and F.fista, forward and backward, against the same loops written by hand."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import Row, arguments, machine, race, ratio, write
from torch import Tensor

import sparselayers.functional as F

LAM = 0.1
Coder = Callable[[Tensor, Tensor], Tensor]


def naive_ista(x: Tensor, D: Tensor, depth: int) -> Tensor:
    step = 1 / torch.linalg.matrix_norm(D, 2) ** 2
    z = x.new_zeros(x.shape[0], D.shape[1])
    for _ in range(depth):
        z = z - step * ((z @ D.T - x) @ D)
        z = torch.sign(z) * torch.relu(z.abs() - step * LAM)
    return z


def naive_fista(x: Tensor, D: Tensor, depth: int) -> Tensor:
    step = 1 / torch.linalg.matrix_norm(D, 2) ** 2
    z = y = x.new_zeros(x.shape[0], D.shape[1])
    t = 1.0
    for _ in range(depth):
        v = y - step * ((y @ D.T - x) @ D)
        new = torch.sign(v) * torch.relu(v.abs() - step * LAM)
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        y = new + ((t - 1) / following) * (new - z)
        z, t = new, following
    return z


def coders(depth: int) -> dict[str, Coder]:
    return {
        "F.ista": lambda x, D: F.ista(x, D, LAM, depth=depth),
        "naive ISTA": lambda x, D: naive_ista(x, D, depth),
        "F.fista, restart=None": lambda x, D: F.fista(x, D, LAM, depth=depth, restart=None),
        "F.fista": lambda x, D: F.fista(x, D, LAM, depth=depth),
        "naive FISTA": lambda x, D: naive_fista(x, D, depth),
    }


PAIRS = (("F.ista", "naive ISTA"), ("F.fista, restart=None", "naive FISTA"), ("F.fista", "naive FISTA"))
COMPILED = (("F.ista, compiled", "naive ISTA, compiled"), ("F.ista, compiled", "naive ISTA"))


def compare(
    options: argparse.Namespace, batch: int, n_features: int, n_atoms: int, depth: int, backward: bool
) -> list[Row]:
    D = torch.randn(n_features, n_atoms, device=options.device)
    D = (D / torch.linalg.vector_norm(D, dim=0)).requires_grad_(backward)
    x = torch.randn(batch, n_features, device=options.device, requires_grad=backward)

    def call(coder: Coder) -> Callable[[], object]:
        if backward:
            return lambda: torch.autograd.grad(coder(x, D).square().sum(), (x, D))
        return lambda: coder(x, D)

    known, pairs = coders(depth), PAIRS
    if backward and not options.quick:  # compiling takes longer than a test of the script should
        known |= {f"{name}, compiled": torch.compile(known[name]) for name in ("F.ista", "naive ISTA")}
        pairs += COMPILED
    times = race({name: call(coder) for name, coder in known.items()}, options)
    rows = []
    for ours, peer in pairs:
        row = ratio(ours, peer, times)
        # The restart is another algorithm, so only the other two give the peer's code.
        same = ours != "F.fista"
        row["largest difference"] = (known[ours](x, D) - known[peer](x, D)).abs().max().item() if same else None
        rows.append(row)
    return rows


def main() -> None:
    options = arguments(__file__, __doc__)
    where = machine(options.device)
    batch, n_features, n_atoms, depth = (8, 4, 8, 3) if options.quick else (1024, 64, 256, 16)
    size = f"depth {depth}, D {n_features} x {n_atoms}, batch {batch}, float32"
    tables = [
        {
            "what": f"Forward: {size}.",
            "rows": compare(options, batch, n_features, n_atoms, depth, backward=False),
        },
        {
            "what": f"Forward and backward to x and D: {size}.",
            "rows": compare(options, batch, n_features, n_atoms, depth, backward=True),
        },
    ]
    write(__file__, "Coding: unrolled ISTA and FISTA", options, where, tables)


if __name__ == "__main__":
    main()
