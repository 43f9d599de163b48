"""How weights are cut into groups, one prox over many tensors, and the report: against slicing by hand and plain loops."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import sparselayers as sl
from sparselayers.sparsify.multitensor import CHUNK
from sparselayers.sparsify.multitensor import SMALL as JOINED

from .registry import PENALTIES

LAM, LR = 0.7, 0.5
LAYERS = {
    "Linear": lambda: nn.Linear(3, 4),
    "Conv1d": lambda: nn.Conv1d(3, 4, 2),
    "Conv2d": lambda: nn.Conv2d(3, 4, (2, 3)),
    "Conv2d(groups)": lambda: nn.Conv2d(4, 6, 2, groups=2),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(3, 4, 2),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(3, 4, (2, 3)),
    "ConvTranspose2d(groups)": lambda: nn.ConvTranspose2d(4, 6, 2, groups=2),
}
KINDS = ("output", "input", "neuron", "filter", "kernel", "element", "bias", "tensor")
FITTING = [(a, kind) for a in LAYERS for kind in KINDS if not (a == "Linear" and kind in ("filter", "kernel"))]
ROW_PENALTIES = [sl.GroupL2(), sl.L1(), sl.SparseGroup(sqrt_size=True), sl.Exclusive(), sl.GroupL0()]


def randomised(model: nn.Module, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """Every parameter drawn anew, so that biases and norms are not constant."""
    g = torch.Generator().manual_seed(seed)
    model.to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, dtype=torch.float64, generator=g))
    return model


def slices(kind: str, layer: nn.Module, norm: nn.Module | None = None) -> list[list[Tensor]]:
    """The groups of one layer, each a list of slices taken by explicit indices."""
    w, b = layer.weight.detach(), layer.bias.detach()
    sections = getattr(
        layer, "groups", 1
    )  # of a grouped convolution: the first axis has all channels, the second its own
    first = [[w[i]] for i in range(w.shape[0])]
    second = [[part[:, j]] for part in w.chunk(sections) for j in range(w.shape[1])]
    back = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d)
    outputs, inputs = (second, first) if back else (first, second)
    extra = [] if norm is None else [norm.weight.detach(), norm.bias.detach()]
    return {
        "output": lambda: outputs,
        "filter": lambda: outputs,
        "input": lambda: inputs,
        "neuron": lambda: [[*rows, b[i], *(e[i] for e in extra)] for i, rows in enumerate(outputs)],
        "kernel": lambda: [[w[i, j]] for i in range(w.shape[0]) for j in range(w.shape[1])],
        "element": lambda: [[w[i]] for i in np.ndindex(*w.shape)],
        "bias": lambda: [[b[i]] for i in range(b.shape[0])],
        "tensor": lambda: [[w]],
    }[kind]()


def row(group: list[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in group])


def check(model: nn.Module, groups: list[list[Tensor]], regularizer: sl.Regularizer) -> None:
    """Value and step of `regularizer`, made on a copy of `model`, against the groups sliced out of `model`."""
    penalty = regularizer.penalty
    value = LAM * sum(penalty.value(row(group)) for group in groups)
    torch.testing.assert_close(regularizer.value(), value)
    regularizer.step(LR)
    for group in groups:
        new = penalty.prox(row(group), LR * LAM).split([part.numel() for part in group])
        for part, into in zip(group, new, strict=True):
            part.copy_(into.view(part.shape))
    torch.testing.assert_close(dict(regularizer.model.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("penalty", ROW_PENALTIES, ids=repr)
@pytest.mark.parametrize(("layer", "kind"), FITTING, ids=["-".join(pair) for pair in FITTING])
def test_every_kind_on_every_layer(layer: str, kind: str, penalty: sl.Penalty) -> None:
    model = randomised(LAYERS[layer]())
    twin = copy.deepcopy(model)
    check(model, slices(kind, model), sl.Regularizer(twin, penalty, LAM, groups=kind))


@pytest.mark.parametrize("kind", ["output", "input", "neuron", "filter", "kernel", "element", "bias", "tensor"])
def test_several_layers_in_one_model(kind: str) -> None:
    layers = [LAYERS[name]() for name in ("Conv2d", "ConvTranspose2d", "Conv1d", "Linear")]
    model = randomised(nn.Sequential(*layers, nn.Embedding(3, 4)))
    twin = copy.deepcopy(model)
    caught = [layer for layer in layers if kind not in ("filter", "kernel") or not isinstance(layer, nn.Linear)]
    regularizer = sl.Regularizer(twin, sl.GroupL2(), LAM, groups=kind)
    check(model, [group for layer in caught for group in slices(kind, layer)], regularizer)
    leaves = {"neuron": ["weight", "bias"], "bias": ["bias"]}.get(kind, ["weight"])
    assert regularizer.names == [f"{layers.index(layer)}.{leaf}" for layer in caught for leaf in leaves]


@pytest.mark.parametrize("penalty", ROW_PENALTIES, ids=repr)
def test_a_neuron_takes_the_norm_that_follows(penalty: sl.Penalty) -> None:
    nested = nn.Sequential(nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4)))
    model = randomised(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(2, 3, 2), nn.GroupNorm(3, 3)),
            nested,
            nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5)),
            nn.Linear(5, 6),
            nn.ReLU(),
            nn.BatchNorm1d(6),  # an activation lies between
            nn.Linear(6, 2),
            nn.LayerNorm(7),  # of another size
        )
    )
    twin = copy.deepcopy(model)
    groups = [
        *slices("neuron", model[0][0], model[0][1]),
        *slices("neuron", nested[0][1], nested[0][2]),
        *slices("neuron", model[2][0], model[2][1]),
        *slices("neuron", model[3]),
        *slices("neuron", model[6]),
    ]
    check(model, groups, sl.Regularizer(twin, penalty, LAM, groups="neuron"))


def test_a_neuron_without_bias_or_affine_norm_is_what_there_is() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))
    names = sl.Regularizer(model, sl.GroupL2(), LAM, groups="neuron").names
    assert names == ["0.weight", "2.weight", "2.bias"]


def test_a_module_used_twice_does_not_bring_a_norm_nearer() -> None:
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 5), act, nn.BatchNorm1d(5))
    regularizer = sl.Regularizer(model, sl.GroupL2(), LAM, groups="neuron")
    assert regularizer.names == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_neuron_of_a_layer_used_twice_by_its_second_name() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.BatchNorm1d(3))
    regularizer = sl.Regularizer(model, sl.GroupL2(), LAM, groups="neuron", include="2.weight")
    assert regularizer.names == ["2.weight", "2.bias", "3.weight", "3.bias"]


def test_a_callable_cuts_as_it_likes() -> None:
    def heads(name: str, p: nn.Parameter) -> Tensor | None:
        return p.unflatten(0, (2, -1)).flatten(1) if p.ndim == 2 else None

    model = randomised(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 6)))
    twin = copy.deepcopy(model)
    groups = [[part] for layer in model for part in layer.weight.detach().split(layer.weight.shape[0] // 2)]
    regularizer = sl.Regularizer(twin, sl.GroupL2(), LAM, groups=heads)
    assert regularizer.names == ["0.weight", "1.weight"]
    check(model, groups, regularizer)
    columns = sl.Regularizer(copy.deepcopy(model), sl.GroupL2(), LAM, groups=lambda name, p: p.t(), include="*.weight")
    check(model, [group for layer in model for group in slices("input", layer)], columns)


def test_a_callable_may_look_at_the_parameter() -> None:
    layer = randomised(nn.Linear(3, 4))
    expected = sl.GroupL2().prox(layer.weight.detach(), LR * LAM)
    trainable = lambda name, p: p if p.ndim == 2 and p.requires_grad else None  # noqa: E731
    sl.Regularizer(layer, sl.GroupL2(), LAM, groups=trainable).step(LR)
    torch.testing.assert_close(layer.weight.detach(), expected)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.gain = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.tensor([3.0, 0.1, -2.0]))


def test_vectors_and_scalars_by_include() -> None:
    for kind, gain in (("element", [2.0, 0.0, -1.0]), ("bias", [2.0, 0.0, -1.0]), ("output", [2.0, 0.0, -1.0])):
        model = Scaled()
        sl.Regularizer(model, sl.GroupL2(), 1.0, groups=kind, include="gain").step(1.0)
        torch.testing.assert_close(model.gain.detach(), torch.tensor(gain))
    for kind in ("element", "tensor"):
        model = Scaled()
        regularizer = sl.Regularizer(model, sl.GroupL2(), 1.0, groups=kind, include="scale")
        assert regularizer.value() == 3
        regularizer.step(1.0)
        torch.testing.assert_close(model.scale.detach(), torch.tensor(2.0))


def test_what_include_catches() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3))})
    names = lambda include, groups="output": sl.Regularizer(model, sl.L1(), LAM, groups, include).names  # noqa: E731
    assert names(None) == ["a.weight", "b.0.weight"]
    assert names(None, "bias") == ["a.bias", "b.0.bias"]
    assert names(None, "filter") == ["b.0.weight"]
    assert names("a.*") == ["a.weight", "a.bias"]
    assert names(["*.bias", "b.1.weight"]) == ["a.bias", "b.0.bias", "b.1.weight", "b.1.bias"]
    assert names(("a.weight",)) == ["a.weight"]
    assert names(lambda name, p: p.ndim == 3) == ["b.0.weight"]


def test_tied_parameters_are_taken_once() -> None:
    model = randomised(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)))
    model[2].weight = model[0].weight
    twin = copy.deepcopy(model)
    assert twin[2].weight is twin[0].weight
    regularizer = sl.Regularizer(twin, sl.GroupL2(), LAM)
    assert regularizer.names == ["0.weight", "1.weight"]
    check(model, slices("output", model[0]) + slices("output", model[1]), regularizer)


def test_a_head_tied_to_an_embedding_is_left_out_by_default() -> None:
    model = nn.ModuleDict({"tokens": nn.Embedding(5, 3), "body": nn.Linear(3, 3), "head": nn.Linear(3, 5)})
    model["head"].weight = model["tokens"].weight
    assert sl.Regularizer(model, sl.GroupL2(), LAM).names == ["body.weight"]
    assert sl.Regularizer(model, sl.GroupL2(), LAM, include="head.weight").names == ["head.weight"]
    assert [layer.name for layer in sl.sparsity_report(model).layers] == ["body.weight"]


SMALL = [(5, 12), (7, 12), (4, 6)]
LARGE = [(JOINED // 12 + 541, 12), (CHUNK // 12 + 6311, 12), (3, CHUNK // 12 * 6)]  # chunks do not divide these


@pytest.mark.parametrize("shapes", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("penalty", [*PENALTIES, sl.Grouped(sl.L1(), size=3)], ids=repr)
def test_step_is_the_prox_of_each_parameter(penalty: sl.Penalty, shapes: list[tuple[int, int]]) -> None:
    model = randomised(nn.Sequential(*(nn.Linear(n, m) for m, n in shapes)), torch.float32)
    old = [layer.weight.detach().clone() for layer in model]
    regularizer = sl.Regularizer(model, penalty, LAM)
    value = LAM * sum(penalty.value(w).sum() for w in old)
    torch.testing.assert_close(regularizer.value(), value, rtol=1e-5, atol=0)
    regularizer.step(LR)
    for layer, w in zip(model, old, strict=True):
        torch.testing.assert_close(layer.weight.detach(), penalty.prox(w, LR * LAM), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (128, 64, 3, 3), (517, 131, 3, 3)], ids=str)
@pytest.mark.parametrize("kind", ["output", "input", "kernel", "element", "tensor"])
@pytest.mark.parametrize("penalty", [sl.GroupL2(), sl.L1()], ids=repr)
@pytest.mark.parametrize("layout", ["channels_last", "transposed"])
def test_memory_layout_changes_nothing(layout: str, penalty: sl.Penalty, kind: str, shape: tuple[int, ...]) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layer = nn.Conv2d(shape[1], shape[0], 3)
    permuted = w.transpose(0, 1).contiguous().transpose(0, 1)
    layer.weight = nn.Parameter(w.to(memory_format=torch.channels_last) if layout == "channels_last" else permuted)
    assert not layer.weight.is_contiguous()
    rows = {
        "output": w.flatten(1),
        "input": w.transpose(0, 1).flatten(1),
        "kernel": w.flatten(0, 1).flatten(1),
        "element": w.reshape(-1, 1),
        "tensor": w.reshape(1, -1),
    }[kind]
    t = 0.5 * float(rows.norm(dim=1).median()) if isinstance(penalty, sl.GroupL2) else 0.5
    regularizer = sl.Regularizer(layer, penalty, 1.0, groups=kind)
    torch.testing.assert_close(regularizer.value(), penalty.value(rows).sum(), rtol=1e-4, atol=0)
    regularizer.step(t)
    new = penalty.prox(rows, t)
    back = new.view(w.transpose(0, 1).shape).transpose(0, 1) if kind == "input" else new.view(shape)
    torch.testing.assert_close(layer.weight.detach(), back)


def test_transposed_matrices_of_every_size() -> None:
    for m, n in ((5, 12), (300, 301), (1001, 601)):
        layer = nn.Linear(n, m)
        layer.weight = nn.Parameter(torch.randn(n, m, generator=torch.Generator().manual_seed(0)).t())
        for kind in ("output", "input", "element", "tensor"):
            for penalty in (sl.GroupL2(), sl.L1()):
                old = layer.weight.detach().clone()
                rows = {"input": old.t(), "element": old.reshape(-1, 1), "tensor": old.reshape(1, -1)}.get(kind, old)
                sl.Regularizer(layer, penalty, 1.0, groups=kind).step(0.01)
                new = penalty.prox(rows, 0.01)
                torch.testing.assert_close(layer.weight.detach(), new.t() if kind == "input" else new.reshape(m, n))


def test_dtypes_and_group_sizes_in_one_model() -> None:
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
    for groups in ("output", "neuron", "tensor"):
        model = randomised(nn.Sequential(*(nn.Linear(n, 5) for n in (4, 4, 4, 4, 6, 6))))
        for layer, dtype in zip(model, [*dtypes, *dtypes[:2]], strict=True):
            layer.to(dtype)
        old = copy.deepcopy(model)
        regularizer = sl.Regularizer(model, sl.GroupL2(), LAM, groups=groups)
        assert regularizer.value().isfinite()
        regularizer.step(LR)

        def stacked(layer: nn.Linear) -> Tensor:
            w = layer.weight.detach()
            shapes = {"output": w, "tensor": w.view(1, -1)}
            return shapes.get(groups, torch.cat([w, layer.bias.detach()[:, None]], 1))  # noqa: B023

        for before, after in zip(old, model, strict=True):
            torch.testing.assert_close(stacked(after), sl.GroupL2().prox(stacked(before), LR * LAM))


def test_the_report_counts_like_numpy() -> None:
    model = randomised(
        nn.Sequential(nn.Conv2d(3, 6, 2), nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 4, 2), nn.Flatten(), nn.Linear(5, 7))
    )
    with torch.no_grad():
        model[0].weight[[0, 2, 3]] = 0
        model[0].weight[1, 0, 0, 1] = 0
        model[0].weight[:, 2] = 0
        for p in (model[0].bias, model[1].weight, model[1].bias):
            p[[0, 3, 4]] = 0
        model[2].weight[:, 1] = 0
        model[2].bias[1] = 0
        model[4].weight[:, [0, 4]] = 0
        model[4].weight[6] = 0
    report = sl.sparsity_report(model)
    expected = []
    for layer, norm in ((model[0], model[1]), (model[2], None), (model[4], None)):
        w = layer.weight.detach().numpy()
        w = np.swapaxes(w, 0, 1) if isinstance(layer, nn.ConvTranspose2d) else w
        dead_row = [not np.any(w[i]) for i in range(w.shape[0])]
        dead_column = [not np.any(w[:, j]) for j in range(w.shape[1])]
        parts = [layer.bias] + ([] if norm is None else [norm.weight, norm.bias])
        dead = [dead_row[i] and all(p[i] == 0 for p in parts) for i in range(w.shape[0])]
        zeros = w.size - np.count_nonzero(w)
        expected.append((w.size, zeros, len(w), sum(dead_row), w.shape[1], sum(dead_column), len(w), sum(dead)))
    names = ("weights", "groups", "inputs", "neurons")
    fields = [field for name in names for field in (name, f"{name}_zero")]
    assert [tuple(getattr(layer, field) for field in fields) for layer in report.layers] == expected
    assert tuple(getattr(report, field) for field in fields) == tuple(map(sum, zip(*expected, strict=True)))
    assert [layer.name for layer in report.layers] == ["0.weight", "2.weight", "4.weight"]
    assert report.layers[1].shape == (6, 4, 2, 2)
    table = str(report)
    assert all(name in table for name in ("0.weight", "2.weight", "4.weight", "total", "6x4x2x2", "7x5"))
    assert len(table.splitlines()) == 6
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.weights = 3


def test_the_report_counts_a_tied_weight_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    report = sl.sparsity_report(model)
    assert (report.weights, len(report.layers)) == (16, 1)


def test_the_report_counts_weights_that_are_computed() -> None:
    """Masked and parametrized weights are no parameters, and are counted as the layer uses them, in the model's order."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 2))
    prune.l1_unstructured(model[0], "weight", 0.5)
    parametrize.register_parametrization(model[2], "weight", sl.HardConcrete(4, dim=0))
    with torch.no_grad():
        model[2].parametrizations.weight[0].log_alpha[:3] = -9.0
        model[2].parametrizations.weight[0].log_alpha[3:] = 9.0
        model[2].bias[:2] = 0
    report = sl.sparsity_report(model, torch.ones(5, 4))
    assert [layer.name for layer in report.layers] == ["0.weight", "2.weight", "3.weight"]
    assert [layer.weights_zero for layer in report.layers] == [12, 18, 0]
    assert [(layer.groups_zero, layer.neurons_zero) for layer in report.layers[1:]] == [(3, 2), (0, 0)]
    assert [layer.flops for layer in report.layers] == [5 * 2 * n for n in (24, 24, 8)]
    assert model[2].training
    only = nn.Linear(4, 2)
    prune.l1_unstructured(only, "weight", 0.5)
    assert sl.sparsity_report(only).weights_zero == 4


