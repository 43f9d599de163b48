"""The encoder of a sparse autoencoder against inference in its dictionary: activations of a small language model.

One learns: (1) a trained encoder, be it a linear layer and a ReLU or its k largest outputs, leaves unexplained what its own
dictionary can explain; (2) `F.fista` with `NonnegativeL1` finds better codes in that dictionary, without training; (3) any
callable may stand in the place of the penalty, here one that fits the strengths of k chosen atoms, k sample by sample.
"""

from collections.abc import Callable
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

import sparselayers as sl
import sparselayers.functional as F
from sparselayers.demo.common import options, report

WIDTH, ATOMS, CONTEXT, K = 64, 8 * 64, 64, 16


class Language(nn.Module):
    """Two causal layers over characters; `stream` is what the second one hands on."""

    def __init__(self, n_symbols: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(n_symbols, WIDTH), nn.Parameter(torch.randn(CONTEXT, WIDTH) / 10)
        made = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, **made) for _ in range(2))
        self.read = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, n_symbols))

    def stream(self, symbols: Tensor) -> Tensor:
        x = self.embed(symbols) + self.place
        for layer in self.layers:
            x = layer(x, nn.Transformer.generate_square_subsequent_mask(CONTEXT), is_causal=True)
        return x


def activations(steps: int = 120) -> tuple[Tensor, Tensor]:
    """Activations of a model trained on Python's language reference: some 16 000 to train on, 400 to test, of unit mean size."""
    text = "\n".join(topics[name] for name in sorted(topics))
    symbols = torch.tensor([ord(c) % 256 for c in text])
    model = Language(256)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        pieces = symbols[torch.randint(len(symbols) - CONTEXT, (32, 1)) + torch.arange(CONTEXT + 1)]
        scores = model.read(model.stream(pieces[:, :-1]))
        optimizer.zero_grad()
        nn.functional.cross_entropy(scores.flatten(0, 1), pieces[:, 1:].flatten()).backward()
        optimizer.step()
    pieces = symbols[torch.randint(len(symbols) - CONTEXT, (256, 1)) + torch.arange(CONTEXT)]
    with torch.no_grad():
        x = model.stream(pieces).flatten(0, 1)
    x = x - x.mean(0)
    x = x[torch.randperm(len(x))] / x.square().sum(-1).mean().sqrt()
    return x[400:], x[:400]


def train(encode: Callable[[Tensor], Tensor], D: Tensor, parameters: list[Tensor], x: Tensor, lam: float) -> None:
    """Reconstruction and lam times the sum of the code, 200 steps; atoms keep norm 1."""
    optimizer = torch.optim.Adam(parameters, 2e-3)
    for _ in range(200):
        batch = x[torch.randint(len(x), (512,))]
        z = encode(batch)
        optimizer.zero_grad()
        ((batch - z @ D.mT).square().sum(-1) / 2 + lam * z.sum(-1)).mean().backward()
        optimizer.step()
        D.data /= D.data.norm(dim=0)


def largest(z: Tensor, k: int | Tensor) -> Tensor:
    """The k largest entries of each row, where positive; k may be a tensor (..., 1)."""
    rank = z.argsort(-1, descending=True).argsort(-1)
    return torch.where(rank < k, z.relu(), 0)


def codes(x: Tensor, D: Tensor, own: Tensor) -> dict[str, Tensor]:
    """The encoder's own code; Lasso codes; and as many atoms as the encoder has, sample by sample, with free strengths."""
    lasso = {
        f"Lasso, lam {lam}": F.fista(x, D, lam, depth=100, penalty=sl.NonnegativeL1()) for lam in (0.01, 0.02, 0.04)
    }
    chosen = largest(lasso["Lasso, lam 0.01"], (own > 0).sum(-1, keepdim=True)) > 0
    refitted = F.fista(x, D, 1.0, depth=100, penalty=lambda v, t: torch.where(chosen, v.relu(), 0))
    return {"its encoder": own} | lasso | {"its k, refitted": refitted}


def main() -> None:
    asked, runs = options(), []
    for seed in range(asked.seeds):
        torch.manual_seed(seed)
        x, test = activations()
        for name, keep, lam in (("ReLU", torch.relu, 0.01), (f"Top{K}", lambda z: largest(z, K), 0.0)):
            D = nn.Parameter(nn.functional.normalize(torch.randn(WIDTH, ATOMS), dim=0))
            encoder = nn.Linear(WIDTH, ATOMS)
            encoder.weight.data, encoder.bias.data = D.detach().mT.clone(), torch.zeros(ATOMS)
            train(lambda b: keep(encoder(b)), D, [D, *encoder.parameters()], x, lam)
            with torch.no_grad():
                found = codes(test, D, keep(encoder(test)))
            for code, z in found.items():
                left = (test - z @ D.mT).square().sum() / test.square().sum()
                active = (z > 0).float().sum(-1).mean().item()
                runs.append({"code": f"{name}: {code}", "seed": seed, "active": active, "unexplained": left.item()})
    print(report(f"Two dictionaries of {ATOMS} atoms for {WIDTH} features", runs, asked.out))


if __name__ == "__main__":
    main()
