"""Least squares over the simplex: time at equal gap against qpth, jaxopt and NNLS, training steps, memory, accuracy.

The peers are optional (`pip install -e '.[bench]'`); one that is not installed is left out, with a word.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
from collections.abc import Callable

import numpy as np
import scipy.optimize
import torch
from attention import _status
from common import Row, Times, arguments, machine, race, ratio, write
from torch import Tensor, nn

import sparselayers as sl
import sparselayers.functional as F

GAP = 1e-6
RIDGE = 1e-6  # what qpth needs, whose matrix must be definite, relative to the largest squared distance


def cases(n: int, d: int, m: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Queries and atoms in float64: three distances, a steep spectrum, clusters, a mean far from 0, the unit sphere."""
    draw = torch.Generator().manual_seed(n)
    x, k, centres = (torch.randn(size, d, dtype=torch.float64, generator=draw) for size in (m, n, 16))
    spectrum = 1 / torch.arange(1, d + 1, dtype=torch.float64)
    clusters = 2 * centres[torch.randint(0, 16, (n,), generator=draw)] + 0.1 * k
    return {
        "queries N(0, 1)": (x, k),
        "queries 0.3 N(0, 1)": (0.3 * x, k),
        "queries 2 N(0, 1)": (2 * x, k),
        "spectrum 1/k": (x * spectrum, k * spectrum),
        "16 clusters": (x, clusters),
        "mean 10": (x + 10, k + 10),
        "unit sphere": (x / x.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)),
    }


def true_gap(x: Tensor, atoms: Tensor, y: Tensor) -> Tensor:
    """The duality gap relative to the largest squared distance, in float64 from the definition; weights made to sum to 1.

    Infeasible weights have none: NaN.
    """
    x, atoms, y = (q.detach().cpu().double() for q in (x, atoms, y))
    bad = (y < -1e-6).any(-1) | ((y.sum(-1) - 1).abs() > 1e-3)
    y = y.clamp_min(0) / y.clamp_min(0).sum(-1, keepdim=True)
    slope = (y @ (atoms - atoms.mean(0)) - (x - atoms.mean(0))) @ (atoms - atoms.mean(0)).mT
    excess = (slope * y).sum(-1) - slope.amin(-1)
    return torch.where(bad, torch.nan, excess / torch.cdist(x, atoms).square().amax(-1))


def ours(x: Tensor, atoms: Tensor) -> Callable[[], Tensor]:
    return lambda: F.simplex_least_squares(x, atoms).weights


def by_nnls(x: Tensor, atoms: Tensor) -> Callable[[], Tensor]:
    """Query after query, on the homogeneous form whose direction is the answer."""
    points, queries, n = atoms.double().numpy(), x.double().numpy(), len(atoms)

    def solve() -> Tensor:
        found = []
        for q in queries:
            rows = np.vstack([(points - q).T, 3.0 * np.ones((1, n))])
            y = scipy.optimize.nnls(rows, np.append(np.zeros(len(rows) - 1), 3.0))[0]
            found.append(y / y.sum())
        return torch.from_numpy(np.stack(found))

    return solve


def by_qpth(x: Tensor, atoms: Tensor) -> Callable[[], Tensor]:
    from qpth.qp import QPFunction

    # In float64: in float32, with so small a ridge, it returns weights that are not on the simplex.
    n, x, atoms = len(atoms), x.double(), atoms.double()
    eye, ones = torch.eye(n, dtype=x.dtype), torch.ones(1, n, dtype=x.dtype)
    keys = atoms - atoms.mean(0)
    gram = keys @ keys.mT + RIDGE * torch.cdist(x, atoms).square().amax() * eye
    size = gram.diagonal().mean()
    linear = -(x - atoms.mean(0)) @ keys.mT / size
    solver = QPFunction(verbose=-1, check_Q_spd=False)
    return lambda: solver(gram / size, linear, -eye, torch.zeros(n, dtype=x.dtype), ones, ones[:, 0])


def by_jaxopt(x: Tensor, atoms: Tensor) -> Callable[[], Tensor]:
    import jax
    import jaxopt

    centre = atoms.mean(0)
    keys, queries = (jax.numpy.asarray((q - centre).numpy()) for q in (atoms, x))
    start = jax.numpy.full((len(x), len(atoms)), 1 / len(atoms))
    curvature = float(torch.linalg.matrix_norm(atoms - centre, 2) ** 2)
    solver = jaxopt.ProjectedGradient(
        lambda y, q: 0.5 * jax.numpy.sum((q - y @ keys) ** 2),
        lambda v, _: jaxopt.projection.projection_simplex(v),
        stepsize=1 / curvature,
        maxiter=500,
        tol=1e-6,
        jit=True,
    )
    run = jax.jit(jax.vmap(lambda y, q: solver.run(y, None, q).params))

    def solve() -> Tensor:
        return torch.from_numpy(np.array(run(start, queries).block_until_ready()))

    return solve


