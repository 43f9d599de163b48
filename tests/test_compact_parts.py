"""Heads and hidden channels removed from transformer blocks: the same outputs, fewer parameters, the outside as it was."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import sparselayers as sl
from sparselayers.sparsify.compact_parts import resize_modules, shrink_modules
from sparselayers.sparsify.compaction.attention import attentions, kept_heads
from sparselayers.sparsify.compaction.mlp import mlps
from sparselayers.sparsify.compaction.multihead import CompactMultiheadAttention
from sparselayers.sparsify.compaction.trial import close

TINY = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = TINY | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4, "pad_token_id": 0}
LETTERS = torch.arange(14).view(2, 7) * 3


def fill(model: nn.Module) -> nn.Module:
    """All parameters at random, in float64: biases and norms too, which often start at 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.3)
    return model


@torch.no_grad()
def kill(model: nn.Module, heads: tuple[int, ...] = (0, 2), share: float = 0.5) -> nn.Module:
    """Half of the hidden channels unread, two more constant, and some heads unread in every block."""
    for attention in attentions(model):
        (output,) = (piece for piece in attention.pieces if piece.parts == ("o",))
        output.tensor.movedim(output.axis, 0).unflatten(0, (attention.heads, -1))[list(heads)] = 0
    for mlp in mlps(model):
        k = int(share * mlp.sizes["hidden"])
        down = mlp.pieces[-1]
        down.tensor.movedim(down.axis, 0)[:k] = 0
        up = mlp.pieces[0]
        up.tensor.movedim(up.axis, 0)[k : k + 2] = 0
    return model


def shrunk(model: nn.Module, example) -> nn.Module:
    small = copy.deepcopy(model)
    shrink_modules(small, example)
    return small


