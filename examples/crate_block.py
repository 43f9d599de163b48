"""A transformer whose MLP is a step of sparse coding: digits read by small vision transformers with four kinds of block.

One learns: (1) CRATE's block is one line, `penalty.prox(x - step * gradient, step * lam)`, an ISTA step from the token
itself; (2) CRATE-alpha's is an `sl.ISTA` layer with more atoms than features, and a second dictionary that reads its code
back; (3) what they cost and give beside the usual MLP and beside nothing: parameters, test accuracy, exact zeros.
"""

import torch
from torch import Tensor, nn

import sparselayers as sl
from sparselayers.demo.common import digits, fit, options, report

WIDTH, HEADS, LAYERS, EPOCHS = 48, 4, 2, 10
STEP = LAM = 0.1  # CRATE's own
NONNEGATIVE = sl.NonnegativeL1()


class Nothing(nn.Module):
    def forward(self, x: Tensor, normed: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor, normed: Tensor) -> tuple[Tensor, Tensor]:
        code = self.up(normed).relu()
        return x + self.down(code), code


class Crate(nn.Module):
    """The token becomes its own code after one ISTA step in a square dictionary (Yu et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.D = nn.Parameter(nn.init.orthogonal_(torch.empty(WIDTH, WIDTH)))

    def forward(self, x: Tensor, normed: Tensor) -> tuple[Tensor, Tensor]:
        gradient = (normed @ self.D.mT - normed) @ self.D
        code = NONNEGATIVE.prox(normed - STEP * gradient, STEP * LAM)
        return code, code


class CrateAlpha(nn.Module):
    """Two ISTA steps in an overcomplete dictionary, read back by another, plus the token (Yang et al. 2024)."""

    def __init__(self) -> None:
        super().__init__()
        self.code = sl.ISTA(WIDTH, 4 * WIDTH, depth=2, lam=LAM, penalty=NONNEGATIVE, schedule=sl.Constant())
        self.decode = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, normed: Tensor) -> tuple[Tensor, Tensor]:
        code = self.code(normed)
        return x + self.decode(code), code


class Transformer(nn.Module):
    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(4, WIDTH), nn.Parameter(torch.randn(16, WIDTH) / 2)
        self.attentions = nn.ModuleList(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * LAYERS))
        self.blocks = nn.ModuleList(block() for _ in range(LAYERS))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10))

    def forward(self, images: Tensor, seen: list[Tensor] | None = None) -> Tensor:
        """Scores of the ten digits; tokens are the 16 patches of 2 x 2 pixels; `seen` collects the codes of the blocks."""
        x = self.embed(images.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).flatten(1, 2)) + self.place
        for i in range(LAYERS):
            normed = self.norms[2 * i](x)
            x = x + self.attentions[i](normed, normed, normed, need_weights=False)[0]
            x, code = self.blocks[i](x, self.norms[2 * i + 1](x))
            if seen is not None:
                seen.append(code)
        return self.head(x.mean(1))


def run(block: type[nn.Module], seed: int) -> dict:
    torch.manual_seed(seed)
    data, model = digits(), Transformer(block)
    accuracy = fit(model, data, EPOCHS, lr=3e-3)
    codes: list[Tensor] = []
    model(data.test_images, codes)
    zeros = torch.stack(codes).eq(0).float().mean().item()
    weights = sum(p.numel() for p in model.blocks[0].parameters())
    return {"block": block.__name__, "seed": seed, "its weights": weights, "accuracy": accuracy, "zeros": zeros}


def main() -> None:
    asked = options()
    runs = [run(block, seed) for block in (Nothing, MLP, Crate, CrateAlpha) for seed in range(asked.seeds)]
    title = f"Digits, {LAYERS} layers of width {WIDTH}, {EPOCHS} epochs, mean of {asked.seeds} seed(s)"
    print(report(title, runs, asked.out))


if __name__ == "__main__":
    main()
