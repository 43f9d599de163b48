"""A scattering-style homotopy classifier: fixed wavelets, a sparse code of each place by an ISTA layer, a linear head.

One learns: (1) the classifier of Zarka, Thiry, Angles and Mallat (ICLR 2020) is `sl.ISTA` with `NonnegativeL1` and
`Homotopy` between fixed features and `nn.Linear`, trained end to end, its strength too; (2) here lam_max belongs to each
place of each picture, so that faint places are coded like loud ones; (3) what it gives beside a linear head and an MLP on
the same features, when there are few digits to learn from. No claim beyond small digits.
"""

import math

import torch
from torch import Tensor, nn

import sparselayers as sl
from sparselayers.demo.common import digits, fit, options, report

ANGLES, ATOMS, EPOCHS, TRAINED_ON = 8, 64, 60, 100


def wavelets(size: int = 7) -> Tensor:
    """Complex Morlet wavelets of zero mean at two scales and eight angles, (16, 1, size, size)."""
    y, x = torch.meshgrid(*2 * [torch.arange(size) - size // 2.0], indexing="ij")
    found = []
    for scale, angle in ((s, math.pi * a / ANGLES) for s in (0.8, 1.6) for a in range(ANGLES)):
        envelope = torch.exp(-(x.square() + y.square()) / (2 * scale**2))
        wave = torch.exp(0.75j * math.pi / scale * (x * math.cos(angle) + y * math.sin(angle)))
        wave = envelope * (wave - (envelope * wave).sum() / envelope.sum())
        found.append(wave / wave.abs().sum())
    return torch.stack(found).unsqueeze(1)


def scattering(images: Tensor) -> Tensor:
    """The picture, and its wavelets' moduli, each averaged over the 16 places of 2 x 2 pixels: (n, 16, channels)."""
    filters, images = wavelets(), images.unsqueeze(1)
    moved = [nn.functional.conv2d(images, part, padding="same") for part in (filters.real, filters.imag)]
    channels = torch.cat([images, torch.hypot(*moved)], 1)
    return nn.functional.avg_pool2d(channels, 2).flatten(2).mT


def homotopy(channels: int) -> nn.Module:
    code = sl.ISTA(
        channels,
        ATOMS,
        depth=12,
        lam=0.02,
        penalty=sl.NonnegativeL1(),
        schedule=sl.Homotopy(),
        learn=("dictionary", "lam"),
    )
    return nn.Sequential(code, nn.Flatten(), nn.BatchNorm1d(16 * ATOMS), nn.Linear(16 * ATOMS, 10))


def mlp(channels: int) -> nn.Module:
    """As the homotopy head, but the code of a place is one linear layer and a ReLU."""
    code = nn.Sequential(nn.Linear(channels, ATOMS), nn.ReLU())
    return nn.Sequential(code, nn.Flatten(), nn.BatchNorm1d(16 * ATOMS), nn.Linear(16 * ATOMS, 10))


def linear(channels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16 * channels), nn.Linear(16 * channels, 10))


def main() -> None:
    asked, data, runs = options(), digits(), []
    features = scattering(data.train_images)
    size = features.square().sum(-1).mean().sqrt()
    data = data._replace(
        train_images=features[:TRAINED_ON] / size,
        train_classes=data.train_classes[:TRAINED_ON],
        test_images=scattering(data.test_images) / size,
    )
    for head in (linear, mlp, homotopy):
        for seed in range(asked.seeds):
            torch.manual_seed(seed)
            model = head(features.shape[-1])
            accuracy = fit(model, data, EPOCHS, lr=3e-3)
            zeros = (model[0](data.test_images) == 0).float().mean().item()
            weights = sum(p.numel() for p in model.parameters())
            runs.append({"head": head.__name__, "seed": seed, "weights": weights, "accuracy": accuracy, "zeros": zeros})
    print(report(f"{TRAINED_ON} digits to learn from, {EPOCHS} epochs, mean of {asked.seeds} seed(s)", runs, asked.out))


if __name__ == "__main__":
    main()
