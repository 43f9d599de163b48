"""Dictionary learning: the atoms of a photograph, by a loop of a few lines on top of a layer.

One learns: (1) that by Danskin's theorem the code may be held fixed: at the best code z the Lasso value has the gradient
-(x - D z) z^T in D; (2) that averaging over minibatches what D is to fit, A = sum z z^T and B = sum x z^T, and improving
its atoms one by one gets further than Adam on single minibatches; (3) how scikit-learn does in the same time.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from sklearn.datasets import load_sample_image
from sklearn.decomposition import MiniBatchDictionaryLearning

import sparselayers as sl
from sparselayers import plotting

SIDE, ATOMS, LAM, BATCH, SCALE = 8, 128, 1.0, 256, 28.0  # SCALE: grey levels a unit


def patches(picture: torch.Tensor, step: int) -> torch.Tensor:
    x = picture.unfold(0, SIDE, step).unfold(1, SIDE, step).reshape(-1, SIDE**2) / SCALE
    x = x - x.mean(1, keepdim=True)
    return x[x.square().sum(1) > 1]  # the sky is flat


def batches(x: torch.Tensor, seconds: float):
    g, end = torch.Generator().manual_seed(1), time.perf_counter() + seconds
    while (left := (end - time.perf_counter()) / seconds) > 0:
        yield left, x[torch.randint(len(x), (BATCH,), generator=g)]


def coder(D: torch.Tensor, depth: int = 30) -> torch.nn.Module:
    return sl.unit_norm(sl.FISTA(SIDE**2, ATOMS, depth=depth, lam=LAM, schedule=sl.Constant(), dictionary=D))


def averaged(x: torch.Tensor, D: torch.Tensor, seconds: float) -> torch.Tensor:
    """Mairal, Bach, Ponce and Sapiro 2009: the past is forgotten at the rate of 8 / steps."""
    layer = coder(D).requires_grad_(False)
    A, B = torch.zeros(ATOMS, ATOMS), torch.zeros(SIDE**2, ATOMS)
    for step, (_, batch) in enumerate(batches(x, seconds), start=1):
        z, keep, D = layer(batch), (1 - 1 / step) ** 8, layer.dictionary.clone()
        A, B = keep * A + z.mT @ z, keep * B + batch.mT @ z
        for j in range(ATOMS):
            D[:, j] = torch.nn.functional.normalize(D[:, j] + (B[:, j] - D @ A[:, j]) / (A[j, j] + 1e-6), dim=0)
        layer.dictionary = D
    return layer.dictionary


def adam(x: torch.Tensor, D: torch.Tensor, seconds: float) -> torch.Tensor:
    layer = coder(D)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    for left, batch in batches(x, seconds):
        optimizer.param_groups[0]["lr"] = 1e-2 * left
        optimizer.zero_grad()
        (batch - layer.decode(layer(batch).detach())).square().sum(1).mean().div(2).backward()  # detached: Danskin
        optimizer.step()
    return layer.dictionary.detach()


def scikit_learn(x: torch.Tensor, D: torch.Tensor, seconds: float) -> torch.Tensor:
    # Its alpha is our lam: the same objective. In float64, since in float32 its solver does not converge.
    model = MiniBatchDictionaryLearning(ATOMS, alpha=LAM, fit_algorithm="cd", dict_init=D.mT.double().numpy())
    for _, batch in batches(x.double(), seconds):
        model.partial_fit(batch.numpy())
    return torch.from_numpy(model.components_).mT


@torch.no_grad()
def score(x: torch.Tensor, D: torch.Tensor) -> tuple[dict, torch.Tensor]:
    """Objective and active atoms, means over x, by one float64 solver for all; and how much each atom is used."""
    z = coder(D, depth=200)(x)
    value, active = (x - z @ D.mT).square().sum(1) / 2 + LAM * z.abs().sum(1), (z != 0).double().sum(1)
    return {"objective": round(value.mean().item(), 3), "active": round(active.mean().item(), 2)}, z.abs().sum(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of learning for each contestant")
    parser.add_argument("--out", type=Path, help="folder for dictionary_learning.json and .png; nothing without")
    options = parser.parse_args()
    picture = torch.tensor(load_sample_image("china.jpg"), dtype=torch.float32).mean(-1)
    x, held_out = patches(picture[:, :420], 2), patches(picture[:, 428:], 10).double()
    start = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:ATOMS]].mT
    results = {"seconds": options.seconds, "threads": torch.get_num_threads(), "torch": torch.__version__}
    for learn in (averaged, adam, scikit_learn):
        D = learn(x, torch.nn.functional.normalize(start, dim=0), options.seconds).double()
        results[learn.__name__], usage = score(held_out, D)
        print(f"{learn.__name__}, {options.seconds:g} s of learning:", results[learn.__name__], sep="\n  ")
        if options.out and learn is averaged:
            atoms = plotting.atoms(D[:, usage.argsort(descending=True)], title="The most used first", columns=16)
            atoms.savefig(options.out / "dictionary_learning.png")
    if options.out:
        (options.out / "dictionary_learning.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
