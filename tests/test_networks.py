"""The frame of `benchmarks/networks.py`: data, records, and a loop whose resumed run is the run that never stopped."""

from __future__ import annotations

import gzip
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import sparselayers as sl

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


def load(name: str) -> ModuleType:
    """A module of the benchmarks' folder `nets`."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(f"nets.{name}")
    finally:
        sys.path.remove(str(BENCHMARKS))


data, record, train = load("data"), load("record"), load("train")


@pytest.mark.parametrize("name", ["MNIST", "Fashion-MNIST", "Covertype", "SDD"])
def test_without_a_folder_the_data_are_made_up_and_split(name: str) -> None:
    split = data.READERS[name](None)
    assert [len(part) for part in split] == [400, 400, 100, 100, 200, 200]
    assert split.y.unique().numel() == {"Covertype": 7, "SDD": 11}.get(name, 10)
    assert len(split.whole().x) == 500
    assert split.flat().x.ndim == 2


def test_pictures_that_are_not_the_original_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    for name in data.MD5:
        (tmp_path / "mnist" / f"{name}.gz").write_bytes(gzip.compress(b"no pictures"))
    with pytest.raises(ValueError, match="is not the original"):
        data.mnist(tmp_path)


def test_pictures_are_read_standardised_and_the_last_are_held_out(tmp_path: Path) -> None:
    (tmp_path / "fashion_mnist").mkdir()
    generator = torch.Generator().manual_seed(0)
    for part, n in (("train", data.HELD + 2), ("t10k", 3)):
        for kind, skip, size in (("images-idx3", 16, 784), ("labels-idx1", 8, 1)):
            raw = torch.randint(256 if size > 1 else 10, (skip + n * size,), generator=generator, dtype=torch.uint8)
            raw[-1] = 7
            path = tmp_path / "fashion_mnist" / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(bytes(raw.tolist()), 1))
    split = data.fashion_mnist(tmp_path)
    assert (len(split.x), len(split.held_x), len(split.test_x)) == (2, data.HELD, 3)
    assert split.held_y[-1] == split.test_y[-1] == 7
    torch.testing.assert_close(split.held_x[-1, 0, -1, -1], torch.tensor((7 / 255 - 0.2860) / 0.3530))


def test_rows_are_standardised_by_the_training_part() -> None:
    features = torch.randn(200, 3).numpy() * 5 + 2
    features[:, 1] = 4.0
    split = data._rows(features, torch.arange(200).numpy() % 3)
    assert (len(split.test_x), len(split.held_x), len(split.x)) == (40, 16, 144)
    torch.testing.assert_close(split.x.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    assert not split.x[:, 1].any()


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = record.Records(tmp_path, "some")
    assert first.get("one run", lambda checkpoint: {"name": checkpoint.name}) == {"name": "one_run.pt"}
    again = record.Records(tmp_path, "some")
    assert again.get("one run", lambda _: pytest.fail("run again")) == {"name": "one_run.pt"}
    assert json.loads((tmp_path / "some.json").read_text()) == {"one run": {"name": "one_run.pt"}}


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 10))


def build(model: nn.Module) -> object:
    regularizer = sl.Regularizer(model, sl.GroupL2(), 1e-3)
    return train.Trainer(sl.ProxSGD(model.parameters(), lr=0.05, momentum=0.9, regularizer=regularizer))


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path: Path) -> None:
    x, y = data.mnist(None)[:2]
    plan = train.Plan(epochs=3, augment=lambda images: images + 0.1 * torch.randn_like(images))
    whole, _ = train.fit(network(), x, y, plan, build)

    def stop(model: nn.Module, epochs: int) -> nn.Module:
        if epochs == 3:
            raise KeyboardInterrupt
        return model

    file = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train.fit(network(), x, y, plan, build, after_epoch=stop, checkpoint=file)
    resumed, seconds = train.fit(network(), x, y, plan, build, checkpoint=file)
    assert seconds > 0
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert train.error(resumed, x, y) < 90


def test_the_rate_falls_and_the_hooks_count_the_steps() -> None:
    x, y = data.mnist(None)[:2]
    model, seen = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = train.Plan(epochs=2, batch=200)
    hook = lambda step: seen.append((step, optimizer.param_groups[0]["lr"]))  # noqa: E731
    train.fit(model, x, y, plan, lambda _: train.Trainer(optimizer, before_step=hook))
    assert plan.steps(len(x)) == 4
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert [round(lr, 4) for _, lr in seen] == [0.1, 0.0854, 0.05, 0.0146]


def test_a_model_that_was_cut_gets_a_new_trainer() -> None:
    x, y = data.mnist(None)[:2]
    built = []

    def cut(model: nn.Module, epochs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10)) if epochs == 1 else model

    def counted(model: nn.Module) -> object:
        built.append(len(model))
        return train.Trainer(torch.optim.SGD(model.parameters(), lr=0.01))

    model, _ = train.fit(network(), x, y, train.Plan(epochs=2), counted, after_epoch=cut)
    assert built == [5, 2]
    assert len(model) == 2


def quick(tmp_path: Path, *options: str) -> dict:
    out, script = tmp_path / "out.json", BENCHMARKS / "networks.py"
    command = [sys.executable, str(script), *options, "--quick", "--work", str(tmp_path / "work"), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.long
def test_lenet_runs_is_resumed_and_draws(tmp_path: Path) -> None:
    first = quick(tmp_path, "lenet", "--pictures", str(tmp_path))
    assert quick(tmp_path, "lenet")["tables"][0] == first["tables"][0]
    rows = {row["method"]: row for row in first["tables"][0]["rows"]}
    best = rows["ours, with moved pictures"]
    assert best["weights zero %"] >= 94.12
    assert best["neurons zero %"] >= 73.52
    assert {path.name for path in tmp_path.glob("*.png")} == {"networks-lenet-error.png", "networks-lenet-left.png"}


@pytest.mark.long
def test_lenet_on_the_schedule_of_the_paper_in_one_program(tmp_path: Path) -> None:
    (table,) = quick(tmp_path, "lenet", "--full")["tables"]
    assert {row["method"] for row in table["rows"]} == set(load("lenet_methods").PENALTIES)


def dead(model: nn.Sequential, share: float) -> nn.Sequential:
    """Some filters, inputs and hidden neurons without weights, with biases that go on speaking."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, dim in (("conv1", 0), ("conv2", 0), ("fc1", 1), ("fc1", 0), ("fc2", 1)):
            layer = getattr(model, name)
            layer.bias.normal_(0, 0.3, generator=generator)
            n = layer.weight.shape[dim]
            layer.weight.index_fill_(dim, torch.randperm(n, generator=generator)[: int(share * n)], 0)
    return model


