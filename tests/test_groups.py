"""Heads, outgoing groups, rules, the summary, lam_max, frozen patterns, sharded models: against slicing by hand."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import sparselayers as sl
from sparselayers.sparsify.named import named

GL = sl.GroupL2()
LAM, LR = 0.7, 0.5


def randomised(model: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(0)
    for p in model.double().parameters():
        p.data = torch.randn(p.shape, dtype=torch.float64, generator=g)
    return model


def check_groups(model: nn.Module, groups: list[dict[str, object]], regularizer_of: Callable) -> None:
    """Each group a dict name -> index of its entries: value, step, and that nothing else moves."""
    twin = copy.deepcopy(model)
    regularizer = regularizer_of(model)
    parameters = {name: p.detach() for name, p in twin.named_parameters()}
    penalty = regularizer.penalty
    rows = [torch.cat([parameters[name][at].reshape(-1) for name, at in group.items()]) for group in groups]
    torch.testing.assert_close(regularizer.value(), LAM * sum(penalty.value(row) for row in rows))
    regularizer.step(LR)
    for group, row in zip(groups, rows, strict=True):
        parts = penalty.prox(row, LR * LAM).split([parameters[n][at].numel() for n, at in group.items()])
        for (name, at), part in zip(group.items(), parts, strict=True):
            parameters[name][at] = part.view(parameters[name][at].shape)
    torch.testing.assert_close({n: p.detach() for n, p in model.named_parameters()}, parameters)
    caught = {name for group in groups for name in group}
    assert set(regularizer.names) == caught


def by_head(groups: object = "head", penalty: sl.Penalty = GL, **rules: object) -> Callable:
    return lambda model: sl.Regularizer(model, penalty, LAM, groups=groups, **rules)


@pytest.mark.parametrize("make", [nn.MultiheadAttention, sl.MultiheadAttention])
@pytest.mark.parametrize("penalty", [GL, sl.SparseGroup(), sl.L1()], ids=repr)
def test_heads_of_multihead_attention(make: type, penalty: sl.Penalty) -> None:
    model = randomised(make(6, 3))
    every = torch.arange(18).view(3, 3, 2)  # q, k, v; head; row
    groups = [
        {"in_proj_weight": every[:, h].reshape(-1), "out_proj.weight": (slice(None), slice(2 * h, 2 * h + 2))}
        for h in range(3)
    ]
    check_groups(model, groups, by_head(penalty=penalty))


def test_heads_of_separate_projections() -> None:
    model = randomised(nn.MultiheadAttention(6, 3, kdim=5, vdim=4))
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    groups = [
        {**{name: slice(2 * h, 2 * h + 2) for name in names}, "out_proj.weight": (slice(None), slice(2 * h, 2 * h + 2))}
        for h in range(3)
    ]
    check_groups(model, groups, by_head())


def test_a_key_head_with_the_queries_it_serves() -> None:
    model = randomised(nn.Sequential(nn.Linear(8, 8), sl.ScaleFreeAttention(8, 4, num_kv_heads=2)))
    groups = [
        {
            "1.q_proj.weight": slice(4 * h, 4 * h + 4),
            "1.k_proj.weight": slice(2 * h, 2 * h + 2),
            "1.v_proj.weight": slice(2 * h, 2 * h + 2),
            "1.out_proj.weight": (slice(None), slice(4 * h, 4 * h + 4)),
        }
        for h in range(2)
    ]
    check_groups(model, groups, by_head())


class Fused(nn.Module):
    """One projection for queries, keys and values, as vision models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = 2, nn.Linear(4, 12), nn.Linear(4, 4)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads = 2
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))


def bert() -> nn.Module:
    return nn.ModuleDict({"self": SelfAttention(), "output": nn.ModuleDict({"dense": nn.Linear(4, 4)})})


def test_heads_of_other_layouts() -> None:
    every = torch.arange(12).view(3, 2, 2)
    columns = [(slice(None), slice(2 * h, 2 * h + 2)) for h in range(2)]
    packed = [{"qkv.weight": every[:, h].reshape(-1), "proj.weight": columns[h]} for h in range(2)]
    check_groups(randomised(Fused()), packed, by_head())
    names = ("self.query.weight", "self.key.weight", "self.value.weight")
    rows = [{name: slice(2 * h, 2 * h + 2) for name in names} | {"output.dense.weight": columns[h]} for h in range(2)]
    check_groups(randomised(bert()), rows, by_head())
    heads = sl.Heads(2, "", rows=("self.query", "self.key", "self.value"), columns=("output.dense",))
    check_groups(randomised(bert()), rows, by_head(heads))
    by_hand = sl.Heads(2, "at*", rows=(), packed=("qkv",), columns=("proj",))
    wrapped = [{f"attention.{name}": at for name, at in group.items()} for group in packed]
    check_groups(randomised(nn.ModuleDict({"attention": Fused(), "other": Fused()})), wrapped, by_head(by_hand))