class First(nn.Module):
    """The output of an attention module without its weights, which would tell of heads that are gone."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.attention(query, key, value)[0]


def shrunk_attention(attention: nn.Module, *inputs: Tensor) -> nn.Module:
    return shrunk(First(attention), inputs).attention


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def assert_equal(one: object, other: object, tolerance: float = 1e-10) -> None:
    """The first tensors of two outputs."""
    a, b = (x if isinstance(x, Tensor) else x[0] for x in (one, other))
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------------------------- torch's own layers

ENCODERS = [
    (norm_first, batch_first, bias, activation)
    for norm_first in (False, True)
    for batch_first, bias, activation in ((True, True, "relu"), (True, False, "gelu"), (False, True, torch.tanh))
]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("norm_first", "batch_first", "bias", "activation"), ENCODERS)
@pytest.mark.parametrize("grad", [False, True])
def test_encoders_answer_as_before(norm_first, batch_first, bias, activation, grad) -> None:
    """On the fused path (no grad), which makes nested tensors of padding, and on the plain one; under every mask."""
    layer = nn.TransformerEncoderLayer(
        16, 4, 32, norm_first=norm_first, batch_first=batch_first, bias=bias, activation=activation
    )
    model = kill(fill(nn.TransformerEncoder(layer, 2)))
    n, length = (3, 5) if batch_first else (5, 3)
    x = torch.randn(*((n, length) if batch_first else (length, n)), 16, dtype=torch.float64)
    small = shrunk(model, x)
    attention, mlp = small.layers[1].self_attn, small.layers[1]
    assert type(attention) is CompactMultiheadAttention
    assert (attention.num_heads, attention.in_proj_weight.shape, attention.out_proj.weight.shape) == (
        2,
        (24, 16),
        (16, 8),
    )
    assert (mlp.linear1.out_features, mlp.linear2.in_features) == (14, 14)
    padding = torch.arange(length) >= torch.tensor([length, 1, 2, 2, length])[:n, None]
    causal = nn.Transformer.generate_square_subsequent_mask(length, dtype=torch.float64)
    a_head = torch.rand(4 * n, length, length).gt(0.7) & ~torch.eye(length, dtype=torch.bool)
    with torch.set_grad_enabled(grad):
        for masks in (
            {},
            {"src_key_padding_mask": padding},
            {"mask": causal, "is_causal": True},
            {"mask": a_head},
            {"mask": causal < 0, "src_key_padding_mask": padding},
        ):
            assert_equal(model(x, **masks), small(x, **masks))


def test_a_whole_transformer_with_a_decoder() -> None:
    model = kill(fill(nn.Transformer(16, 4, 1, 1, 32, batch_first=True)))
    source, target = torch.randn(2, 5, 16).double(), torch.randn(2, 3, 16).double()
    small = shrunk(model, (source, target))
    assert_equal(model(source, target), small(source, target))
    assert small.decoder.layers[0].multihead_attn.num_heads == 2
    assert small.decoder.layers[0].linear1.out_features == 14
    assert count(model) > 1.9 * count(small)


ATTENTIONS = {
    "torch": (nn.MultiheadAttention, {}),
    "torch, batch second": (nn.MultiheadAttention, {"batch_first": False}),
    "torch, more keys": (nn.MultiheadAttention, {"bias": False, "add_bias_kv": True, "add_zero_attn": True}),
    "torch, other widths": (nn.MultiheadAttention, {"kdim": 6, "vdim": 7}),
    "sparsemax": (sl.MultiheadAttention, {}),
    "entmax, other widths": (sl.MultiheadAttention, {"kdim": 6, "vdim": 7, "mapping": "entmax15"}),
    "scale-free": (sl.ScaleFreeAttention, {"locality": torch.tensor([0.1, 0.2, 0.3, 0.4])}),
    "scale-free, grouped": (sl.ScaleFreeAttention, {"head_dim": 3, "v_head_dim": 5, "num_kv_heads": 2, "kdim": 6}),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_modules(name: str) -> None:
    cls, arguments = ATTENTIONS[name]
    model = kill(fill(cls(16, 4, **{"batch_first": True} | arguments)))
    query, key, value = (torch.randn(2, n, w).double() for n, w in ((5, 16), (6, model.kdim), (6, model.vdim)))
    if not model.batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    small = shrunk_attention(model, query, key, value)
    assert small.num_heads == 2
    assert small.out_proj.weight.shape[1] == model.out_proj.weight.shape[1] // 2
    assert isinstance(small, cls)
    assert_equal(model(query, key, value), small(query, key, value))
    assert_equal(model(query[:, 0], key[:, 0], value[:, 0]), small(query[:, 0], key[:, 0], value[:, 0]))
    hidden = torch.tensor([[False] * 5 + [True], [False, True, True, True, False, True]])
    for weights in (False, True):
        masked = [m(query, key, value, key_padding_mask=hidden, need_weights=weights) for m in (model, small)]
        assert_equal(*masked)
    # The weights of the heads that are left, and their mean.
    old, new = (m(query, key, value, average_attn_weights=False)[1] for m in (model, small))
    torch.testing.assert_close(old[:, [1, 3]], new)
    torch.testing.assert_close(small(query, key, value)[1], new.mean(1))


def test_a_head_whose_values_are_zero_goes_and_one_with_a_value_bias_stays() -> None:
    """With a bias its output is that bias, but only while its weights sum to 1: not with dropout or a masked row."""
    model = fill(nn.MultiheadAttention(8, 4, batch_first=True))
    with torch.no_grad():
        model.in_proj_weight[16:20] = 0  # values of the heads 0 and 1
        model.in_proj_bias[16:18] = 0  # of head 0
    x = torch.randn(2, 3, 8).double()
    small = shrunk_attention(model, x, x, x)
    assert small.kept_heads.tolist() == [1, 2, 3]
    assert_equal(model(x, x, x), small(x, x, x))
    with torch.no_grad():
        model.out_proj.weight[:, 2] = 0  # of head 1 one channel is unread, and the other one always 0
        model.in_proj_bias[19] = 0
    assert shrunk_attention(model, x, x, x).kept_heads.tolist() == [2, 3]


def test_heads_stay_where_the_model_shows_their_weights() -> None:
    model = kill(fill(nn.MultiheadAttention(8, 4, batch_first=True)))
    x = torch.randn(2, 3, 8).double()
    assert type(shrunk(model, (x, x, x))) is nn.MultiheadAttention


def test_one_head_and_one_hidden_channel_stay() -> None:
    model = kill(fill(nn.TransformerEncoderLayer(8, 2, 6, batch_first=True)), heads=(0, 1), share=1.0)
    x = torch.randn(2, 3, 8).double()
    small = shrunk(model, x)
    assert (small.self_attn.num_heads, small.linear1.out_features) == (1, 1)
    assert_equal(model(x), small(x))


def test_constant_hidden_neurons_go_into_the_bias_behind() -> None:
    layer = fill(nn.TransformerEncoderLayer(8, 2, 6, batch_first=True, activation=torch.sigmoid))
    without = fill(nn.TransformerEncoderLayer(8, 2, 6, batch_first=True, activation=torch.sigmoid, bias=False))
    with torch.no_grad():
        layer.linear1.weight[1:3] = without.linear1.weight[1:3] = 0
    x = torch.randn(2, 3, 8).double()
    small = shrunk(layer, x)
    assert small.linear1.out_features == 4
    assert not torch.equal(small.linear2.bias, layer.linear2.bias)
    assert_equal(layer(x), small(x))
    assert shrunk(without, x).linear1.out_features == 6  # sigmoid(0) = 1/2, and there is no bias to take it


def test_a_mask_a_head_for_the_old_heads_or_the_new_ones() -> None:
    model = kill(fill(nn.MultiheadAttention(8, 4, batch_first=True)))
    x = torch.randn(2, 3, 8).double()
    small = shrunk_attention(model, x, x, x)
    mask = torch.randn(2, 4, 3, 3).double()
    expected = model(x, x, x, attn_mask=mask.flatten(0, 1))
    assert_equal(expected, small(x, x, x, attn_mask=mask.flatten(0, 1)))
    assert_equal(expected, small(x, x, x, attn_mask=mask[:, [1, 3]].flatten(0, 1)))
    with pytest.raises(
        ValueError, match=r"attn_mask must be .* batch 2 and 4 heads, or the 2 that are left, got \(6, 3"
    ):
        small(x, x, x, attn_mask=mask[:, :3].flatten(0, 1))
    with pytest.raises(ValueError, match="is_causal is a hint about attn_mask"):
        small(x, x, x, is_causal=True)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_for_self_attention() -> None:
    model = kill(fill(nn.MultiheadAttention(8, 4, batch_first=True)))
    x = torch.randn(2, 3, 8).double()
    small = shrunk_attention(model, x, x, x)
    nested = torch.nested.nested_tensor([x[0], x[1, :2]])
    with torch.no_grad():
        out = small(nested, nested, nested)[0].unbind()
    assert_equal(model(x[:1], x[:1], x[:1])[0][0], out[0])
    assert_equal(model(x[1:, :2], x[1:, :2], x[1:, :2])[0][0], out[1])
    with pytest.raises(ValueError, match="nested tensors are for self-attention"):
        small(nested, nested, x)


def test_a_small_layer_trains_is_copied_pickled_compiled_and_shrinks_again() -> None:
    model = kill(fill(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)))
    x = torch.randn(2, 5, 16).double()
    small = shrunk(model, x)
    assert_equal(small(x), copy.deepcopy(small)(x))
    assert_equal(small(x), pickle.loads(pickle.dumps(small))(x))
    assert_equal(small(x), torch.compile(small, backend="eager", fullgraph=True)(x))
    again = shrunk(kill(small, heads=(0,), share=0.0), x)
    assert again.self_attn.kept_heads.tolist() == [3]
    assert_equal(small(x), again(x))
    again.train()
    again(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in again.parameters())
    report = sl.Regularizer(small, sl.GroupL2(), lam=1.0, groups="head")
    report.step(lr=1e9)
    assert not small.self_attn.in_proj_weight.any()


def test_a_state_dict_gives_a_fresh_model_its_sizes() -> None:
    model = kill(fill(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)))
    x = torch.randn(2, 5, 16).double()
    small = shrunk(model, x)
    assert set(small.state_dict()) == set(model.state_dict()) | {"self_attn.kept_heads"}
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    state = torch.load(file)
    fresh = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).double().eval()
    resize_modules(fresh, state)
    fresh.load_state_dict(state)
    assert_equal(small(x), fresh(x))
    mask = torch.rand(8, 5, 5).gt(0.7) & ~torch.eye(5, dtype=torch.bool)
    assert_equal(model(x, mask), fresh(x, mask))


# ------------------------------------------------------------------------------------------------ transformers' models

MODELS = {
    "Llama": lambda: (hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)), LETTERS, (0, 1, 2, 4, 6)),
    "Qwen3": lambda: (hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED)), LETTERS, (0, 1, 2, 4, 6)),
    "Bert": lambda: (hf.BertModel(hf.BertConfig(**TINY)), {"input_ids": LETTERS}, (0, 2)),
    "DistilBert": lambda: (
        hf.DistilBertModel(hf.DistilBertConfig(vocab_size=50, dim=32, hidden_dim=48, n_layers=2, n_heads=4)),
        LETTERS,
        (0, 2),
    ),
    "GPT-2": lambda: (
        hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)),
        LETTERS,
        (0, 2),
    ),
    "ViT": lambda: (
        hf.ViTModel(hf.ViTConfig(**TINY, image_size=16, patch_size=4)), torch.randn(2, 3, 16, 16).double(), (0, 2)
    ),
}  # fmt: skip
LEFT = {"Llama": (3, 3), "Qwen3": (3, 3)}  # of 8 query heads on 4 key heads: a group is gone, the others kept one each


def outputs_of(model: nn.Module, example) -> Tensor:
    with torch.no_grad():
        return (model(**example) if isinstance(example, dict) else model(example))[0]


@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers(name: str) -> None:
    model, example, heads = MODELS[name]()
    model = kill(fill(model), heads)
    small = shrunk(model, example)
    assert_equal(outputs_of(model, example), outputs_of(small, example))
    assert [(a.heads, a.key_heads) for a in attentions(small)] == 2 * [LEFT.get(name, (2, 2))]
    assert [m.sizes["hidden"] for m in mlps(small)] == [m.sizes["hidden"] // 2 - 2 for m in mlps(model)]
    assert model.config.to_dict() == small.config.to_dict()
    assert list(model.state_dict()) == list(small.state_dict())
    # In float32, and from the small weights alone.
    rough = [copy.deepcopy(m).float() for m in (model, small)]
    example = example.float() if isinstance(example, Tensor) and example.is_floating_point() else example
    one, other = (outputs_of(m, example) for m in rough)
    assert_equal(one, other, 1e-5 * float(one.abs().max()))
    fresh = type(model)(model.config).double().eval()
    resize_modules(fresh, small.state_dict())
    fresh.load_state_dict(small.state_dict())
    example = example.double() if isinstance(example, Tensor) and example.is_floating_point() else example
    assert_equal(outputs_of(small, example), outputs_of(fresh, example))


@pytest.mark.filterwarnings("ignore")  # what generate says of tokens that a configuration does not name
@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
def test_generation_with_a_cache_goes_on(name: str) -> None:
    model, example, heads = MODELS[name]()
    model = kill(fill(model), heads)
    small = shrunk(model, example)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    for cache in (None, "static"):
        one, other = (m.generate(example, cache_implementation=cache, **options) for m in (model, small))
        assert torch.equal(one, other)


def test_t5_keeps_its_heads_and_loses_hidden_channels() -> None:
    """Its blocks hand on a bias for each head to one another, so that no block can lose a head alone."""
    config = hf.T5Config(
        vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    model = kill(fill(hf.T5ForConditionalGeneration(config)))
    example = {"input_ids": LETTERS, "decoder_input_ids": LETTERS}
    small = shrunk(model, example)
    assert_equal(outputs_of(model, example), outputs_of(small, example))
    assert {a.heads for a in attentions(small)} == {4}
    assert {m.sizes["hidden"] for m in mlps(small)} == {22}


# ----------------------------------------------------------------------------------------------------- what is left alone


class Own(nn.Module):
    """An attention under familiar names that does with its heads what it likes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.num_heads = kind, 4
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.num_heads, -1)).transpose(-2, -3) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        # Heads that compete: without one, the others weigh more.
        out = (q @ k.mT).softmax(-3 if self.kind == "mixing" else -1) @ v
        out = out.transpose(-2, -3)
        out = out.reshape(*x.shape) if self.kind == "literal" else out.flatten(-2)
        if self.kind == "raises":
            assert out.shape == x.shape
        return self.out_proj(out)


