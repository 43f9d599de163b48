"""Attention that does not care how large its queries and keys are: digits read through learned queries.

One learns: (1) `sl.ScaleFreeAttention` takes the place of `sl.MultiheadAttention`, in the same call; (2) trained from the
standard initialisation it reads digits as softmax and sparsemax do; (3) when the queries and keys of the trained model are
multiplied or shifted, the accuracy of the other two falls and its own does not move; (4) which patches a query uses.
`python examples/scale_free_attention.py --data FOLDER --out FOLDER` adds FOLDER/mnist and seeds, writes JSON and pictures.
"""

import argparse
import copy
import gzip
import itertools
import json
import os
import statistics
from pathlib import Path

import torch
from torch import Tensor, nn

import sparselayers as sl
from sparselayers import plotting
from sparselayers.demo.common import digits

MAPPINGS = ("softmax", "sparsemax", "scale_free")
TESTS = {"as trained": (1.0, 0.0), "x 0.1": (0.1, 0.0), "x 10": (10.0, 0.0), "+ 1": (1.0, 1.0), "+ 10": (1.0, 10.0)}
SWEEP = [4.0**k for k in range(-3, 4)]


class Reader(nn.Module):
    """Patches of a picture become tokens; learned queries attend to them; a small network names the digit."""

    def __init__(self, mapping: str, side: int, patch: int, stride: int, width: int = 64, queries: int = 8) -> None:
        super().__init__()
        self.patch, self.stride, self.grid = patch, stride, (side - patch) // stride + 1
        self.embed, self.position = nn.Linear(patch**2, width), nn.Parameter(torch.randn(self.grid**2, width) / 2)
        self.norm, self.query = nn.LayerNorm(width), nn.Parameter(torch.randn(queries, width))
        if mapping == "scale_free":
            self.attention: nn.Module = sl.ScaleFreeAttention(width, 4, batch_first=True)
        else:
            self.attention = sl.MultiheadAttention(width, 4, batch_first=True, mapping=mapping)
        self.classify = nn.Sequential(nn.Linear(queries * width, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images: Tensor, seen: bool = False) -> Tensor:
        patches = images.unfold(1, self.patch, self.stride).unfold(2, self.patch, self.stride)
        tokens = self.norm(self.embed(patches.flatten(3).flatten(1, 2)) + self.position)
        queries = self.query.expand(len(images), -1, -1)
        mixed, weights = self.attention(queries, tokens, tokens, need_weights=seen, average_attn_weights=False)
        return weights if seen else self.classify(mixed.flatten(1))

    def moved(self, factor: float, shift: float) -> "Reader":
        """The same model, but its queries and keys are multiplied by `factor`, and `shift` is added to every entry."""
        other = copy.deepcopy(self)
        attention, n = other.attention, 2 * self.query.shape[1]
        if isinstance(attention, sl.ScaleFreeAttention):
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight.data *= factor
                projection.bias = nn.Parameter(torch.full((n // 2,), shift))  # the layer itself has no bias there
        else:
            attention.in_proj_weight.data[:n] *= factor
            attention.in_proj_bias.data[:n] = factor * attention.in_proj_bias.data[:n] + shift
        return other


def train(model: Reader, images: Tensor, classes: Tensor, epochs: int, lr: float = 3e-3) -> Reader:
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.1)
    batches = [batch for _ in range(epochs) for batch in torch.randperm(len(images)).split(128)]
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=len(batches))
    for batch in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), classes[batch]).backward()
        optimizer.step()
        rate.step()
    return model.requires_grad_(False)


def mnist(folder: Path) -> list[Tensor]:
    """The first 20 000 training pictures and the first 5 000 of the test, each with their classes."""
    found = []
    for part, n in (("train", 20_000), ("t10k", 5_000)):
        for kind, skip, shape in (("images-idx3", 16, (-1, 28, 28)), ("labels-idx1", 8, (-1,))):
            raw = gzip.decompress((folder / "mnist" / f"{part}-{kind}-ubyte.gz").read_bytes())
            found.append(torch.frombuffer(bytearray(raw[skip:]), dtype=torch.uint8).view(shape)[:n])
    return [found[0] / 255, found[1].long(), found[2] / 255, found[3].long()]


