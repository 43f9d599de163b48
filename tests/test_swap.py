"""swap_attention and restore_attention: in place, past no fast path, there and back without a trace."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import sparselayers as sl

E, HEADS, L = 16, 4, 6
MAPPINGS = ["softmax", "sparsemax", "entmax15", "scale_free"]
LAYER = {"d_model": E, "nhead": HEADS, "dim_feedforward": 24, "batch_first": True, "dropout": 0.0}
QUIET = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")


def encoder(layers: int = 2, nested: bool = True, **options) -> nn.TransformerEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(**LAYER | options), layers, enable_nested_tensor=nested)


def sequences() -> tuple[Tensor, Tensor]:
    """(3, 6, 16) and its padding, right-aligned pads so that torch makes nested tensors of it."""
    x = torch.randn(3, L, E, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(L) >= torch.tensor([[6], [4], [2]])


def by_hand(model: nn.TransformerEncoder, x: Tensor, pads: Tensor, mapping) -> Tensor:
    """A post-norm encoder written out, with the mapping in the place of softmax."""
    for layer in model.layers:
        a = layer.self_attn
        q, k, v = (
            t.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for t in nn.functional.linear(x, a.in_proj_weight, a.in_proj_bias).chunk(3, -1)
        )
        scores = (q @ k.mT / (E // HEADS) ** 0.5).masked_fill(pads[:, None, None], -torch.inf)
        x = layer.norm1(x + a.out_proj((mapping(scores, -1) @ v).transpose(1, 2).flatten(2)))
        x = layer.norm2(x + layer.linear2(layer.linear1(x).relu()))
    return x


FUSED = ["_transformer_encoder_layer_fwd", "_native_multi_head_attention", "_nested_tensor_from_mask"]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of torch's fused operators, as they are called."""
    calls: list[str] = []
    for name in FUSED:
        real = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *a, _real=real, _name=name, **o: (calls.append(_name), _real(*a, **o))[1]
        )
    return calls


@QUIET
@pytest.mark.parametrize("mapping", ["softmax", "sparsemax", "entmax15"])
def test_no_fused_path_goes_past_the_mapping(mapping: str, fused: list[str]) -> None:
    model = encoder().eval()
    x, pads = sequences()
    with torch.no_grad():
        model(x, src_key_padding_mask=pads)
    assert set(fused) == {"_transformer_encoder_layer_fwd", "_nested_tensor_from_mask"}  # the trap is there
    fused.clear()
    assert sl.swap_attention(model, mapping) == 2
    rows = {"softmax": torch.softmax, "sparsemax": sl.functional.sparsemax, "entmax15": sl.functional.entmax15}[mapping]
    for training in (False, True):
        model.train(training)
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                found = model(x, src_key_padding_mask=pads)
                torch.testing.assert_close(found, by_hand(model, x, pads, rows), atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(x, src_key_padding_mask=pads), found, atol=1e-5, rtol=1e-5)
        model.layers[0](x, src_key_padding_mask=pads)
        model.layers[0].self_attn(x, x, x)
    assert fused == []


@QUIET
@pytest.mark.parametrize(
    "options",
    [{}, {"norm_first": True}, {"bias": False}, {"activation": "gelu"}, {"batch_first": False}, {"nhead": 1}],
    ids=str,
)
def test_there_and_back_bitwise(options: dict, fused: list[str]) -> None:
    model = encoder(nested=False, **options).eval()
    x, pads = sequences()
    x = x if options.get("batch_first", True) else x.transpose(0, 1)

    def outputs() -> list[Tensor]:
        found = [model.train()(x, src_key_padding_mask=pads)]
        with torch.no_grad():
            return [*found, model.eval()(x, src_key_padding_mask=pads)]

    before, calls, state = outputs(), list(fused), {k: v.clone() for k, v in model.state_dict().items()}
    assert sl.swap_attention(model, "sparsemax") == 2
    assert all(not torch.equal(a, b) for a, b in zip(outputs(), before, strict=True))
    assert sl.restore_attention(model) == 2
    fused.clear()
    assert all(torch.equal(a, b) for a, b in zip(outputs(), before, strict=True))
    assert fused == calls
    assert list(model.state_dict()) == list(state)
    assert all(type(layer.self_attn) is nn.MultiheadAttention for layer in model.layers)
    fresh = encoder(nested=False, **options)
    for old, new in zip(model.modules(), fresh.modules(), strict=True):
        assert vars(old).keys() == vars(new).keys()  # no trace of the swap
    assert sl.restore_attention(model) == 0