@pytest.mark.parametrize(("kind", "left"), [("plain", 2), ("mixing", 4), ("literal", 4), ("raises", 4)])
def test_a_module_that_is_not_what_its_names_say_stays(kind: str, left: int) -> None:
    model = kill(fill(Own(kind)))
    x = torch.randn(2, 5, 8).double()
    small = shrunk(model, x)
    assert (small.num_heads, small.q_proj.out_features) == (left, 2 * left)
    assert_equal(model(x), small(x))


def test_blocks_that_are_not_called_tied_hooked_or_parametrized_stay() -> None:
    x = torch.randn(2, 5, 16).double()

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = (nn.TransformerEncoderLayer(16, 4, 32, batch_first=True) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    small = shrunk(kill(fill(Half())), x)
    assert (small.used.self_attn.num_heads, small.unused.self_attn.num_heads) == (2, 4)
    assert (small.used.linear1.out_features, small.unused.linear1.out_features) == (14, 32)

    def layers() -> nn.Sequential:
        return kill(fill(nn.Sequential(*(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True) for _ in range(2)))))

    tied = layers()
    tied[1].linear1.weight = tied[0].linear1.weight
    tied[1].self_attn.in_proj_weight = tied[0].self_attn.in_proj_weight
    assert count(shrunk(tied, x)) == count(tied)

    other = layers()
    other[0].linear1.register_forward_hook(lambda module, inputs, output: output)
    torch.nn.utils.parametrizations.weight_norm(other[1].linear1)
    torch.nn.utils.parametrizations.weight_norm(other[1].self_attn, "in_proj_weight")
    small = shrunk(other, x)
    assert [layer.linear1.out_features for layer in small] == [32, 32]
    assert [layer.self_attn.num_heads for layer in small] == [2, 4]


