"""The transformers integration on tiny random models: parity with eager, no look into the future, weights, refusals."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers as hf
from torch import nn

import sparselayers.functional as F
from sparselayers.attention.weights import LOCALITY
from sparselayers.integrations import transformers as integration

from . import parity
from .parity import CHECK, NAMES, bert, generated, llama, output, padding, t5, tokens

EVERY = pytest.mark.parametrize("name", NAMES)
AGAINST_EAGER = dict(parity.against_eager())
BY_ITSELF = {(name, situation): f for name in NAMES for situation, f in parity.by_itself(name)}


@pytest.fixture(autouse=True)
def registered() -> None:
    integration.register()


@pytest.mark.parametrize("situation", AGAINST_EAGER)
def test_softmax_by_our_path_is_eager(situation: str) -> None:
    assert AGAINST_EAGER[situation]() <= (0 if "tokens that differ" in situation else 1e-5)


@pytest.mark.parametrize(("name", "situation"), BY_ITSELF, ids=str)
def test_the_future_the_cache_and_the_pads_change_nothing(name: str, situation: str) -> None:
    bound = 0 if "tokens that differ" in situation else 2e-5
    if "later tokens changed" in situation:
        bound = 0
    assert BY_ITSELF[name, situation]() <= bound


def test_the_leak_test_finds_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_seen(*args, attention_mask=None, **options):
        options["mapping"] = "sparsemax"
        return integration.attention(*args, attention_mask=None, is_causal=False, **options)

    with monkeypatch.context() as patch:
        patch.setitem(
            hf.AttentionInterface._global_mapping, "sparsemax", lambda m, q, k, v, mask, **o: all_seen(m, q, k, v, **o)
        )
        assert BY_ITSELF["sparsemax", "llama: later tokens changed"]() > 1e-2


@EVERY
def test_output_attentions(name: str) -> None:
    model, left = llama(), padding("left")
    model.set_attn_implementation(name)
    with torch.no_grad():
        found = model(tokens(), attention_mask=left, output_attentions=True)
        plain = model(tokens(), attention_mask=left)
    assert plain.get("attentions") is None
    torch.testing.assert_close(found.logits[left.bool()], plain.logits[left.bool()], atol=1e-5, rtol=1e-5)
    assert len(found.attentions) == 2
    for weights in found.attentions:
        assert weights.shape == (3, 4, parity.LENGTH, parity.LENGTH)
        expected = left[:, None].expand(-1, 4, -1).float()  # a pad attends to nothing, unlike in eager
        torch.testing.assert_close(weights.sum(-1), expected)
        assert not weights.triu(1).any()
        assert not weights[(left == 0)[:, None, None].expand_as(weights)].any()
        allowed = torch.ones_like(weights).tril() * left[:, None, None] * left[:, None, :, None]
        dropped = (weights[allowed.bool()] == 0).any()
        assert bool(dropped) == (name != CHECK)


@EVERY
def test_weights_are_the_ones_that_made_the_output(name: str) -> None:
    model = llama()
    module = model.model.layers[0].self_attn
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    mask = torch.rand(2, 1, 5, 7) > 0.4
    mask[0, 0, 1] = False
    call = hf.AttentionInterface._global_mapping[name]
    out, none = call(module, q, k, v, mask, scaling=0.3)
    again, weights = call(module, q, k, v, mask, scaling=0.3, output_attentions=True)
    assert none is None
    assert out.shape == (2, 5, 4, 8)
    assert out.is_contiguous()
    torch.testing.assert_close(out, again)
    torch.testing.assert_close(weights @ v.repeat_interleave(2, 1), out.transpose(1, 2))
    assert not out[0, 1].any()
    options = {"mapping": NAMES[name], "scale": 0.3, "enable_gqa": True}
    if name == "scale_free":
        expected = F.scale_free_attention(q, k, v, mask, locality=LOCALITY, enable_gqa=True)
    else:
        expected = F.scaled_dot_product_attention(q, k, v, mask, **options)
    torch.testing.assert_close(out.transpose(1, 2), expected)


def test_generate_gives_weights_of_every_step() -> None:
    found = generated(
        llama(), "sparsemax", tokens(), padding("left"), output_attentions=True, return_dict_in_generate=True
    )
    assert len(found.attentions) == 6
    for step, layers in enumerate(found.attentions):
        for weights in layers:
            assert weights.shape[-2:] == ((parity.LENGTH, parity.LENGTH) if step == 0 else (1, parity.LENGTH + step))
            torch.testing.assert_close(weights[-1].sum(-1), torch.ones(weights.shape[1:-1]))


@EVERY
def test_static_cache_masks_wider_than_what_is_filled(name: str) -> None:
    model, ids, left = llama(), tokens(), padding("left")
    assert torch.equal(
        generated(model, name, ids, left), generated(model, name, ids, left, cache_implementation="static")
    )


@EVERY
def test_the_implementation_changes_on_an_existing_model(name: str) -> None:
    model, ids = llama(), tokens()
    eager = output(model, "eager", input_ids=ids)
    difference = (output(model, name, input_ids=ids) - eager).abs().max()
    assert difference < 1e-5 if name == CHECK else difference > 1e-2
    torch.testing.assert_close(output(model, "eager", input_ids=ids), eager, atol=0, rtol=0)
    direct = hf.LlamaForCausalLM._from_config(model.config, attn_implementation=name)
    assert direct.config._attn_implementation == name


@pytest.mark.parametrize("name", ["sparsemax", "entmax15", CHECK])
def test_compile_in_one_graph(name: str) -> None:
    model, ids, left = llama(), tokens(), padding("left")
    expected = output(model, name, input_ids=ids, attention_mask=left, use_cache=False)
    call = lambda ids, mask: model(ids, attention_mask=mask, use_cache=False).logits  # noqa: E731
    with torch.no_grad():
        found = torch.compile(call, fullgraph=True, backend="aot_eager")(ids, left)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@EVERY
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_model_trains(name: str, dropout: float) -> None:
    model, ids, left = llama(attention_dropout=dropout), tokens(), padding("left")
    model.set_attn_implementation(name)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        torch.manual_seed(0)  # the same weights dropped each time: one function, whose descent can be seen
        loss = model(ids, attention_mask=left, labels=ids.masked_fill(left == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert model.model.layers[0].self_attn.q_proj.weight.grad.any()


@EVERY
def test_dropout_is_the_callers(name: str) -> None:
    q, k, v = (torch.randn(1, 2, 40, 8) for _ in range(3))
    mask = torch.ones(1, 1, 40, 40, dtype=torch.bool)
    call = hf.AttentionInterface._global_mapping[name]
    assert torch.equal(call(nn.Identity(), q, k, v, mask)[0], call(nn.Identity(), q, k, v, mask, dropout=0.0)[0])
    assert not call(nn.Identity(), q, k, v, mask, dropout=1.0)[0].any()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, weights = call(nn.Identity(), q, k, v, mask, dropout=0.5, output_attentions=True)
    _, whole = call(nn.Identity(), q, k, v, mask, output_attentions=True)
    kept = weights != 0
    torch.testing.assert_close(weights[kept], 2 * whole[kept])
    assert 0.3 < kept.sum() / (whole != 0).sum() < 0.7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@EVERY
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    ids, left = tokens(), padding("left")
    expected = output(llama(), name, input_ids=ids, attention_mask=left)[left.bool()]
    found = output(llama().to(dtype), name, input_ids=ids, attention_mask=left)[left.bool()]
    assert found.dtype == dtype
    assert found.isfinite().all()
    if dtype == torch.float64:
        torch.testing.assert_close(found.float(), expected, atol=1e-3, rtol=1e-3)


def test_fully_padded_rows_and_nan_beyond_the_mask() -> None:
    for mapping in NAMES.values():
        q, k, v = (torch.randn(2, 2, 3, 8) for _ in range(3))
        k[1, :, 2], v[1, :, 2] = torch.nan, torch.inf
        mask = torch.zeros(2, 1, 3, 5).masked_fill(
            torch.tensor([False, False, True, True, True]), torch.finfo(torch.float32).min
        )
        mask[0] = torch.finfo(torch.float32).min
        for wanted in (False, True):
            out, weights = integration.attention(
                nn.Identity(), q, k, v, mask, output_attentions=wanted, mapping=mapping
            )
            assert not out[0].any()
            assert out.isfinite().all()
            assert weights is None or not weights[1, ..., 2].any()


def test_the_mask_is_always_made_and_boolean() -> None:
    masks = hf.AttentionMaskInterface._global_mapping
    for name in NAMES:
        common = {"batch_size": 2, "q_length": 3, "kv_length": 3, "device": "cpu"}
        causal = masks[name](**common, allow_is_causal_skip=True)
        assert torch.equal(causal, torch.ones(3, 3, dtype=torch.bool).tril().expand(2, 1, 3, 3))
        both = masks[name](
            **common, mask_function=hf.masking_utils.bidirectional_mask_function, allow_is_bidirectional_skip=True
        )
        assert both.dtype == torch.bool
        assert both.all()


def test_registering_twice_does_no_harm() -> None:
    before = output(llama(), "sparsemax", input_ids=tokens())
    integration.register()
    integration.register()
    assert torch.equal(output(llama(), "sparsemax", input_ids=tokens()), before)


@EVERY
def test_without_the_mask_registered_a_causal_model_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(hf.AttentionMaskInterface._global_mapping, name)
    with pytest.raises(
        ValueError, match="attention_mask is None for 11 queries of a causal LlamaAttention, which would see the future"
    ):
        output(llama(), name, input_ids=tokens())
    assert output(bert(), name, input_ids=tokens()).isfinite().all()  # every key may be seen there


Q, KV = torch.ones(1, 4, 3, 8), torch.ones(1, 2, 5, 8)
CAUSAL, SEEING = SimpleNamespace(is_causal=True), SimpleNamespace(is_causal=False)
MASK = torch.ones(1, 1, 3, 5, dtype=torch.bool)


def attend(module=SEEING, mask=MASK, mapping="sparsemax", query=Q, **options):
    return integration.attention(module, query, KV, KV, mask, mapping=mapping, **options)


def test_when_no_mask_is_right() -> None:
    everything = attend()[0]
    assert torch.equal(attend(SEEING, None)[0], everything)
    assert torch.equal(attend(CAUSAL, None, is_causal=False)[0], everything)
    attend(CAUSAL, None, query=Q[:, :, :1])  # one query sees every key before it
    assert torch.equal(attend(SEEING, None, sliding_window=5)[0], everything)
    assert torch.equal(attend(mask=torch.ones(1, 1, 3, 9, dtype=torch.bool))[0], everything)  # wider than the keys
    bias = torch.randn(1, 4, 3, 5)
    assert torch.equal(attend(mask=None, position_bias=bias)[0], attend(position_bias=bias)[0])
    assert torch.equal(attend(mask=torch.zeros(1, 1, 3, 5), position_bias=bias)[0], attend(position_bias=bias)[0])
    assert torch.equal(attend(softcap=None, s_aux=None, position_ids=torch.arange(3), use_cache=True)[0], everything)


WRONG = [
    *(
        (
            lambda name=name: attend(**{name: torch.ones(4)}),
            f'sparse attention has no {name} .*; use attn_implementation="eager"',
        )
        for name in integration.REFUSED
    ),
    (lambda: attend(CAUSAL, None), "attention_mask is None for 3 queries of a causal SimpleNamespace"),
    (
        lambda: attend(nn.Identity(), None),
        "attention_mask is None for 3 queries of a causal Identity",
    ),  # as transformers reads it
    (
        lambda: attend(SEEING, None, is_causal=True),
        "pass a 4-d attention_mask, and is_causal=False where every key may be seen",
    ),
    (lambda: attend(SEEING, None, sliding_window=4), "the sliding window of 4 would be lost over 5 keys"),
    (
        lambda: attend(mapping="scale_free", position_bias=torch.ones(1, 4, 3, 5)),
        '"scale_free" has no scores .* position_bias',
    ),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[w[1][:50] for w in WRONG])
def test_what_would_be_ignored_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_models_with_what_is_refused_say_so() -> None:
    softcapped = parity.built(hf.Gemma2ForCausalLM, hf.Gemma2Config(**parity.SIZES, num_key_value_heads=2, head_dim=8))
    with pytest.raises(ValueError, match="no softcap"):
        output(softcapped, "sparsemax", input_ids=tokens())
    with pytest.raises(ValueError, match="position_bias"):
        output(t5(), "scale_free", input_ids=tokens(), decoder_input_ids=tokens(1))


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    with monkeypatch.context() as patch:
        yield patch


def test_a_missing_transformers_is_named_with_its_remedy(hidden: pytest.MonkeyPatch) -> None:
    hidden.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ImportError, match=r"transformers is not installed; use: python -m pip install 'transformers>=5'"
    ):
        integration.register()


def test_an_old_transformers_is_named_with_its_remedy(hidden: pytest.MonkeyPatch) -> None:
    old = ModuleType("transformers")
    old.__version__ = "4.40.0"
    hidden.setitem(sys.modules, "transformers", old)
    with pytest.raises(ImportError, match=r"transformers 4\.40\.0 has no AttentionMaskInterface; use: .* --upgrade"):
        integration.register()


def test_importing_the_integration_does_not_import_transformers() -> None:
    script = "import sys, sparselayers.integrations.transformers; assert 'transformers' not in sys.modules"
    root = Path(importlib.import_module("sparselayers").__file__).parent.parent
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=root, check=True, timeout=120)