def test_head_biases_by_include_and_parts_by_exclude() -> None:
    model = randomised(nn.MultiheadAttention(6, 3))
    assert sl.Regularizer(model, GL, LAM, "head").names == ["in_proj_weight", "out_proj.weight"]
    every = torch.arange(18).view(3, 3, 2)
    groups = [
        {
            "in_proj_weight": every[:, h].reshape(-1),
            "in_proj_bias": every[:, h].reshape(-1),
            "out_proj.weight": (slice(None), slice(2 * h, 2 * h + 2)),
        }
        for h in range(3)
    ]
    check_groups(model, groups, by_head(include="*"))
    assert sl.Regularizer(model, GL, LAM, "head", exclude="in_proj*").names == ["out_proj.weight"]


def test_a_head_that_vanishes_adds_nothing() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    attention = layer.self_attn
    with torch.no_grad():
        attention.in_proj_weight.view(3, 2, 4, 8)[:, 1] *= 1e-3
        attention.out_proj.weight[:, 4:] *= 1e-3
    regularizer = sl.Regularizer(layer, GL, lam=1.0, groups="head")
    assert regularizer.names == ["self_attn.in_proj_weight", "self_attn.out_proj.weight"]
    regularizer.step(0.1)
    assert not attention.out_proj.weight[:, 4:].any()
    assert not attention.in_proj_weight.view(3, 2, 4, 8)[:, 1].any()
    assert attention.in_proj_weight.view(3, 2, 4, 8)[:, 0].all()


def test_heads_of_transformers_models() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 7,
    }
    llama = transformers.LlamaModel(transformers.LlamaConfig(**sizes, num_key_value_heads=2))
    encoder = transformers.BertModel(transformers.BertConfig(**sizes))
    for model, n_groups, n_parts in ((llama, 2, 4), (encoder, 4, 4)):
        summary = sl.Regularizer(model, GL, LAM, "head").summary()
        assert [(c.groups, c.kind) for c in summary.caught] == [(n_groups, "head")] * n_parts
        assert sum(c.size for c in summary.caught) == summary.caught[0].group_size


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 4, "vocab_size": 7, "n_positions": 5}
    return transformers.GPT2Model(transformers.GPT2Config(**sizes))


def test_heads_of_gpt2_whose_weights_are_stored_as_inputs_by_outputs() -> None:
    model = randomised(gpt2())
    regularizer = sl.Regularizer(model, sl.GroupL2(), LAM, "head")
    attention = model.h[0].attn
    assert [(c.name, c.groups, c.size) for c in regularizer.summary().caught] == [
        ("h.0.attn.c_attn.weight", 4, 48),
        ("h.0.attn.c_proj.weight", 4, 16),
    ]
    with torch.no_grad():  # the second head, of two channels, is small: its group alone vanishes
        for i in range(3):
            attention.c_attn.weight[:, 8 * i + 2 : 8 * i + 4] = 1e-6
        attention.c_proj.weight[2:4] = 1e-6
    regularizer.step(0.1)
    heads = attention.c_attn.weight.unflatten(1, (3, 4, 2))
    assert not heads[:, :, 1].any()
    assert heads[:, :, [0, 2, 3]].all()
    assert not attention.c_proj.weight[2:4].any()
    assert attention.c_proj.weight[[0, 1, 4, 5, 6, 7]].all()


