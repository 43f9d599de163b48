"""The LISTA family on planted codes: what each variant reaches by layer, untrained and after a short training.

One learns: (1) untrained, "lista" and "cp" are ISTA, while the analytic weight and the three constants of "hyper" already
recover the codes; (2) a few steps of training help where there is something to learn, and how many numbers that takes;
(3) `tune` needs no gradient; (4) `F.analytic_rate` says beforehand whether the dictionary suits the last two.
"""

import torch

import sparselayers as sl
import sparselayers.functional as F

DEPTH, N_ACTIVE = 12, 8
SHOWN = (1, 2, 4, 6, 8, 10, 12)


def planted(n_samples: int, D: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Signals x = D z and their codes z, each with a few active atoms."""
    z = torch.randn(n_samples, D.shape[1])
    z = torch.where(torch.rand_like(z).argsort(-1) < N_ACTIVE, z, 0.0)
    return z @ D.mT, z


@torch.no_grad()
def by_layer(layer: torch.nn.Module, x: torch.Tensor, truth: torch.Tensor) -> str:
    """The error in dB after some of the layers."""
    ratios = [(z - truth).square().sum() / truth.square().sum() for z in layer(x, trace=True)[1]]
    return "".join(f"{10 * ratios[k - 1].log10().item():7.1f}" for k in SHOWN)


def train(layer: sl.LISTA, D: torch.Tensor, steps: int = 40) -> None:
    """Adam on fresh signals, supervised at every layer."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3 if layer.variant in ("lista", "cp") else 2e-2)
    for _ in range(steps):
        x, truth = planted(64, D)
        _, trace = layer(x, trace=True)
        optimizer.zero_grad()
        sum((z - truth).square().sum() for z in trace).backward()
        optimizer.step()


def main() -> None:
    torch.manual_seed(0)
    D = torch.nn.functional.normalize(torch.randn(100, 200), dim=0)
    x, truth = planted(256, D)
    print(f"rate of steps with the analytic weight on drawn supports: {F.analytic_rate(D, N_ACTIVE).max().item():.2f}")
    print("\nerror against the planted codes in dB, by layer")
    print("variant".ljust(28) + "numbers".rjust(9) + "".join(f"{k:7d}" for k in SHOWN))
    for name, variant, support in (
        ("ISTA", None, None),
        ("lista", "lista", None),
        ("cp", "cp", None),
        ("alista", "alista", None),
        ("alista, selecting", "alista", sl.SupportSelection(rate=1.0, most=6.0)),
        ("hyper", "hyper", None),
    ):
        options = {"depth": DEPTH, "lam": 0.03, "dictionary": D}
        if variant is None:
            print(name.ljust(37) + by_layer(sl.ISTA(100, 200, **options, learn=()), x, truth))
            continue
        layer = sl.LISTA(100, 200, **options, variant=variant, support=support)
        print(name.ljust(37) + by_layer(layer, x, truth))
        if variant == "hyper":
            layer.tune(*planted(100, D), trials=30)
            learned = 3
        else:
            train(layer, D)
            learned = sum(p.numel() for p in layer.parameters())
        after = f"  {'tuned' if variant == 'hyper' else 'trained'}"
        print(after.ljust(28) + f"{learned:9d}" + by_layer(layer, x, truth))


if __name__ == "__main__":
    main()