def test_the_report_counts_what_include_names() -> None:
    model = nn.Sequential(nn.LSTM(3, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight_ih_l0[:3] = 0
    report = sl.sparsity_report(model, include=[nn.LSTM, nn.Linear])
    assert [layer.name for layer in report.layers] == ["0.weight_ih_l0", "0.weight_hh_l0", "1.weight"]
    assert (report.weights, report.weights_zero, report.groups_zero) == (24 + 16 + 4, 9, 3)


def test_the_report_takes_every_convolution() -> None:
    for layer in LAYERS.values():
        model = randomised(layer())
        assert sl.sparsity_report(model).weights == model.weight.numel()


X = nn.Linear(2, 2)
GL = sl.GroupL2()


def cut(model: nn.Module, groups: object, include: object = None) -> sl.Regularizer:
    return sl.Regularizer(model, GL, 1.0, groups=groups, include=include)


WRONG = [
    (lambda: cut(X, "rows"), ValueError, "groups must be one of output, input.*got 'rows'"),
    (lambda: cut(X, 3), TypeError, "groups must be a name or a callable.*got 3"),
    (lambda: cut(X, "output", "*.weight"), ValueError, r"include='\*.weight' caught no parameter.* are: bias, weight"),
    (lambda: cut(X, "output", []), ValueError, r"include=\[\] caught no parameter"),
    (lambda: cut(X, "output", lambda name, p: False), ValueError, "caught no parameter"),
    (lambda: cut(nn.ReLU(), "output"), ValueError, "caught no parameter.* are: none; choose"),
    (lambda: cut(X, "filter"), ValueError, "groups='filter' with include=None caught no parameter"),
    (lambda: cut(X, lambda name, p: None), ValueError, "caught no parameter"),
    (
        lambda: cut(X, lambda name, p: p.clone()),
        ValueError,
        r"gave a copy for 'weight' of shape \(2, 2\).*use view, transpose",
    ),
    (
        lambda: cut(X, lambda name, p: p.view(-1)),
        ValueError,
        r"must give a view \(n_groups, group_size\), got .*4.* for 'weight' of shape \(2, 2\)",
    ),
    (lambda: cut(X, lambda name, p: 3), ValueError, r"must give a view \(n_groups, group_size\), got 3 for 'weight'"),
    (
        lambda: cut(X, "filter", "weight"),
        ValueError,
        r"groups=\"filter\" takes convolution weights, got 'weight' of shape \(2, 2\); use \"output\"",
    ),
    (lambda: cut(X, "kernel", "weight"), ValueError, "groups=\"kernel\" takes convolution weights, got 'weight'"),
    (
        lambda: cut(X, "input", "bias"),
        ValueError,
        r"groups=\"input\" takes matrices and kernels, got 'bias' of shape \(2,\); use \"bias\"",
    ),
    (
        lambda: cut(X, "bias", "weight"),
        ValueError,
        r"groups=\"bias\" takes vectors, got 'weight' of shape \(2, 2\); use \"output\"",
    ),
    (
        lambda: cut(X, "neuron", "bias"),
        ValueError,
        r"groups=\"neuron\" takes weights, got 'bias' of shape \(2,\); use \"bias\"",
    ),
    (
        lambda: cut(X, lambda name, p: p[:1].expand(3, -1)),
        ValueError,
        "shows an entry of .* more than once.*leave out expand",
    ),
    (
        lambda: cut(Scaled(), "output", "scale"),
        ValueError,
        'groups="output" takes vectors and matrices, got the scalar \'scale\'; use "element"',
    ),
    (lambda: sl.sparsity_report(nn.ReLU()), ValueError, "caught no parameter"),
    (lambda: sl.sparsity_report(torch.ones(2)), TypeError, "model must be an nn.Module, got Tensor; for a tensor"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