PEERS = {"qpth, in float64": ("qpth", by_qpth), "jaxopt ProjectedGradient": ("jaxopt", by_jaxopt)}


def installed(package: str) -> bool:
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(f"{package} is not installed and left out: pip install -e '.[bench]'")
    return found


def against(
    options: argparse.Namespace, size: tuple[int, int, int], dtype: torch.dtype, peers: dict[str, float]
) -> list[Row]:
    """Ours against peers, each with the most that the ratio may be, and everybody's true gap."""
    n, d, m = size
    x, atoms = (q.to(dtype) for q in cases(n, d, m)["queries N(0, 1)"])
    calls = {"F.simplex_least_squares": ours(x, atoms)}
    for name in peers:
        if name == "scipy nnls, a loop":
            calls[name] = by_nnls(x, atoms)
        elif installed(PEERS[name][0]):
            calls[name] = PEERS[name][1](x, atoms)
    gaps = {name: true_gap(x, atoms, call()).max().item() for name, call in calls.items()}
    times = {name: Times(*(t / m for t in each)) for name, each in race(calls, options).items()}  # a query
    rows = []
    for name in calls:
        if name != "F.simplex_least_squares":
            row = {"n, d, queries": str(size), "dtype": str(dtype)[6:]}
            row |= ratio("F.simplex_least_squares", name, times, peers[name])
            row |= {"gap, ours": gaps["F.simplex_least_squares"], "gap, peer": gaps[name]}
            rows.append(row)
    return rows


def step(module: nn.Module, x: Tensor, causal: bool) -> Callable[[], object]:
    n = x.shape[1]
    hidden = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1) if causal else None
    leaves = (x, *module.parameters())

    def call() -> object:
        out = module(x, x, x, attn_mask=hidden, is_causal=causal, need_weights=False)[0]
        return torch.autograd.grad(out.square().sum(), leaves)

    return call


def training(options: argparse.Namespace, batch: int, heads: int, n: int, d: int) -> list[Row]:
    width, rows = heads * d, []
    made = {"batch_first": True, "bias": False, "device": options.device}
    scale_free = sl.ScaleFreeAttention(width, heads, **made)
    sparsemax = sl.MultiheadAttention(width, heads, mapping="sparsemax", **made)
    x = torch.randn(batch, n, width, device=options.device, requires_grad=True)
    q, k, v, g = (torch.randn(batch, heads, n, d, device=options.device) for _ in range(4))
    given = tuple(t.requires_grad_() for t in (q, k, v))
    for causal in (False, True):
        calls = {"layer, scale-free": step(scale_free, x, causal), "layer, sparsemax": step(sparsemax, x, causal)}
        attend = {
            "function, scale-free": lambda c=causal: F.scale_free_attention(q, k, v, is_causal=c, locality=0.1),
            "function, sparsemax": lambda c=causal: F.scaled_dot_product_attention(q, k, v, is_causal=c),
        }
        calls |= {name: (lambda f=f: torch.autograd.grad(f(), given, g)) for name, f in attend.items()}
        times = race(calls, options)
        for kind in ("layer", "function"):
            row = {"B, H, n, d": f"{batch}, {heads}, {n}, {d}", "causal": causal}
            rows.append(row | ratio(f"{kind}, scale-free", f"{kind}, sparsemax", times, 10.0))
    return rows


def _growth(connection, backward: str, most: int, size: tuple[int, int, int], threads: int) -> None:
    """What one forward and backward adds to the peak of the process, in MiB."""
    from pathlib import Path

    torch.set_num_threads(threads)
    n, d, m = size
    x, atoms = (q.float().requires_grad_() for q in cases(n, d, m)["queries 0.3 N(0, 1)"])

    def once(most: int) -> None:
        # tol 0: all steps are taken that there are
        y = F.simplex_least_squares(x, atoms, locality=0.01, tol=0.0, max_iter=most, backward=backward).weights
        torch.autograd.grad(y.square().sum(), (x, atoms))

    once(2)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    once(most)
    connection.send((_status("VmHWM") - before) / 2**10)


