"""Small decoders with softmax, sparsemax and entmax-1.5, with and without a scale that grows with the length.

One learns: (1) the mapping is one word, `mapping=` of `F.scaled_dot_product_attention`, and a scale that adapts to the
length is a factor on the query; (2) what the word does to a character-level language model, trained on the language
reference that ships with Python: bits per character and the share of weights that are exactly zero, by layer; (3) which
of the models still sort at twice and four times the length they were trained on.

    python examples/attention_swap.py                      # a short run: seconds a model, nothing converges
    python examples/attention_swap.py --full --out FOLDER  # the run of docs/attention-swap.md; JSON and pictures in FOLDER
"""

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

import sparselayers.functional as F
from sparselayers import plotting

MODELS = {  # name -> (mapping, whether the scale adapts to the length)
    "softmax": ("softmax", False),
    "softmax, scaled": ("softmax", True),
    "sparsemax": ("sparsemax", False),
    "entmax15": ("entmax15", False),
    "entmax15, scaled": ("entmax15", True),
}
WIDTH, HEADS, LAYERS = 64, 4, 2
CONTEXT = 128  # characters
NUMBERS, TRAINED = 128, 16  # sorting: which numbers there are, and the largest length trained on
LENGTHS = (TRAINED, 2 * TRAINED, 4 * TRAINED)
SLOPES = torch.tensor([0.0, 0.0, 1 / 16, 1 / 4])  # of each head; two heads know nothing of distance, two do