def test_a_cut_lenet_says_what_the_whole_one_says() -> None:
    slim = load("slim")
    torch.manual_seed(0)
    whole, x = dead(slim.lenet(), 0.6), torch.randn(3, 1, 28, 28)
    small = slim.cut(whole)
    assert (sum(p.numel() for p in small.parameters()), sum(slim.sizes(small))) == slim.left(whole) == slim.left(small)
    assert slim.cut(small) is small
    again = slim.cut(dead(slim.cut(dead(slim.lenet(), 0.3)), 0.2))
    for model, smaller in ((whole, small), (slim.grown(small), small), (slim.grown(again), again)):
        torch.testing.assert_close(smaller(x), model(x), atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in slim.lenet().parameters()) == slim.PARAMETERS
    assert sum(slim.sizes(slim.lenet())) == slim.NEURONS


@pytest.mark.parametrize("lam", [1e-9, 1e6])
def test_every_row_of_lenet_takes_a_step(lam: float) -> None:
    methods, slim, x = load("lenet_methods"), load("slim"), torch.randn(4, 1, 28, 28)
    for method in methods.METHODS.values():
        torch.manual_seed(0)
        model = method.before(slim.lenet())
        trainer = method.build(model, lam, 40)
        for step in (38, 39):
            trainer.before_step(step)
            loss = model(x).square().mean()
            (loss if trainer.extra is None else loss + trainer.extra()).backward()
            trainer.optimizer.step()
            trainer.after_step(step)
        plain = method.after(model)
        assert plain(x).shape == (4, 10)


def test_gates_fold_into_the_weights() -> None:
    methods, slim, x = load("lenet_methods"), load("slim"), torch.randn(4, 1, 28, 28)
    torch.manual_seed(0)
    model = methods.gated(slim.lenet()).eval()
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, sl.HardConcrete):
                layer.log_alpha.normal_(0, 3)
    torch.testing.assert_close(methods.ungated(model)(x), model(x), atol=1e-5, rtol=1e-5)


def test_moved_pictures_keep_their_shape_and_most_of_their_ink() -> None:
    x = torch.zeros(5, 1, 28, 28)
    x[:, :, 10:18, 10:18] = 1
    moved = load("augment").jitter(x)
    assert moved.shape == x.shape
    assert (moved.sum((1, 2, 3)) / 64).sub(1).abs().max() < 0.5
    assert (moved != x).any()
    torch.testing.assert_close(load("augment").jitter(x, 0.0, 0.0, 0.0), x, atol=1e-5, rtol=0)


def test_the_page_shows_what_the_benchmark_found() -> None:
    page = (ROOT / "docs" / "networks.md").read_text()
    rows = json.loads((BENCHMARKS / "networks-lenet.json").read_text())["tables"][0]["rows"]
    for row in rows:
        numbers = [
            f"{row[name]:g}" for name in ("weights zero %", "neurons zero %", "test error %", "epochs", "minutes")
        ]
        assert " | ".join([f"| {row['method']}", *numbers]) + " |" in page, row["method"]