def test_nothing_dead_or_no_block_changes_nothing() -> None:
    x = torch.randn(2, 5, 16).double()
    for model in (fill(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)), fill(nn.Linear(16, 3))):
        before = copy.deepcopy(model.state_dict())
        kinds = [type(m) for m in model.modules()]
        modes = [m.training for m in model.train().modules()]
        shrink_modules(model, x)
        assert kinds == [type(m) for m in model.modules()]
        assert modes == [m.training for m in model.modules()]
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_heads_of_a_group_go_evenly() -> None:
    """Query heads on two key heads: [dead, alive, alive | dead, dead, alive] loses one of each, the last filled up."""
    model = fill(sl.ScaleFreeAttention(12, 6, num_kv_heads=2, batch_first=True))
    with torch.no_grad():
        model.out_proj.weight.unflatten(1, (6, 2))[:, [0, 3, 4]] = 0
    (attention,) = attentions(model)
    queries, keys = kept_heads(attention)
    assert (queries.tolist(), keys.tolist()) == ([1, 2, 3, 5], [0, 1])
    x = torch.randn(2, 5, 12).double()
    small = shrunk_attention(model, x, x, x)
    assert (small.num_heads, small.num_kv_heads, small.log_locality.shape) == (4, 2, (4,))
    assert_equal(model(x, x, x), small(x, x, x))