class LengthScale(nn.Module):
    """1 + softplus(b) log(i + 2)^(2 tanh(g)) for place i, with b and g linear in what is there; heads with slope 0 only."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 2 * HEADS)

    def forward(self, x: Tensor) -> Tensor:
        b, g = self.project(x).mT.unsqueeze(-1).chunk(2, 1)
        growth = torch.arange(2, x.shape[1] + 2).log().unsqueeze(-1) ** (2 * g.tanh())
        return torch.where(SLOPES.view(-1, 1, 1) == 0, 1 + nn.functional.softplus(b) * growth, 1)


class Block(nn.Module):
    """Attention, then a small network at each place, both added to what comes in."""

    def __init__(self, mapping: str, scaled: bool) -> None:
        super().__init__()
        self.mapping = mapping
        self.scale = LengthScale() if scaled else None
        self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, seen: list[Tensor] | None) -> Tensor:
        h = self.norm(x)
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.project(h).chunk(3, -1))
        if self.scale is not None:
            query = query * self.scale(h)
        place = torch.arange(x.shape[1])
        mask = -SLOPES.view(-1, 1, 1) * (place.unsqueeze(-1) - place)
        mask = mask.masked_fill(place.unsqueeze(-1) < place, -torch.inf)
        mixed = F.scaled_dot_product_attention(query, key, value, mask, mapping=self.mapping)  # the one word
        if seen is not None:  # the identity in the place of the values shows the weights
            eye = torch.eye(x.shape[1]).expand(*key.shape[:2], -1, -1)
            seen.append(F.scaled_dot_product_attention(query, key, eye, mask, mapping=self.mapping))
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Decoder(nn.Module):
    """Scores of the next symbol at each place; `seen` collects the attention weights of each layer."""

    def __init__(self, n_symbols: int, mapping: str, scaled: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(n_symbols, WIDTH)
        self.blocks = nn.ModuleList(Block(mapping, scaled) for _ in range(LAYERS))
        self.read = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, n_symbols))

    def forward(self, symbols: Tensor, seen: list[Tensor] | None = None) -> Tensor:
        x = self.embed(symbols)
        for block in self.blocks:
            x = block(x, seen)
        return self.read(x)


def train(model: Decoder, batches: Callable[[], tuple[Tensor, Tensor]], steps: int, lr: float) -> Iterator[float]:
    """One loss a step, in nats; a target of -100 does not count. The rate warms up and falls to 0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    warm = max(1, steps // 20)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    for _ in range(steps):
        symbols, target = batches()
        loss = nn.functional.cross_entropy(model(symbols).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        yield loss.item()


def sorting(n: int, length: int) -> tuple[Tensor, Tensor]:
    """`length` different numbers, a separator, and the same in order; the target is what comes next after the separator."""
    numbers = torch.rand(n, NUMBERS).argsort(-1)[:, :length]
    symbols = torch.cat([numbers, torch.full((n, 1), NUMBERS), numbers.sort(-1).values], -1)
    target = symbols[:, 1:].clone()
    target[:, :length] = -100
    return symbols[:, :-1], target


def reference() -> tuple[Tensor, Tensor, str]:
    """Python's language reference, as `help()` has it: nine tenths to train on, one tenth held out, and its alphabet."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    alphabet = "".join(sorted(set(text)))
    place = {character: i for i, character in enumerate(alphabet)}
    symbols = torch.tensor([place[character] for character in text])
    train, held_out = symbols.split([len(symbols) * 9 // 10, len(symbols) - len(symbols) * 9 // 10])
    return train, held_out, alphabet


def pieces(text: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Characters from each start on, and the characters that come next."""
    cut = text[starts.unsqueeze(-1) + torch.arange(length + 1)]
    return cut[:, :-1], cut[:, 1:]


@torch.no_grad()
def bits(model: Decoder, symbols: Tensor, target: Tensor, seen: list[Tensor] | None = None) -> float:
    """Cross-entropy a character."""
    return nn.functional.cross_entropy(model(symbols, seen).flatten(0, 1), target.flatten()).item() / math.log(2)


def language(steps: int) -> tuple[list[dict], dict, dict[str, list[Tensor]]]:
    """A row a model, curves over the steps, and each layer's attention weights on a held-out piece."""
    text, held_out, alphabet = reference()
    # The same characters in long pieces and in short ones.
    long = pieces(held_out, torch.linspace(0, len(held_out) - 4 * CONTEXT - 1, 16).long(), 4 * CONTEXT)
    short = (long[0].reshape(-1, CONTEXT), long[1].reshape(-1, CONTEXT))
    visible = torch.ones(CONTEXT, CONTEXT).tril().bool()
    places = [2**k for k in range(4, 20) if 2**k < steps] + [steps]
    keys = ["bits, training", "bits, held out", *(f"zeros, layer {layer}" for layer in range(1, LAYERS + 1))]
    curves: dict[str, dict[str, list[float]]] = {key: {} for key in keys}
    rows, maps = [], {}
    for name in MODELS:
        torch.manual_seed(0)
        model, losses = Decoder(len(alphabet), *MODELS[name]), []

        def batches() -> tuple[Tensor, Tensor]:
            return pieces(text, torch.randint(len(text) - CONTEXT, (16,)), CONTEXT)

        for step, loss in enumerate(train(model, batches, steps, lr=3e-3), 1):
            losses.append(loss / math.log(2))
            if step in places:
                seen: list[Tensor] = []
                found = [statistics.fmean(losses[-16:]), bits(model, *short, seen)]
                found += [(w[..., visible] == 0).float().mean().item() for w in seen]
                for key, value in zip(keys, found, strict=True):
                    curves[key].setdefault(name, []).append(value)
        maps[name] = [w[0] for w in seen]
        last = {key: curves[key][name][-1] for key in keys}
        rows.append({"model": name, **last, "bits, 4x context": bits(model, *long)})
    return rows, {"steps": places, "curves": curves}, maps


@torch.no_grad()
def sorts(model: Decoder, length: int, n: int) -> tuple[float, float]:
    """Shares of lists and of places that come out right.

    The true places before are given; a list is right here exactly if it is right when the model reads its own answer.
    """
    torch.manual_seed(length)  # the same lists for every model
    symbols, target = sorting(n, length)
    right = (model(symbols).argmax(-1) == target)[:, length:]
    return right.all(-1).float().mean().item(), right.float().mean().item()


def generalisation(steps: int, seeds: int, n: int) -> list[dict]:
    """A row a model: `sorts` at each length, the mean over the seeds, and for each seed."""
    rows = []
    for name in MODELS:
        found = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            model = Decoder(NUMBERS + 1, *MODELS[name])
            for _ in train(model, lambda: sorting(32, int(torch.randint(2, TRAINED + 1, ()))), steps, lr=3e-3):
                pass
            found.append([sorts(model, length, n) for length in LENGTHS])
        row: dict = {"model": name}
        for length, each_seed in zip(LENGTHS, zip(*found, strict=True), strict=True):
            lists, places = zip(*each_seed, strict=True)
            row |= {f"lists, {length}": statistics.fmean(lists), f"places, {length}": statistics.fmean(places)}
            row[f"each seed, {length}"] = list(each_seed)
        rows.append(row)
    return rows


def markdown(rows: list[dict]) -> str:
    """A table; lists of numbers stay in the JSON."""
    keys = [key for key in rows[0] if not isinstance(rows[0][key], list)]
    cells = [[f"{row[key]:.3g}" if isinstance(row[key], float) else row[key] for key in keys] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [keys, ["---"] * len(keys), *cells])


def draw(curves: dict, maps: dict[str, list[Tensor]], sorted_rows: list[dict], folder: Path) -> None:
    """language.png, sorting.png and attention.png: two heads a layer, the last 48 characters of a piece."""
    import matplotlib
    from matplotlib.figure import Figure

    plotting.curves(
        curves["steps"], curves["curves"], xlabel="steps", title="A character model of Python's language reference"
    ).savefig(folder / "language.png", dpi=80)
    panels = {
        f"share of {what} sorted right": {row["model"]: [row[f"{what}, {n}"] for n in LENGTHS] for row in sorted_rows}
        for what in ("lists", "places")
    }
    title = f"Sorting, trained on lists of up to {TRAINED}"
    plotting.curves(LENGTHS, panels, xlabel="numbers in the list", title=title).savefig(folder / "sorting.png", dpi=80)
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="white")
    columns = [(layer, head) for layer in range(LAYERS) for head in (0, HEADS - 1)]
    figure = Figure(figsize=(2.4 * len(columns), 2.4 * len(maps)), dpi=80, layout="constrained")
    for line, (name, layers) in zip(figure.subplots(len(maps), len(columns), squeeze=False), maps.items(), strict=True):
        for axes, (layer, head) in zip(line, columns, strict=True):
            weights = layers[layer][head, -48:, -48:]
            drawn = axes.imshow(weights.sqrt().where(weights > 0, torch.nan).numpy(), cmap=colours, vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[], title=f"layer {layer + 1}, slope {SLOPES[head]:g}")
        line[0].set_ylabel(name)
    figure.colorbar(drawn, ax=figure.axes, label="root of a weight; white: exactly 0", shrink=0.5)
    figure.savefig(folder / "attention.png")


def machine() -> dict:
    """What the run ran on, without the machine's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found: dict = {
        "cpu": next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine())
    }
    found |= {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return found | {"torch": torch.__version__, "python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="train until something is learnt: about 20 minutes")
    parser.add_argument(
        "--out", type=Path, help="folder for attention_swap.json and the pictures; nothing is written without"
    )
    options = parser.parse_args()
    language_steps, sorting_steps, seeds, lists = (1024, 4000, 2, 500) if options.full else (8, 20, 1, 50)
    start = time.perf_counter()
    rows, curves, maps = language(language_steps)
    what = f"Character model, {language_steps} steps of 16 x {CONTEXT} characters, 1 seed"
    tables = [{"what": what, "rows": rows}]
    print(f"{what}\n\n{markdown(rows)}\n", flush=True)
    rows = generalisation(sorting_steps, seeds, lists)
    what = f"Sorting, {sorting_steps} steps of 32 lists of 2 to {TRAINED} numbers, mean of {seeds} seed(s), {lists} lists each"
    tables.append({"what": what, "rows": rows})
    print(f"{what}\n\n{markdown(rows)}")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        minutes = round((time.perf_counter() - start) / 60, 1)
        command = f"python examples/attention_swap.py{' --full' if options.full else ''} --out FOLDER"
        results = {"command": command, "minutes": minutes, "machine": machine(), "tables": tables, "curves": curves}
        short = json.loads(json.dumps(results), parse_float=lambda digits: round(float(digits), 4))
        (options.out / "attention_swap.json").write_text(json.dumps(short, indent=1) + "\n", encoding="utf-8")
        draw(curves, maps, rows, options.out)


if __name__ == "__main__":
    main()