@pytest.mark.parametrize(("groups", "counts"), [("output", (32, 8)), ("input", (8, 32)), ("neuron", (32, 8))])
def test_outputs_of_gpt2_are_columns_of_what_is_stored(groups: str, counts: tuple[int, int]) -> None:
    model = gpt2()
    first = sl.Regularizer(model, GL, LAM, groups, include="h.0.mlp.c_fc.weight").summary().caught
    assert (first[0].groups, first[0].size) == counts
    assert len(first) == (2 if groups == "neuron" else 1)
    caught = [c.name for c in sl.Regularizer(model, GL, LAM, groups).summary().caught if c.name.endswith("weight")]
    assert caught == [f"h.0.{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]


def test_a_projection_of_two_parts_is_not_taken_for_queries_keys_and_values() -> None:
    module = nn.ModuleDict({"c_attn": nn.Linear(8, 16), "c_proj": nn.Linear(8, 8)})
    module.n_head = 4
    with pytest.raises(ValueError, match="caught no parameter"):
        sl.Regularizer(module, GL, LAM, "head")
    module["c_attn"] = nn.Linear(8, 24)
    assert [c.groups for c in sl.Regularizer(module, GL, LAM, "head").summary().caught] == [4, 4]


def test_a_recurrent_layer_is_taken_by_its_class() -> None:
    model = nn.Sequential(nn.LSTM(3, 4), nn.Linear(4, 2))
    regularizer = sl.Regularizer(model, GL, LAM, include=[nn.LSTM, nn.Linear])
    assert regularizer.names == ["0.weight_ih_l0", "0.weight_hh_l0", "1.weight"]
    assert sl.Regularizer(model, GL, LAM, "bias", include=nn.LSTM).names == ["0.bias_ih_l0", "0.bias_hh_l0"]


def test_what_a_parametrization_computes_is_said_to_be_computed() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    prune.l1_unstructured(model[1], "weight", 0.5)
    with pytest.raises(ValueError, match=r"1.weight_orig \(its layer's weight is computed from it; remove the param"):
        sl.Regularizer(model, GL, LAM)


def test_outgoing_is_every_input_column_and_every_bias() -> None:
    """G_in, G_h and G_b of Scardapane et al.: 784-32-32-10 has 784 + 32 + 32 of the first two and 74 biases."""
    model = randomised(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.BatchNorm1d(3)))
    groups = [
        *({"0.weight": (slice(None), j)} for j in range(5)),
        *({"2.weight": (slice(None), j)} for j in range(4)),
        *({f"{i}.bias": slice(j, j + 1)} for i, n in ((0, 4), (2, 3)) for j in range(n)),
    ]
    penalty = sl.GroupL2(sqrt_size=True)
    value = sum(
        math.sqrt(row.numel()) * row.norm()
        for group in groups
        for row in (model.get_parameter(name)[at] for name, at in group.items())
    )
    outgoing = sl.Regularizer(model, penalty, LAM, groups="outgoing")
    torch.testing.assert_close(outgoing.value(), LAM * value)
    check_groups(model, groups, by_head("outgoing", penalty))
    mnist = nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    caught = sl.Regularizer(mnist, penalty, LAM, groups="outgoing").summary().caught
    assert [c.groups for c in caught] == [784, 32, 32, 32, 32, 10]
    assert sum(c.groups * c.size for c in caught) == 26506


def test_joint_projections_count_as_linear() -> None:
    for make in (nn.MultiheadAttention, sl.MultiheadAttention):
        model = make(6, 3)
        assert sl.Regularizer(model, GL, LAM).names == ["in_proj_weight", "out_proj.weight"]
        assert sl.Regularizer(model, GL, LAM, "bias").names == ["in_proj_bias", "out_proj.bias"]
        neurons = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
        assert sl.Regularizer(model, GL, LAM, "neuron").names == neurons
    names = ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]
    assert sl.Regularizer(nn.MultiheadAttention(6, 3, kdim=5), GL, LAM).names == names


@pytest.mark.parametrize(
    ("layer", "norm"),
    [
        (nn.Linear(3, 4), nn.RMSNorm(4)),
        (nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, affine=True)),
        (nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True)),
        (nn.ConvTranspose2d(2, 4, 3), nn.BatchNorm2d(4)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_neuron_takes_every_kind_of_norm(layer: nn.Module, norm: nn.Module) -> None:
    model = randomised(nn.Sequential(layer, norm))
    weight = (slice(None), slice(0, 1)) if isinstance(layer, nn.ConvTranspose2d) else (slice(0, 1),)
    names = [name for name, _ in model.named_parameters() if name != "0.weight"]

    def shifted(at: tuple, i: int) -> tuple:
        return tuple(slice(i, i + 1) if part != slice(None) else part for part in at)

    groups = [{"0.weight": shifted(weight, i)} | {n: slice(i, i + 1) for n in names} for i in range(4)]
    check_groups(model, groups, by_head("neuron"))
    instance = nn.Sequential(nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4))  # without entries of its own
    assert sl.Regularizer(instance, GL, LAM, "neuron").names == ["0.weight", "0.bias"]