def test_what_counts_as_equal() -> None:
    one = torch.tensor([1.0, torch.nan, 1e4])
    assert close(one, torch.tensor([1.05, torch.nan, 1e4]))  # relative to the largest
    assert not close(one, torch.tensor([1.5, torch.nan, 1e4]))
    assert not close(one, torch.tensor([1.0, 2.0, 1e4]))
    assert not close(one, one.double())
    assert not close(one, one[:2])
    assert close(torch.tensor([1, 2]), torch.tensor([1, 2]))
    assert not close(torch.tensor([1, 2]), torch.tensor([1, 3]))
    assert close(torch.full((2,), torch.nan), torch.full((2,), torch.nan))


def test_rounding_as_on_a_device_with_rough_products_does_not_keep_heads(monkeypatch) -> None:
    """TF32 is off by 1e-3, which tells nothing of how well a block is understood."""
    model = kill(fill(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True))).float()
    x, calls = torch.randn(2, 5, 16), []
    linear = nn.functional.linear

    def rough(*arguments):
        calls.append(1)
        out = linear(*arguments)
        return out * (1 + 1e-4 * (len(calls) % 2))

    monkeypatch.setattr(nn.functional, "linear", rough)
    assert shrunk(model, x).self_attn.num_heads == 2


@pytest.mark.parametrize("more", [{}, {"add_bias_kv": True, "add_zero_attn": True}])
@pytest.mark.parametrize("need_weights", [False, True])
def test_causal_with_its_mask(more, need_weights) -> None:
    model = kill(fill(nn.MultiheadAttention(8, 4, **more)))
    x = torch.randn(5, 2, 8).double()
    small = shrunk_attention(model, x, x, x)
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False] * 5, [False, False, True, True, True]])
    for masks in ({}, {"key_padding_mask": padding}):
        masks |= {"attn_mask": mask, "need_weights": need_weights}
        expected = model(x, x, x, **masks)
        assert_equal(expected, small(x, x, x, is_causal=True, **masks))
        assert_equal(expected, small(x, x, x, **masks))