def memory(options: argparse.Namespace, size: tuple[int, int, int], budgets: tuple[int, ...]) -> list[Row]:
    rows = []
    context = multiprocessing.get_context("spawn")
    for most in budgets:
        row: Row = {"n, d, queries": str(size), "max_iter": most}
        for backward in ("implicit", "unroll"):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_growth, args=(sender, backward, most, size, options.threads))
            process.start()
            row[f"{backward}, MiB"] = receiver.recv()
            process.join()
        rows.append(row)
    return rows


def accuracy(options: argparse.Namespace, sizes: tuple[int, ...], m: int) -> list[Row]:
    rows = []
    for n in sizes:
        d = min(64, n // 4)
        for case, (x, atoms) in cases(n, d, m).items():
            x, atoms = x.to(options.device), atoms.to(options.device)
            exact = F.simplex_least_squares(x, atoms, tol=1e-13)
            single = F.simplex_least_squares(x.float(), atoms.float())
            y = exact.weights.cpu()
            outside = (y @ atoms.cpu() - x.cpu()).norm(dim=-1) > 1e-6  # elsewhere the weights are not unique
            off = (y - by_nnls(x.cpu(), atoms.cpu())()).abs().amax(-1)[outside]
            rows.append(
                {
                    "case": case,
                    "n, d": f"{n}, {d}",
                    "gap, float64": true_gap(x, atoms, exact.weights).max().item(),
                    "abs(y - nnls)": off.max().item() if len(off) else None,
                    "outside the hull": f"{int(outside.sum())} of {m}",
                    "gap, float32": true_gap(x.float(), atoms.float(), single.weights).max().item(),
                    "abs(sum - 1), float32": (single.weights.double().sum(-1) - 1).abs().max().item(),
                    "atoms used, mean": (single.weights > 0).sum(-1).double().mean().item(),
                    "moves, mean": exact.iterations.double().mean().item(),
                }
            )
    return rows


def on_cuda(options: argparse.Namespace, n: int, d: int, m: int, block: int) -> list[Row]:
    """Every case at many queries: time a query in blocks of queries, and the true gap of the first ones."""
    rows = []
    for case, (x, atoms) in cases(n, d, m).items():
        x, atoms = x.float().to(options.device), atoms.float().to(options.device)

        def call(x: Tensor = x, atoms: Tensor = atoms) -> Tensor:
            return torch.cat([F.simplex_least_squares(part, atoms).weights for part in x.split(block)])

        times = race({"ours": call}, options)["ours"]
        y = call()
        rows.append(
            {
                "case": case,
                "n, d, queries": f"{n}, {d}, {m}",
                "ours, min us a query": times.minimum / m * 1e3,
                "gap, float32": true_gap(x[:1024], atoms, y[:1024]).max().item(),
                "atoms used, mean": (y > 0).sum(-1).double().mean().item(),
            }
        )
    return rows


def main() -> None:
    options = arguments(__file__, __doc__.partition("\n")[0])
    options.repeats = min(options.repeats, 7 if options.device == "cpu" else 3)
    where = machine(options.device)
    quick = options.quick
    tables = []
    if options.device == "cpu":
        large, nnls = ((16, 4, 3), (32, 4, 3)) if quick else ((256, 64, 16), (512, 64, 64))
        rows = against(options, large, torch.float32, dict.fromkeys(PEERS, 0.1))
        rows += against(options, nnls, torch.float64, {"scipy nnls, a loop": 0.5})
        what = "Time a query of one call at a gap of 1e-6 or less. Gaps are taken anew in float64."
        tables.append({"what": what, "rows": rows})
    shape = (2, 2, 16, 4) if quick else (8, 4, 128, 32)
    what = "A training step (forward and backward to inputs and parameters), float32, against the same with sparsemax."
    tables.append({"what": what, "rows": training(options, *shape)})
    if options.device == "cpu":
        size, budgets = ((16, 4, 8), (2,)) if quick else ((256, 32, 256), (10, 100, 1000))
        what = "Peak memory of forward and backward, each in a process of its own, all steps taken."
        tables.append({"what": what, "rows": memory(options, size, budgets)})
    sizes, m = ((16,), 3) if quick else ((64, 256, 1024), 16)
    tables.append({"what": "Accuracy by case.", "rows": accuracy(options, sizes, m)})
    if options.device == "cuda":
        n, d, m, block = (32, 4, 64, 32) if quick else (256, 64, 65536, 8192)
        tables.append({"what": "Many queries of one set of atoms.", "rows": on_cuda(options, n, d, m, block)})
    write(__file__, "Least squares over the simplex", options, where, tables)


if __name__ == "__main__":
    main()