def test_rules_by_module_class_and_exclude() -> None:
    model = nn.ModuleDict(
        {
            "tokens": nn.Embedding(5, 4),
            "conv": nn.Conv1d(2, 4, 3),
            "body": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
            "head": nn.Linear(4, 5),
        }
    )
    names = lambda groups="output", **rules: sl.Regularizer(model, GL, LAM, groups, **rules).names  # noqa: E731
    assert names(include=nn.Linear) == ["body.0.weight", "head.weight"]
    assert names("bias", include=nn.Linear) == ["body.0.bias", "head.bias"]
    assert names(include=[nn.Conv1d, "head.*"]) == ["conv.weight", "head.weight", "head.bias"]
    assert names("element", include=(nn.LayerNorm, nn.Embedding)) == ["tokens.weight", "body.1.weight"]
    assert names(exclude="head.*") == ["conv.weight", "body.0.weight"]
    assert names(exclude=nn.Conv1d) == ["body.0.weight", "head.weight"]
    assert names(exclude=[nn.Conv1d, lambda name, p: name.startswith("head")]) == ["body.0.weight"]
    assert names("neuron", exclude=["*.bias", "conv.*", "head.*"]) == ["body.0.weight", "body.1.weight"]
    assert names(include="*", exclude=["tokens.*", "body.*", "head.*"]) == ["conv.weight", "conv.bias"]


def test_the_summary_says_what_was_caught_and_what_not() -> None:
    model = nn.ModuleDict(
        {
            "tokens": nn.Embedding(5, 4),
            "body": nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)),
            "conv": nn.Conv1d(2, 4, 3),
            "head": nn.Linear(4, 5),
            "again": nn.Linear(4, 6),
        }
    )
    model["head"].weight, model["again"].weight = model["tokens"].weight, model["body"][0].weight
    summary = sl.Regularizer(model, GL, LAM, "neuron", exclude="conv.*").summary()
    rows = [(c.name, c.shape, c.groups, c.size, c.group_size, c.kind) for c in summary.caught]
    assert rows == [
        ("body.0.weight", (6, 4), 6, 4, 7, "neuron"),
        ("body.0.bias", (6,), 6, 1, 7, "neuron"),
        ("body.1.weight", (6,), 6, 1, 7, "neuron"),
        ("body.1.bias", (6,), 6, 1, 7, "neuron"),
    ]
    assert {out.name: out.reason for out in summary.left_out} == {
        "tokens.weight": "of Embedding; name it in include",
        "conv.weight": "excluded",
        "conv.bias": "excluded",
        "head.weight": "tied to tokens.weight; name it in include",
        "head.bias": 'a bias; "neuron", "bias" or include',
        "again.weight": "tied to body.0.weight, caught there",
        "again.bias": 'a bias; "neuron", "bias" or include',
    }
    assert {name for name, _ in model.named_parameters(remove_duplicate=False)} == {
        row.name for row in (*summary.caught, *summary.left_out)
    }
    text = str(summary)
    assert "body.0.weight  6x4    6 x 4 of 7" in text
    assert "left out" in text
    filters = sl.Regularizer(model, GL, LAM, "filter").summary()
    reasons = {out.name: out.reason for out in filters.left_out}
    assert reasons["body.0.weight"] == 'of Linear; groups="filter" takes convolutions'
    only = sl.Regularizer(model, GL, LAM, "bias", include="head.bias").summary()
    assert {out.reason for out in only.left_out} == {"not in include"}
    biases = sl.Regularizer(model, GL, LAM, "bias").summary().left_out
    assert {o.name: o.reason for o in biases}["conv.weight"] == 'a weight; groups="bias" takes biases'
    some = sl.Regularizer(model, GL, LAM, lambda name, p: p if "body" in name else None).summary()
    assert {o.name: o.reason for o in some.left_out}["conv.weight"] == "groups(name, parameter) is None"
    assert [c.kind for c in some.caught] == ["callable"]
    heads = sl.Regularizer(nn.ModuleList([nn.MultiheadAttention(4, 2), nn.Linear(2, 2)]), GL, LAM, "head").summary()
    assert {o.name: o.reason for o in heads.left_out}["1.weight"] == "no projection of a known attention"
    assert str(sl.Regularizer(nn.Linear(2, 2, bias=False), GL, LAM).summary()).count("\n") == 1


def after_backward(model: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, dtype=p.dtype, generator=g)
    return model


