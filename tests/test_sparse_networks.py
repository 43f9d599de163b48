"""The benchmark networks of CGES, DeepHoyer and learned widths: their groups, cuts and choices, and quick runs of each."""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sparselayers as sl
import sparselayers.functional as F

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    """A module of the benchmarks' folder `nets`."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(f"nets.{name}")
    finally:
        sys.path.remove(str(BENCHMARKS))


cges, choice, hoyer, neurons, record = map(load, ("cges", "choice", "hoyer", "neurons", "record"))


def test_the_choice_is_the_largest_gain_within_the_bound() -> None:
    rows = [
        {"penalty": "a", "gain": 3, "held-out error %": 1.0},
        {"penalty": "a", "gain": 9, "held-out error %": 2.0},
        {"penalty": "b", "gain": 5, "held-out error %": 1.5},
        {"penalty": "c", "gain": 7, "held-out error %": 1.6},
    ]
    assert [row["gain"] for row in choice.most(rows, "penalty", "gain", 1.5)] == [3, 5]


def test_a_feature_is_an_input_with_its_weights_to_all_outputs() -> None:
    weight = torch.randn(16, 8, 5, 5)
    rows = cges.features("conv.weight", weight)
    assert rows.shape == (8 * 25, 16)
    torch.testing.assert_close(rows.view(8, 5, 5, 16), weight.permute(1, 2, 3, 0))
    assert rows.data_ptr() == weight.data_ptr()


@pytest.mark.parametrize("method", list(cges.RUNS))
def test_the_steps_of_a_method_are_its_maps_layer_by_layer(method: str) -> None:
    torch.manual_seed(0)
    model = neurons.network(20, 9, 8, 5)
    before = copy.deepcopy(model)
    for step in cges.steps(model, method, 0.3):
        step(0.1)
    for layer, name in enumerate(cges.LAYERS):
        old = cges.features(name, before.get_parameter(name)).detach()
        mu = F.cges_mu(layer, 3)
        expected = {
            "none": lambda v: v,
            "l2": lambda v: v / 1.03,
            "l1": lambda v: F.soft_threshold(v, 0.03),
            "group": lambda v: F.group_soft_threshold(v, 0.03),
            "exclusive": lambda v: F.exclusive_threshold(v, 0.03),
            "CGES, exact prox": lambda v, mu=mu: sl.GroupExclusive(mu).prox(v, 0.03),
            "CGES, linearised": lambda v, mu=mu: F.cges_linearized_step(v, 0.03, mu),
        }[method.removesuffix(", every step")](old)
        torch.testing.assert_close(cges.features(name, model.get_parameter(name)).detach(), expected)


def test_sharing_is_counted_over_the_features_that_are_left() -> None:
    weight = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 3.0]])
    assert cges.share((weight != 0).sum(1), weight) == pytest.approx(0.375)
    assert cges.share(torch.zeros(3, dtype=torch.long), weight) == 0.0


def test_what_lies_below_a_share_of_the_deviation_is_cut() -> None:
    layer = torch.nn.Linear(4, 1)
    layer.weight.data = torch.tensor([[0.05, -0.4, 1.0, -1.0]])
    bias = layer.bias.clone()
    hoyer.cut(layer, 0.3)
    assert layer.weight.tolist() == [[0.0, pytest.approx(-0.4), 1.0, -1.0]]
    assert torch.equal(layer.bias, bias)


def test_a_narrow_network_is_the_same_function() -> None:
    torch.manual_seed(0)
    wide = neurons.network(*neurons.WIDTHS)
    with torch.no_grad():
        for name, n in zip(neurons.HIDDEN, (400, 290), strict=True):
            wide.get_parameter(name)[:n] = 0
            wide.get_parameter(name.replace("weight", "bias"))[:n] = 0
    small = neurons.narrow(wide)
    x = torch.randn(5, 784)
    assert neurons.widths_of(small) == (784, 100, 10, 10)
    assert neurons.n_parameters((784, 100, 10, 10)) == sum(p.numel() for p in small.parameters())
    torch.testing.assert_close(small(x), wide(x), atol=1e-6, rtol=1e-5)


def test_rows_far_below_the_mean_norm_are_cut_with_their_bias() -> None:
    torch.manual_seed(0)
    model = neurons.network(784, 30, 20, 10)
    model[0].weight.data[3] *= 0.01
    neurons.cut_rows(model)
    assert (model[0].weight == 0).all(1).nonzero().flatten().tolist() == [3]
    assert model[0].bias[3] == 0
    assert neurons.widths_of(neurons.narrow(model)) == (784, 29, 20, 10)


@pytest.mark.parametrize("subject", [cges, hoyer, neurons], ids=lambda module: module.__name__)
def test_a_quick_run_has_its_tables_and_is_not_run_twice(
    subject: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = argparse.Namespace(data=None, device="cpu", quick=True, full=False, pictures=None)
    tables = subject.tables(options, record.Records(tmp_path, "x"))
    assert all(table["what"] and table["rows"] for table in tables)
    monkeypatch.setattr(subject, "run", lambda *_: pytest.fail("a finished run is run again"))
    assert subject.tables(options, record.Records(tmp_path, "x")) == tables


@pytest.mark.parametrize(("subject", "shown"), [("cges", (0, 1)), ("hoyer", (0,)), ("neurons", (1, 2))])
def test_the_page_has_the_tables_of_the_runs(subject: str, shown: tuple[int, ...]) -> None:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        markdown = importlib.import_module("tables").markdown
    finally:
        sys.path.remove(str(BENCHMARKS))
    results = json.loads((BENCHMARKS / f"networks-{subject}.json").read_text())
    page = (BENCHMARKS.parent / "docs" / "networks.md").read_text()
    for i in shown:
        assert f"\n{markdown(results['tables'][i]['rows'])}" in page