@QUIET
def test_nested_tensors_are_off_and_on_again(fused: list[str]) -> None:
    x, pads = sequences()
    model = nn.ModuleDict({"on": encoder(), "off": encoder(nested=False), "plain": encoder()}).eval()
    attributes = vars(model["on"]).copy()
    with torch.no_grad():
        before = model["on"](x, src_key_padding_mask=pads)
    sl.swap_attention(model["on"])
    sl.swap_attention(model["off"])
    sl.swap_attention(model["on"], "entmax15")  # twice: what was before is still known
    copied = copy.deepcopy(model)
    for each in (model, copied):
        assert [each[name].use_nested_tensor for name in ("on", "off", "plain")] == [False, False, True]
        sl.restore_attention(each)
        assert [each[name].use_nested_tensor for name in ("on", "off", "plain")] == [True, False, True]
        assert vars(each["on"]).keys() == attributes.keys()
        fused.clear()
        with torch.no_grad():
            assert torch.equal(each["on"](x, src_key_padding_mask=pads), before)
        assert "_nested_tensor_from_mask" in fused


@QUIET
def test_part_of_an_encoder_may_be_swapped() -> None:
    x, pads = sequences()
    model = encoder(3).eval()
    assert sl.swap_attention(model.layers[1], "sparsemax") == 1
    with torch.no_grad(), pytest.raises(ValueError, match=r"nested tensor.*set its use_nested_tensor = False"):
        model(x, src_key_padding_mask=pads)  # the encoder, not seen by the swap, makes nested tensors
    assert sl.restore_attention(model.layers[1]) == 1
    sl.swap_attention(model.layers[1], "sparsemax")
    model.use_nested_tensor = False
    with torch.no_grad():
        assert model(x, src_key_padding_mask=pads).isfinite().all()