def measure(model: Reader, images: Tensor, classes: Tensor, tests: dict[str, tuple[float, float]]) -> dict:
    """Places that a query uses, the most that a weight moves in a test, and the accuracy in each test."""
    moved = {name: model.moved(*by) for name, by in tests.items()}
    seen = [moved[name](images[:200], seen=True) for name in TESTS]
    found = {"places": (seen[0] != 0).float().sum(-1).mean().item()}
    found["moves"] = max((weights - seen[0]).abs().max().item() for weights in seen)
    return found | {name: (m(images).argmax(-1) == classes).float().mean().item() for name, m in moved.items()}


def mean(runs: list[dict], mapping: str, what: str) -> float:
    return statistics.fmean(run[what] for run in runs if run["mapping"] == mapping)


def markdown(runs: list[dict]) -> str:
    """A row a mapping: the accuracy in each test, the places a query uses, the most a weight moves; means of the seeds."""
    cells = [["mapping", *TESTS, "places used", "a weight moves by"], ["---"] * (len(TESTS) + 3)]
    for m in MAPPINGS:
        cells.append([m, *(f"{mean(runs, m, test):.1%}" for test in TESTS)])
        cells[-1] += [f"{mean(runs, m, 'places'):.1f}", f"{mean(runs, m, 'moves'):.1g}"]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def draw(task: str, runs: list[dict], models: dict[str, Reader], images: Tensor, folder: Path) -> None:
    """Accuracy over factors and shifts; and where, in picture i, query i of the first head looks."""
    panels = {f"test accuracy, q and k {sign} ...": sign for sign in "x+"}
    curves = {y: {m: [mean(runs, m, f"{sign} {f:g}") for f in SWEEP] for m in MAPPINGS} for y, sign in panels.items()}
    title = f"{task}: accuracy when the trained queries and keys are multiplied or shifted"
    plotting.curves(SWEEP, curves, xlabel="factor, shift", title=title).savefig(folder / f"{task}-accuracy.png", dpi=80)
    maps = {}
    for mapping, model in models.items():
        for test in ("as trained", "x 0.1", "x 10"):
            weights = model.moved(*TESTS[test])(images, seen=True)[:, 0].diagonal().mT.unflatten(1, (model.grid, -1))
            pixels = weights.repeat_interleave(model.stride, 1).repeat_interleave(model.stride, 2)
            maps[f"{mapping}\n{test}"] = pixels
    title = "Where a query looks: only the coloured places have a weight above 0"
    plotting.attention_maps(images, maps, title=title).savefig(folder / f"{task}-maps.png", dpi=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with a folder mnist that holds the four .gz files of MNIST")
    parser.add_argument("--out", type=Path, help="folder for JSON and pictures of 3 seeds; nothing is written without")
    options = parser.parse_args()
    tasks: dict = {"digits": (digits(), (8, 3, 1), 12)}
    tests, seeds = TESTS, 1
    if options.data:
        tasks["mnist"] = (mnist(options.data), (28, 4, 4), 4)
    if options.out:
        tests, seeds = TESTS | {f"x {f:g}": (f, 0.0) for f in SWEEP} | {f"+ {f:g}": (1.0, f) for f in SWEEP}, 3
        options.out.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    results = {"command": "python examples/scale_free_attention.py --data FOLDER --out FOLDER", "machine": machine}
    for task, (data, sizes, epochs) in tasks.items():
        runs, models = [], {}
        for seed, mapping in itertools.product(range(seeds), MAPPINGS):
            torch.manual_seed(seed)
            models[mapping] = train(Reader(mapping, *sizes), data[0], data[1], epochs)
            runs.append({"mapping": mapping, "seed": seed} | measure(models[mapping], data[2], data[3], tests))
        schedule = f"{epochs} epochs of {len(data[0])} pictures, {len(data[2])} to test, {seeds} seed(s)"
        print(f"{task}: {schedule}\n\n{markdown(runs)}\n", flush=True)
        results[task] = {"schedule": schedule, "runs": runs}
        if options.out:
            draw(task, runs, models, data[2][:8], options.out)
            rounded = json.loads(json.dumps(results), parse_float=lambda digits: float(f"{float(digits):.4g}"))
            (options.out / "scale_free_attention.json").write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main()