class Gated(nn.Module):
    """down(act(gate(x)) up(x)), with an activation of choice."""

    def __init__(self, act: object, bias: bool = True) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(*s, bias=bias) for s in ((4, 6), (4, 6), (6, 4)))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        if not callable(self.act):
            return self.down_proj(self.gate_proj(x).exp() * self.up_proj(x))
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


def wide(x: Tensor, y: Tensor | None = None) -> Tensor:
    return x.softmax(-1)


GATES = {  # activation -> hidden channels left of 6: one unread, one gate constant, one factor 0, both factors constant
    "sigmoid": (torch.sigmoid, True, 3),
    "silu, no biases": (nn.functional.silu, False, 2),
    "mixes channels": (wide, True, 6),
    "another shape": (lambda x: x.sum(-1, keepdim=True), True, 6),
    "raises on vectors": (lambda x: x.exp() if x.ndim > 1 else 1 / 0, True, 4),
    "no function": ("exp", True, 4),
}


@pytest.mark.parametrize("name", GATES)
def test_gated_mlps(name: str) -> None:
    act, bias, left = GATES[name]
    model = fill(Gated(act, bias))
    with torch.no_grad():
        model.down_proj.weight[:, 0] = 0
        model.gate_proj.weight[[1, 3]] = 0
        model.up_proj.weight[[2, 3]] = 0
        if bias:
            model.up_proj.bias[2] = 0
    x = torch.randn(5, 4).double()
    small = shrunk(model, x)
    assert small.gate_proj.out_features == left
    assert_equal(model(x), small(x))
