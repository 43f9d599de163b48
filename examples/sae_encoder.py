"""The encoder of a sparse autoencoder against inference in its dictionary: activations of a small language model.

One learns: (1) a trained encoder, be it a linear layer and a ReLU or its k largest outputs, leaves unexplained what its own
dictionary can explain; (2) `F.fista` with `NonnegativeL1` finds better codes in that dictionary, without training; (3) any
callable may stand in the place of the penalty, here one that fits the strengths of k chosen atoms, k sample by sample.
"""

from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

import sparselayers as sl
import sparselayers.functional as F
from sparselayers.demo.common import options, report

WIDTH, ATOMS, CONTEXT, K = 64, 8 * 64, 64, 16


def activations(steps: int = 120) -> tuple[Tensor, Tensor]:
    """What two causal layers trained on Python's language reference make of it: some 16 000 to train on, 400 to test."""
    text = "\n".join(topics[name] for name in sorted(topics))
    symbols = torch.tensor([ord(c) % 256 for c in text])
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
    layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    embed, place, read = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH), nn.Linear(WIDTH, 256)
    mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)

    def stream(n: int) -> tuple[Tensor, Tensor]:
        pieces = symbols[torch.randint(len(symbols) - CONTEXT, (n, 1)) + torch.arange(CONTEXT + 1)]
        return layers(embed(pieces[:, :-1]) + place.weight / 10, mask, is_causal=True), pieces[:, 1:]

    optimizer = torch.optim.AdamW([p for part in (layers, embed, place, read) for p in part.parameters()], 3e-3)
    for _ in range(steps):
        x, following = stream(32)
        optimizer.zero_grad()
        nn.functional.cross_entropy(read(x).flatten(0, 1), following.flatten()).backward()
        optimizer.step()
    x = stream(256)[0].detach().flatten(0, 1)
    x = (x - x.mean(0))[torch.randperm(len(x))]
    return (x / x.square().sum(-1).mean().sqrt()).tensor_split([len(x) - 400])


def largest(z: Tensor, k: int | Tensor) -> Tensor:
    """The k largest entries of each row, where positive; k may be a tensor (..., 1)."""
    return torch.where(z.argsort(-1, descending=True).argsort(-1) < k, z.relu(), 0)


class Autoencoder(nn.Module):
    """x -> D z with z = relu(E x + b), of which only the k largest if k is given; atoms keep norm 1."""

    def __init__(self, k: int | None) -> None:
        super().__init__()
        self.D, self.k = nn.Parameter(nn.functional.normalize(torch.randn(WIDTH, ATOMS), dim=0)), k
        self.encoder = nn.Linear(WIDTH, ATOMS)
        self.encoder.weight.data, self.encoder.bias.data = self.D.detach().mT.clone(), torch.zeros(ATOMS)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        return z.relu() if self.k is None else largest(z, self.k)

    def fit(self, x: Tensor, lam: float, steps: int = 200) -> None:
        optimizer = torch.optim.Adam(self.parameters(), 2e-3)
        for _ in range(steps):
            batch = x[torch.randint(len(x), (512,))]
            z = self(batch)
            optimizer.zero_grad()
            ((batch - z @ self.D.mT).square().sum(-1) / 2 + lam * z.sum(-1)).mean().backward()
            optimizer.step()
            self.D.data /= self.D.data.norm(dim=0)
        self.requires_grad_(False)


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
        for name, k, lam in (("ReLU", None, 0.01), (f"Top{K}", K, 0.0)):
            model = Autoencoder(k)
            model.fit(x, lam)
            for code, z in codes(test, model.D, model(test)).items():
                left = (test - z @ model.D.mT).square().sum() / test.square().sum()
                active = (z > 0).float().sum(-1).mean().item()
                runs.append({"code": f"{name}: {code}", "seed": seed, "active": active, "unexplained": left.item()})
    print(report(f"Two dictionaries of {ATOMS} atoms for {WIDTH} features", runs, asked.out))


if __name__ == "__main__":
    main()