def test_a_new_encoder_around_a_sparse_layer_makes_no_nested_tensors() -> None:
    layer = nn.TransformerEncoderLayer(**LAYER)
    layer.self_attn = sl.MultiheadAttention(E, HEADS, batch_first=True)
    with pytest.warns(UserWarning, match="use_nested_tensor is False because"):
        model = nn.TransformerEncoder(layer, 2).eval()
    x, pads = sequences()
    with torch.no_grad():
        torch.testing.assert_close(
            model(x, src_key_padding_mask=pads), by_hand(model, x, pads, sl.functional.sparsemax)
        )
    assert sl.restore_attention(model) == 2


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_whole_transformer(mapping: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Transformer(E, HEADS, 2, 2, 24, dropout=0.1, batch_first=True)
    x, pads = sequences()
    causal = nn.Transformer.generate_square_subsequent_mask(L)
    options = {
        "tgt_mask": causal,
        "src_key_padding_mask": pads.float().masked_fill(pads, -torch.inf),
        "tgt_is_causal": True,
    }
    expected = model.eval()(x, x, **options)
    assert sl.swap_attention(model, mapping) == 6
    found = model(x, x, **options)
    if mapping == "softmax":
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    other = x.clone()
    other[:, -2:] += 1
    bound = 0
    assert (model(x, other, **options)[:, :-2] - found[:, :-2]).abs().max() <= bound
    model.train()(x, x, **options).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_module_and_all_it_holds_stay_the_same_objects() -> None:
    model = encoder().double()
    attention = model.layers[0].self_attn
    attention.train(False)
    attention.in_proj_weight.requires_grad_(False)
    attention.note = "mine"
    seen = []
    attention.register_forward_pre_hook(lambda m, a: seen.append("pre"))
    attention.register_forward_hook(lambda m, a, o: seen.append("post"))
    attention.out_proj.register_forward_hook(lambda m, a, o: seen.append("projection"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [(id(p), p.requires_grad, p.dtype) for p in model.parameters()]
    modules = [id(m) for m in model.modules()]
    keys = list(model.state_dict())
    sl.swap_attention(model, "entmax15")
    assert [(id(p), p.requires_grad, p.dtype) for p in model.parameters()] == before
    assert [id(m) for m in model.modules()] == modules
    assert list(model.state_dict()) == keys
    assert model.layers[0].self_attn is attention
    assert (attention.training, attention.note) == (False, "mine")
    assert model.layers[1].self_attn.training
    x = sequences()[0].double()
    model(x).square().sum().backward()
    assert seen == ["pre", "projection", "post"]
    weight = model.layers[1].self_attn.in_proj_weight
    old = weight.detach().clone()
    optimizer.step()
    assert not torch.equal(weight, old)
    fresh = encoder().double()
    fresh.load_state_dict(model.state_dict())
    sl.swap_attention(fresh, "entmax15")
    assert torch.equal(fresh(x), model(x))


def test_what_is_counted() -> None:
    attention = nn.MultiheadAttention(E, HEADS)
    assert sl.swap_attention(attention) == 1  # the model itself
    assert type(attention) is sl.MultiheadAttention
    shared = nn.ModuleList([attention, attention, sl.MultiheadAttention(E, HEADS, mapping="entmax15"), nn.Linear(2, 2)])
    assert sl.swap_attention(shared, "softmax") == 2
    assert [m.mapping for m in shared[:3]] == ["softmax"] * 3

    class Mine(nn.MultiheadAttention):
        def forward(self, query, key, value):
            return value, None

    mine = nn.ModuleList([Mine(E, HEADS), nn.MultiheadAttention(E, HEADS)])
    assert sl.swap_attention(mine) == 1
    assert type(mine[0]) is Mine
    assert sl.swap_attention(nn.Linear(2, 2)) == sl.restore_attention(nn.Linear(2, 2)) == 0


@pytest.mark.parametrize(
    "options", [{}, {"kdim": 5, "vdim": 7}, {"bias": False}, {"add_bias_kv": True, "add_zero_attn": True}], ids=str
)
def test_every_build_goes_there_and_back(options: dict) -> None:
    attention = nn.MultiheadAttention(E, HEADS, **options)
    leaves = [torch.randn(4, 2, n) for n in (E, attention.kdim, attention.vdim)]
    expected = attention(*leaves)
    before = vars(attention).copy()
    sl.swap_attention(attention, "softmax")
    for a, b in zip(attention(*leaves), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    sl.swap_attention(attention, sl.Entmax(1.3))
    sl.restore_attention(attention)
    assert all(torch.equal(a, b) for a, b in zip(attention(*leaves), expected, strict=True))
    assert vars(attention) == before


def test_a_mapping_module_is_shared_and_goes_away_again() -> None:
    model, mapping = encoder(), sl.Entmax(1.5, learn_alpha=True)
    keys, count = list(model.state_dict()), len(list(model.parameters()))
    sl.swap_attention(model, mapping)
    assert all(layer.self_attn.mapping is mapping for layer in model.layers)
    assert len(list(model.parameters())) == count + 1
    model(sequences()[0]).square().sum().backward()
    assert mapping.logit_alpha.grad.ne(0)
    sl.swap_attention(model, "sparsemax")
    assert list(model.state_dict()) == keys
    for layer in model.layers:
        sl.swap_attention(layer, sl.Entmax(1.5, learn_alpha=True))
    assert len(list(model.parameters())) == count + 2
    sl.restore_attention(model)
    assert list(model.state_dict()) == keys


@QUIET
def test_copies_and_saved_models() -> None:
    x, pads = sequences()
    model = encoder().eval()
    sl.swap_attention(model, "entmax15")
    expected = model(x, src_key_padding_mask=pads)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(other(x, src_key_padding_mask=pads), expected)
        assert sl.restore_attention(other) == 2
        assert not torch.equal(other(x, src_key_padding_mask=pads), expected)
    assert torch.equal(model(x, src_key_padding_mask=pads), expected)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    plain = encoder()
    plain.load_state_dict(torch.load(file, weights_only=True))
    assert sl.swap_attention(plain.eval(), "entmax15") == 2
    assert torch.equal(plain(x, src_key_padding_mask=pads), expected)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_parametrized_attention_is_swapped_with_its_parametrization() -> None:
    attention = nn.MultiheadAttention(E, HEADS)
    x = torch.randn(4, 2, E)
    parametrize.register_parametrization(attention, "in_proj_weight", Doubled())
    parametrizations.weight_norm(attention.out_proj)
    expected = attention(x, x, x)
    twin = copy.deepcopy(attention)
    assert sl.swap_attention(attention, "softmax") == 1
    assert isinstance(attention, sl.MultiheadAttention)
    assert parametrize.is_parametrized(attention, "in_proj_weight")
    assert not isinstance(twin, sl.MultiheadAttention)
    for a, b in zip(attention(x, x, x), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    sparse = copy.deepcopy(attention)
    assert sl.swap_attention(sparse, "sparsemax") == 1
    assert not torch.equal(sparse(x, x, x)[0], expected[0])
    assert sl.restore_attention(attention) == 1
    assert all(torch.equal(a, b) for a, b in zip(attention(x, x, x), expected, strict=True))
    sl.swap_attention(attention)
    parametrize.remove_parametrizations(attention, "in_proj_weight")
    assert type(attention) is sl.MultiheadAttention
    assert sl.restore_attention(attention) == 1
    assert torch.equal(attention(x, x, x)[0], expected[0])


def test_bad_input() -> None:
    model = encoder()
    with pytest.raises(ValueError, match="mapping must be one of softmax"):
        sl.swap_attention(model, "entmax")
    with pytest.raises(TypeError, match=r"or an nn\.Module instance, got None"):
        sl.swap_attention(model, None)
    assert all(type(layer.self_attn) is nn.MultiheadAttention for layer in model.layers)  # nothing half done
    for call in (sl.swap_attention, sl.restore_attention):
        with pytest.raises(TypeError, match=r"model must be an nn\.Module, got list"):
            call([model])