def with_lam_max() -> list[sl.Penalty]:
    penalties = [GL, sl.GroupL2(sqrt_size=True), sl.L1(), sl.SparseGroup(), sl.L0(), sl.GroupL0(), sl.LInf()]
    return [*penalties, sl.MCP(), sl.GroupMCP(), sl.GroupExclusive()]


@pytest.mark.parametrize("penalty", with_lam_max(), ids=repr)
@pytest.mark.parametrize("groups", ["output", "neuron", "head", "tensor"])
@pytest.mark.parametrize("lr", [1.0, 0.25])
def test_lam_max_is_where_a_prox_step_first_gives_zero(penalty: sl.Penalty, groups: str, lr: float) -> None:
    model = after_backward(randomised(nn.TransformerEncoderLayer(4, 2, 5)))
    found = sl.Regularizer(model, penalty, lam=0.1, groups=groups).lam_max(lr)
    assert found.shape == ()
    for factor, dead in ((1 + 1e-9, True), (0.999, False)):
        twin = copy.deepcopy(model)
        regularizer = sl.Regularizer(twin, penalty, lam=float(found) * factor, groups=groups)
        with torch.no_grad():
            for p, q in zip(twin.parameters(), model.parameters(), strict=True):
                p.sub_(lr * q.grad)
        regularizer.step(lr)
        assert dead == all(not twin.get_parameter(name).any() for name in regularizer.names)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("groups", ["output", "input", "neuron", "element", "tensor"])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_layers_without_weights_have_no_say(groups: str, shape: tuple[int, int]) -> None:
    full, empty = after_backward(nn.Linear(2, 2)), nn.Linear(*shape)
    for p in empty.parameters():
        p.grad = torch.zeros_like(p)
    both = nn.ModuleList([full, empty])
    expected = sl.Regularizer(full, GL, lam=0.1, groups=groups).lam_max()
    torch.testing.assert_close(sl.Regularizer(both, GL, lam=0.1, groups=groups).lam_max(), expected)
    assert not sl.Regularizer(empty, GL, lam=0.1, groups="input" if groups == "neuron" else groups).lam_max().any()


def test_lam_max_at_zero_weights_is_the_largest_gradient() -> None:
    model = after_backward(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    for p in model.parameters():
        p.data.zero_()
    largest = max(model[i].weight.grad.norm(dim=1).max() for i in (0, 1))
    regularizer = sl.Regularizer(model, GL, lam=0.1)
    for lr in (1.0, 0.01):
        torch.testing.assert_close(regularizer.lam_max(lr), largest)
    model[0].weight.grad = None
    torch.testing.assert_close(regularizer.lam_max(), model[1].weight.grad.norm(dim=1).max())
    assert regularizer.lam_max().requires_grad is False


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def train(model: nn.Module, *optimizers: torch.optim.Optimizer, steps: int = 3) -> None:
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
            (model(x) - x[:, :3]).square().mean().backward()
            optimizer.step()


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "SGD(fused)": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True),
    "AdamW(fused)": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, fused=True),
    "AdamW(loop)": lambda p: torch.optim.AdamW(p, lr=0.05, foreach=False),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.5, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.05),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("attached", [True, False])
def test_freeze_holds_zeros_and_momentum(make: Callable, attached: bool) -> None:
    model = network()
    optimizer = make(model.parameters())
    regularizer = sl.Regularizer(model, GL, lam=0.02, include="0.weight")
    handle = regularizer.attach(optimizer)
    train(model, optimizer)  # momentum of its own for what is about to be frozen
    if not attached:
        handle.remove()
    with torch.no_grad():
        model[0].weight[2:5] = 0
        model[3].weight[0, 0] = 0  # not caught
    held = regularizer.freeze()
    before = model[0].weight.detach().clone()
    for _ in range(3):
        train(model, optimizer, steps=1)
        assert not model[0].weight[2:5].any()
        for state in optimizer.state[model[0].weight].values():
            if isinstance(state, Tensor) and state.shape == before.shape:
                assert not state[2:5].any()
    assert not torch.equal(model[0].weight[:2], before[:2])
    assert model[3].weight[0, 0] != 0
    held.remove()
    handle.remove()
    train(model, optimizer)
    assert model[0].weight[2:5].any()


def test_freeze_is_bitwise_nothing_where_nothing_moved() -> None:
    model = network()
    model[0].weight.data[0] = -0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held = sl.Regularizer(model, GL, 0.1).freeze()
    before = model[0].weight.detach().clone()
    optimizer.step()
    assert torch.equal(model[0].weight.detach().view(torch.int32), before.view(torch.int32))
    model[0].weight.grad = torch.full_like(before, torch.nan)
    optimizer.step()
    assert not model[0].weight[0].any()
    held.remove()


def test_freeze_leaves_other_models_alone_and_does_not_keep_its_own() -> None:
    from torch.optim.optimizer import _global_optimizer_post_hooks as hooks

    count = len(hooks)
    model, other = network(), network()
    for m in (model, other):
        m[0].weight.data[0] = 0
    held = sl.Regularizer(model, GL, 0.1).freeze()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other)]
    train(other, optimizers[1])
    assert other[0].weight[0].any()
    train(model, optimizers[0])
    assert not model[0].weight[0].any()
    del model, optimizers[0]
    gc.collect()
    train(other, optimizers[0])
    assert not held.active
    assert len(hooks) == count


def test_frozen_models_that_are_gone_do_not_stop_an_optimizer() -> None:
    from torch.optim.optimizer import _global_optimizer_post_hooks as hooks
    from torch.optim.optimizer import register_optimizer_step_post_hook

    collect = register_optimizer_step_post_hook(lambda *_: gc.collect())  # the model goes while the hooks run
    count, gone, other = len(hooks), network(), network()
    held = [sl.Regularizer(gone, GL, 0.1, include=name).freeze() for name in ("0.weight", "3.weight")]
    assert len(hooks) == count + 2
    gone.itself = [gone]
    del gone
    train(other, torch.optim.SGD(other.parameters(), lr=0.1), steps=2)
    assert [one.active for one in held] == [False, False]
    assert len(hooks) == count
    collect.remove()


def test_a_second_freeze_replaces_the_first() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = sl.Regularizer(model, GL, 0.1)
    model[0].weight.data[0] = 0
    first = regularizer.freeze()
    model[0].weight.data[0] = 1
    model[0].weight.data[1] = 0
    second = regularizer.freeze()
    assert (first.active, second.active) == (False, True)
    train(model, optimizer)
    assert model[0].weight[0].all()
    assert not model[0].weight[1].any()
    second.remove()


def test_state_dict_carries_lam_and_the_pattern() -> None:
    model, twin = network(), network()
    model[0].weight.data[2] = 0
    regularizer, other = sl.Regularizer(model, GL, 0.3), sl.Regularizer(twin, GL, 0.1)
    state = regularizer.state_dict()
    assert (state["lam"], state["frozen"]) == (0.3, None)
    held = regularizer.freeze()
    other.load_state_dict(regularizer.state_dict())
    assert other.lam == 0.3
    assert not twin[0].weight[2].any()
    train(twin, torch.optim.Adam(twin.parameters(), lr=0.1))
    assert not twin[0].weight[2].any()
    held.remove()
    assert regularizer.state_dict()["frozen"] is None
    other.load_state_dict(regularizer.state_dict())
    train(twin, torch.optim.Adam(twin.parameters(), lr=0.1))
    assert twin[0].weight[2].any()
    assert other.frozen is None


def test_a_deep_copy_holds_the_copied_model() -> None:
    model = network()
    model[0].weight.data[2] = 0
    regularizer = sl.Regularizer(model, GL, 0.3)
    held = regularizer.freeze()
    twin, optimizer = copy.deepcopy((regularizer, torch.optim.SGD(model.parameters(), lr=0.1)))
    assert twin.model is not model
    assert twin.frozen.zeros["0.weight"] is not regularizer.frozen.zeros["0.weight"]
    held.remove()
    train(twin.model, optimizer)
    assert not twin.model[0].weight[2].any()
    assert twin.model[0].weight[3].all()
    twin.step(0.1)
    assert torch.equal(model[0].weight[3], network()[0].weight[3])
    twin.frozen.remove()
    again = copy.deepcopy(twin)
    assert not again.frozen.active


def test_a_broken_constraint_is_infinite_whatever_lam() -> None:
    layer = nn.Linear(2, 2)
    for penalty in (sl.NonnegativeL1(), sl.Nonnegative(), sl.Simplex()):
        for lam in (0.0, 1.0):
            layer.weight.data = torch.tensor([[1.0, -1.0], [0.5, 0.5]])
            assert sl.Regularizer(layer, penalty, lam).value() == torch.inf
    layer.weight.data.abs_()
    assert sl.Regularizer(layer, sl.NonnegativeL1(), 0.0).value() == 0


def test_two_optimizers_over_one_parameter_are_two_problems() -> None:
    """Alternating steps, each with its own prox: only one optimizer's two penalties would be composed."""
    model = network()
    first, second = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    sl.Regularizer(model, GL, 0.3).attach(first)
    sl.Regularizer(model, sl.L1(), 0.3).attach(second)
    train(model, first, second)


def bare(**given: object) -> object:
    return lambda: sl.Heads(**given)


ATTENTION = nn.MultiheadAttention(6, 3)
WRONG = [
    (bare(num_heads=0), ValueError, "num_heads must be at least 1, got 0"),
    (bare(num_heads=4, num_kv_heads=3), ValueError, "num_heads must be a multiple of num_kv_heads, got 4 and 3"),
    (bare(num_heads=2, rows="q_proj"), TypeError, "rows must be a tuple of names such as .* got 'q_proj'"),
    (
        lambda: sl.Regularizer(ATTENTION, GL, LAM, sl.Heads(4, "", (), ("in_proj_weight",))),
        ValueError,
        r"'in_proj_weight' of shape \(18, 6\) does not divide into 12 parts of its axis 0.*check num_heads",
    ),
    (
        lambda: sl.Regularizer(network(), GL, LAM, "head"),
        ValueError,
        r"groups='head' .*caught no parameter.*give sl.Heads\(...\)",
    ),
    (lambda: sl.Regularizer(network(), GL, LAM, sl.Heads(2)), ValueError, r"groups=Heads\(num_heads=2.*caught no"),
    (lambda: sl.Regularizer(network(), GL, LAM, include=3), TypeError, "include must hold name patterns.*got 3"),
    (
        lambda: sl.Regularizer(network(), GL, LAM, include=nn.Linear(1, 1)),
        TypeError,
        "include must hold.*got a Linear; give names",
    ),
    (
        lambda: sl.Regularizer(network(), GL, LAM, include=torch.ones(3)),
        TypeError,
        "include must hold.*got a Tensor; give names",
    ),
    (lambda: sl.Regularizer(network(), GL, LAM, include="0"), ValueError, r'whole names: for all .* in 0 write "0.\*"'),
    (
        lambda: sl.Regularizer(nn.Sequential(nn.Embedding(2, 2)), GL, LAM),
        ValueError,
        r"the model's parameters are: 0.weight \(of Embedding; name it in include\); choose",
    ),
    (
        lambda: sl.Regularizer(nn.Sequential(*(nn.PReLU() for _ in range(25))), GL, LAM),
        ValueError,
        r"17.weight \(of PReLU; name it in include\), .*, and 5 more; choose",
    ),
    (lambda: sl.Regularizer(network(), GL, LAM, include=[3]), TypeError, "include must hold name patterns.*got 3"),
    (
        lambda: sl.Regularizer(network(), GL, LAM, exclude=[None]),
        TypeError,
        "exclude must hold name patterns.*got None",
    ),
    (
        lambda: sl.Regularizer(network(), GL, LAM, exclude="*"),
        ValueError,
        r"with include=None and exclude='\*' caught no parameter",
    ),
    (
        lambda: sl.Regularizer(network(), GL, LAM).lam_max(),
        ValueError,
        "none of 0.weight, 3.weight has one; call loss.b",
    ),
    (
        lambda: sl.Regularizer(after_backward(network()), sl.Exclusive(), LAM).lam_max(),
        ValueError,
        r"Exclusive\(\) has no finite lam_max",
    ),
    (lambda: sl.Regularizer(network(), GL, LAM).lam_max(0.0), ValueError, r"lr must lie in \(0, inf\], got 0.0"),
    (lambda: sl.Regularizer(network(), GL, LAM).load_state_dict({"lam": 1}), ValueError, "got one without frozen"),
    (
        lambda: sl.Regularizer(network(), GL, LAM).load_state_dict({"lam": 1, "frozen": {"a": torch.ones(2)}}),
        ValueError,
        r"has 'a' of shape \(2,\), the model no such parameter",
    ),
    (
        lambda: sl.Regularizer(network(), GL, LAM).load_state_dict({"lam": 1, "frozen": {"0.bias": torch.ones(2)}}),
        ValueError,
        r"has '0.bias' of shape \(2,\), the model \(8,\)",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_bad_input(call: Callable, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_parameter_that_is_replaced_is_found_by_its_name() -> None:
    """By a new parameter, a new module, another dtype; what is gone is named, and a wrapper may name things otherwise."""
    model = network()
    regularizer = sl.Regularizer(model, GL, 50.0)
    model[0].weight = nn.Parameter(torch.ones_like(model[0].weight))
    model[3] = nn.Linear(8, 3)
    regularizer.step(lr=1.0)
    assert not model[0].weight.any()
    assert not model[3].weight.any()
    model[0].weight.data = torch.ones(8, 5)
    model.bfloat16()
    regularizer.step(lr=1.0)
    assert not model[0].weight.any()
    del model[3].weight
    with pytest.raises(ValueError, match=r"has no parameter 3.weight any more.*make the regularizer anew"):
        regularizer.step(lr=1.0)
    model[3].register_parameter("weight", None)
    for call in (lambda: regularizer.step(lr=1.0), regularizer.value, regularizer.freeze):
        with pytest.raises(ValueError, match=r"has no parameter 3.weight any more"):
            call()


class Renamed(nn.Module):
    """As wrappers for checkpointing do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._wrapped = inner

    def named_parameters(self, *args, **kwargs):
        for name, p in super().named_parameters(*args, **kwargs):
            yield name.replace("_wrapped.", ""), p


def test_a_wrapper_may_name_its_parameters_otherwise() -> None:
    model = Renamed(nn.Sequential(nn.Linear(3, 2)))
    found = named(model, ["0.weight"])
    assert found["0.weight"] is model._wrapped[0].weight


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.short = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.short(x) + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


def test_neurons_hold_the_normalisation_that_a_forward_puts_behind_a_layer() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Residual(), Residual())
    neurons = sl.Neurons((("conv1", "bn1"), ("conv2", "bn2")))
    regularizer = sl.Regularizer(net, GL, LAM, neurons)
    for i in (0, 1):
        block = [name for name in regularizer.names if name.startswith(f"{i}.")]
        assert block == [f"{i}.{name}" for name in (
            "conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "conv2.bias", "bn2.weight", "bn2.bias",
            "short.0.weight", "short.0.bias", "short.1.weight", "short.1.bias",
        )]  # fmt: skip
    rows = [torch.cat([p.detach().flatten(1) if p.ndim > 1 else p.detach()[:, None] for p in
                       (net[0].conv1.weight, net[0].bn1.weight, net[0].bn1.bias)], 1)]  # fmt: skip
    regularizer.step(lr=0.3)
    wanted = GL.prox(rows[0], 0.3 * LAM)
    torch.testing.assert_close(net[0].conv1.weight.flatten(1), wanted[:, :-2])
    torch.testing.assert_close(net[0].bn1.bias, wanted[:, -1])
    assert "neuron" in str(regularizer.summary())
    assert sl.Regularizer(net[0].short, GL, LAM, sl.Neurons((("0", "1"),))).names[2:] == ["1.weight", "1.bias"]


def test_a_neuron_that_vanishes_with_its_normalisation_is_cut_out() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Residual()).eval()
    x = torch.randn(2, 4, 5, 5)
    net[0].bn1.bias.data.fill_(0.1)
    net[0].conv1.weight.data[:3] *= 1e-3
    net[0].bn1.weight.data[:3] *= 1e-3
    net[0].bn1.bias.data[:3] *= 1e-3
    groups = sl.Neurons((("conv1", "bn1"),))
    sl.Regularizer(net, sl.GroupL2(), 0.05, groups, include="0.conv1.weight").step(lr=1.0)
    small = sl.compact(net, x)
    assert small[0].conv1.out_channels == 3
    torch.testing.assert_close(small(x), net(x))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: sl.Neurons("conv1"), TypeError, r"tuple of pairs such as \(\(\"conv1\", \"bn1\"\),\), got 'conv1'"),
        (lambda: sl.Neurons(("conv1", "bn1")), TypeError, "tuple of pairs"),
        (lambda: sl.Neurons(()), TypeError, "tuple of pairs"),
        (
            lambda: sl.Regularizer(Residual(), GL, LAM, sl.Neurons((("conv1", "bn9"),))),
            ValueError,
            "no module has both a layer 'conv1' and a normalisation 'bn9' below it; give the names",
        ),
        (
            lambda: sl.Regularizer(Residual(), GL, LAM, sl.Neurons((("conv1", "conv2"),))),
            ValueError,
            "no module has both",
        ),
    ],
)
def test_what_neurons_say_of_bad_names(call, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()
