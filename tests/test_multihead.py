"""MultiheadAttention against torch's, option by option; the mappings against the written-out formula; SparseAttention."""

from __future__ import annotations

import copy
import io
import itertools
import pickle

import pytest
import torch
from torch import Tensor, nn

import sparselayers as sl
import sparselayers.functional as F
from sparselayers.attention.weights import LOCALITY

N, L, S, E, HEADS = 3, 5, 7, 8, 2
NAMED = ["softmax", "sparsemax", "entmax15", "scale_free"]
EVERY = pytest.mark.parametrize(
    "mapping", [*NAMED, torch.softmax, sl.Entmax(1.3)], ids=lambda m: m if isinstance(m, str) else type(m).__name__
)
ROWS = {"softmax": torch.softmax, "sparsemax": F.sparsemax, "entmax15": F.entmax15}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def built(kind: type[nn.MultiheadAttention], seed: int = 0, **options) -> nn.MultiheadAttention:
    module = kind(E, HEADS, **{"dtype": torch.float64, "batch_first": True} | options)
    for i, parameter in enumerate(module.parameters()):
        parameter.data = random(*parameter.shape, seed=100 * seed + i, dtype=parameter.dtype)
    return module


def pair(mapping="softmax", **options) -> tuple[sl.MultiheadAttention, nn.MultiheadAttention]:
    ours, torchs = built(sl.MultiheadAttention, mapping=mapping, **options), built(nn.MultiheadAttention, **options)
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


def inputs(
    module: nn.MultiheadAttention, kind: str, batched: bool = True, grad: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """ "self": one tensor thrice; "memory": key is value; "three": all different."""
    shapes = ((L, E), (S, module.kdim), (S, module.vdim))
    q, k, v = (random(*((N,) * batched), *shape, seed=i) for i, shape in enumerate(shapes))
    q, k, v = {"self": (q, q, q), "memory": (q, k, k), "three": (q, k, v)}[kind]
    leaves = {
        id(x): (x if module.batch_first or not batched else x.transpose(0, 1).contiguous()).requires_grad_(grad)
        for x in (q, k, v)
    }
    return leaves[id(q)], leaves[id(k)], leaves[id(v)]


def masks(keys: int, batched: bool = True) -> dict[str, dict[str, Tensor]]:
    """True = ignore; every query keeps key 0, so that torch gives numbers too."""
    drop = torch.rand(L, keys, generator=torch.Generator().manual_seed(3)) > 0.6
    heads = torch.rand((N if batched else 1) * HEADS, L, keys, generator=torch.Generator().manual_seed(4)) > 0.6
    pads = torch.rand(*((N,) * batched), keys, generator=torch.Generator().manual_seed(5)) > 0.6
    for mask in (drop, heads, pads):
        mask[..., 0] = False
    added = random(L, keys, seed=6)
    pad_bias = torch.zeros(pads.shape, dtype=torch.float64).masked_fill(pads, -torch.inf)
    return {
        "none": {},
        "attn": {"attn_mask": drop},
        "attn by head": {"attn_mask": heads},
        "attn added": {"attn_mask": added},
        "padding": {"key_padding_mask": pads},
        "padding added": {"key_padding_mask": pad_bias + random(*pads.shape, seed=7)},
        "both": {"attn_mask": drop, "key_padding_mask": pads},
        "both by head": {"attn_mask": heads, "key_padding_mask": pads},
        "both added": {"attn_mask": added, "key_padding_mask": pad_bias},
    }


def everything(module: nn.Module, leaves: tuple[Tensor, ...], **options) -> list[Tensor]:
    """Output, weights, and all gradients of a scalar of the output."""
    out, weights = module(*leaves, **options)
    distinct = list({id(x): x for x in leaves}.values())
    wanted = [*distinct, *module.parameters()]
    grads = torch.autograd.grad((out * random(*out.shape, seed=9, dtype=out.dtype)).sum(), wanted, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, wanted, strict=True)]
    return [out, torch.zeros(()) if weights is None else weights, *grads]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


BUILDS = {
    "plain": {},
    "no bias": {"bias": False},
    "kdim": {"kdim": 6},
    "kdim vdim": {"kdim": 6, "vdim": 3},
    "kdim no bias": {"kdim": 6, "bias": False},
    "bias kv": {"add_bias_kv": True},
    "zero attn": {"add_zero_attn": True},
    "bias kv zero attn": {"add_bias_kv": True, "add_zero_attn": True},
    "all": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 6, "vdim": 3, "bias": False},
    "batch second": {"batch_first": False},
    "batch second, all": {"batch_first": False, "add_bias_kv": True, "add_zero_attn": True},
}
GRID = [
    (build, kind, mask, batched)
    for build, kind, mask, batched in itertools.product(BUILDS, ("self", "memory", "three"), masks(S), (True, False))
    if not (kind != "three" and ("kdim" in build or build == "all"))
]


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
def test_with_softmax_it_is_torchs(build: str, batched: bool) -> None:
    for _, kind, mask, _ in (row for row in GRID if row[0] == build and row[3] == batched):
        ours, torchs = pair(**BUILDS[build])
        options = masks(L if kind == "self" else S, batched)[mask]
        leaves = inputs(ours, kind, batched)
        for need, average in ((True, True), (True, False), (False, True)):
            asked = options | {"need_weights": need, "average_attn_weights": average}
            found, expected = everything(ours, leaves, **asked), everything(torchs, leaves, **asked)
            assert_same(found, expected)
            with torch.no_grad():  # in evaluation torch takes its fused path where it can
                found, expected = ours.eval()(*leaves, **asked), torchs.eval()(*leaves, **asked)
            torch.testing.assert_close(found[0], expected[0], atol=1e-10, rtol=1e-10)
            assert (found[1] is None) == (expected[1] is None) == (not need)
            if need:
                torch.testing.assert_close(found[1], expected[1], atol=1e-10, rtol=1e-10)


def test_in_float32_too() -> None:
    ours, torchs = (module.float() for module in pair())
    leaves = tuple(x.detach().float() for x in inputs(ours, "three"))
    for a, b in zip(ours(*leaves), torchs(*leaves), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)  # weights and inputs of size 1: scores of size 10


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("floating", [True, False])
def test_the_causal_hint_with_its_mask_is_torchs(need_weights: bool, padded: bool, floating: bool) -> None:
    ours, torchs = pair()
    leaves = inputs(ours, "self")
    above = torch.ones(L, L, dtype=torch.bool).triu(1)
    options = {
        "attn_mask": torch.zeros(L, L, dtype=torch.float64).masked_fill(above, -torch.inf) if floating else above
    }
    if padded:
        pads = masks(L)["padding"]["key_padding_mask"]
        options["key_padding_mask"] = (
            torch.zeros(N, L, dtype=torch.float64).masked_fill(pads, -torch.inf) if floating else pads
        )
    options |= {"is_causal": True, "need_weights": need_weights}
    assert_same(everything(ours, leaves, **options), everything(torchs, leaves, **options))


@pytest.mark.parametrize("build", ["plain", "bias kv zero attn"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_the_causal_hint_alone_is_the_mask(build: str, need_weights: bool) -> None:
    module = built(sl.MultiheadAttention, **BUILDS[build])
    for kind, keys in (("self", L), ("three", S)):
        leaves = inputs(module, kind)
        above = torch.ones(L, keys, dtype=torch.bool).triu(1)
        pads = masks(keys)["padding"]
        for more in ({}, pads):
            hinted = everything(module, leaves, is_causal=True, need_weights=need_weights, **more)
            assert_same(hinted, everything(module, leaves, attn_mask=above, need_weights=need_weights, **more))


def test_dropout_in_training_is_torchs_and_none_in_evaluation() -> None:
    ours, torchs = pair(dropout=0.4)
    leaves = inputs(ours, "three")
    results = []
    for module in (ours, torchs):
        torch.manual_seed(0)
        results.append(everything(module, leaves, average_attn_weights=False))
    assert_same(*results)
    assert (results[0][1] == 0).any()
    for module in (ours, torchs):
        module.eval()
    assert_same(everything(ours, leaves), everything(torchs, leaves))
    assert torch.equal(ours(*leaves, need_weights=False)[0], ours(*leaves, need_weights=False)[0])
    ours.train()
    assert not torch.equal(ours(*leaves, need_weights=False)[0], ours(*leaves, need_weights=False)[0])


@EVERY
def test_dropout_works_with_every_mapping(mapping) -> None:
    module = built(sl.MultiheadAttention, dropout=0.5, mapping=copy.deepcopy(mapping))
    leaves = inputs(module, "three")
    torch.manual_seed(0)
    dropped = module(*leaves, average_attn_weights=False)[1]
    whole = module.eval()(*leaves, average_attn_weights=False)[1]
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])
    assert not kept.all()
    assert module.train()(*leaves, need_weights=False)[0].isfinite().all()


@pytest.mark.parametrize("mapping", ROWS)
@pytest.mark.parametrize("mask", masks(S))
def test_the_formula(mapping: str, mask: str) -> None:
    module = built(sl.MultiheadAttention, mapping=mapping)
    q, k, v = inputs(module, "three")
    options = masks(S)[mask]
    found, weights = module(q, k, v, average_attn_weights=False, **options)

    bias = torch.zeros(N, HEADS, L, S, dtype=torch.float64)
    for name, given in options.items():
        given = (
            given
            if given.dtype != torch.bool
            else torch.zeros(given.shape, dtype=torch.float64).masked_fill(given, -torch.inf)
        )
        bias = bias + (
            given[:, None, None]
            if name == "key_padding_mask"
            else given
            if given.ndim == 2
            else given.view(N, HEADS, L, S)
        )
    (w_q, w_k, w_v), (b_q, b_k, b_v) = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    expected = torch.zeros(N, L, E, dtype=torch.float64)
    for n, h in itertools.product(range(N), range(HEADS)):
        part = slice(h * E // HEADS, (h + 1) * E // HEADS)
        rows = [x[n] @ w[part].T + b[part] for x, w, b in ((q, w_q, b_q), (k, w_k, b_k), (v, w_v, b_v))]
        scores = rows[0] @ rows[1].T / (E // HEADS) ** 0.5 + bias[n, h]
        torch.testing.assert_close(weights[n, h], ROWS[mapping](scores, -1))
        expected[n, :, part] = ROWS[mapping](scores, -1) @ rows[2]
    expected = expected @ module.out_proj.weight.T + module.out_proj.bias
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(module(q, k, v, need_weights=False, **options)[0], expected)


def test_scale_free_is_scale_free_attention_in_each_head() -> None:
    module = built(sl.MultiheadAttention, mapping="scale_free")
    q, k, v = inputs(module, "three")
    pads = masks(S)["padding"]["key_padding_mask"]
    parts = [
        nn.functional.linear(x, w, b).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for x, w, b in zip((q, k, v), module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3), strict=True)
    ]
    heads = F.scale_free_attention(*parts, ~pads[:, None, None], locality=LOCALITY)
    expected = module.out_proj(heads.transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(q, k, v, pads, need_weights=False)[0], expected)
    out, weights = module(q, k, v, pads, average_attn_weights=False)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(weights @ parts[2], heads)
    assert not weights[pads[:, None, None].expand_as(weights)].any()


@EVERY
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("floating", [True, False])
def test_a_fully_padded_row_is_the_bias_with_gradient_zero(mapping, training: bool, floating: bool) -> None:
    module = built(sl.MultiheadAttention, mapping=copy.deepcopy(mapping)).train(training)
    q, k, v = inputs(module, "three")
    pads = masks(S)["padding"]["key_padding_mask"]
    pads[1] = True
    mask = torch.zeros(N, S, dtype=torch.float64).masked_fill(pads, -torch.inf) if floating else pads
    for need in (True, False):
        out, weights = module(q, k, v, mask, need_weights=need)
        torch.testing.assert_close(out[1], module.out_proj.bias.expand(L, E), atol=0, rtol=0)
        assert out.isfinite().all()
        assert weights is None or not weights[1].any()
        grads = torch.autograd.grad(out.square().sum(), [q, k, v, *module.parameters()], allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in grads)
        assert not any(g[1].any() for g in grads[:3])
        with torch.no_grad():
            torch.testing.assert_close(module(q, k, v, mask, need_weights=need)[0], out)


@EVERY
def test_padding_may_hold_nan_and_changes_nothing(mapping) -> None:
    module = built(sl.MultiheadAttention, mapping=copy.deepcopy(mapping))
    q, k, v = inputs(module, "three", grad=False)
    pads = torch.zeros(N, S, dtype=torch.bool)
    pads[:, 5:] = True
    expected = module(q, k[:, :5], v[:, :5])
    k[:, 5:], v[:, 5:] = torch.nan, torch.inf
    for need in (True, False):
        out, weights = module(q, k, v, pads, need_weights=need)
        torch.testing.assert_close(out, expected[0], atol=1e-4, rtol=1e-4)  # scale-free: to the solver's tolerance
        assert weights is None or not weights[..., 5:].any()


def test_mixed_masks_are_taken_as_they_are() -> None:
    module = built(sl.MultiheadAttention)
    leaves = inputs(module, "three")
    attn, pads = masks(S)["attn added"]["attn_mask"], masks(S)["padding"]["key_padding_mask"]
    added = torch.zeros(N, S, dtype=torch.float64).masked_fill(pads, -torch.inf)
    expected = everything(module, leaves, attn_mask=attn, key_padding_mask=added)
    assert_same(everything(module, leaves, attn_mask=attn, key_padding_mask=pads), expected)
    least = torch.zeros(N, S, dtype=torch.float64).masked_fill(pads, torch.finfo(torch.float64).min)
    assert_same(everything(module, leaves, attn_mask=attn, key_padding_mask=least), expected)


def test_it_is_torchs_module_in_keys_types_and_weights() -> None:
    for options in BUILDS.values():
        ours, torchs = pair("sparsemax", **options)
        assert isinstance(ours, nn.MultiheadAttention)
        assert list(ours.state_dict()) == list(torchs.state_dict())
        torchs.load_state_dict(ours.state_dict())
        torch.manual_seed(0)
        fresh = sl.MultiheadAttention(E, HEADS, **options)
        torch.manual_seed(0)
        for a, b in zip(fresh.parameters(), nn.MultiheadAttention(E, HEADS, **options).parameters(), strict=True):
            assert torch.equal(a, b)  # the same start from the same seed
    assert built(sl.MultiheadAttention, dtype=torch.bfloat16).in_proj_weight.dtype == torch.bfloat16
    assert sl.MultiheadAttention(E, HEADS, device="meta").in_proj_weight.is_meta
    assert "mapping='sparsemax'" in repr(sl.MultiheadAttention(E, HEADS))


def test_a_module_as_mapping_is_part_of_it_and_trains() -> None:
    module = built(sl.MultiheadAttention)
    module.set_mapping(sl.Entmax(torch.full((HEADS, 1, 1), 1.5, dtype=torch.float64), learn_alpha=True))
    assert [name for name in module.state_dict() if name.startswith("mapping.")] == ["mapping.logit_alpha"]
    leaves = inputs(module, "three")
    found = module(*leaves)[0]
    torch.testing.assert_close(found, built(sl.MultiheadAttention, mapping="entmax15")(*leaves)[0])
    for need in (True, False):
        module.zero_grad()
        module(*leaves, need_weights=need)[0].square().sum().backward()
        assert module.mapping.logit_alpha.grad.ne(0).all()
    assert "Entmax" in repr(module)
    torch.testing.assert_close(built(sl.MultiheadAttention, mapping=nn.Softmax(-1))(*leaves)[0], pair()[1](*leaves)[0])
    module.set_mapping("softmax")
    assert not any(name.startswith("mapping") for name in module.state_dict())
    module.set_mapping(sl.Sparsemax())
    module.set_mapping(sl.Entmax15())
    assert isinstance(module.mapping, sl.Entmax15)


@pytest.mark.parametrize("mapping", [*NAMED, F.entmax15])
def test_copies_and_pickles(mapping) -> None:
    module = built(sl.MultiheadAttention, mapping=mapping).eval()
    leaves = inputs(module, "three", grad=False)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        assert torch.equal(other(*leaves)[0], module(*leaves)[0])
        assert other.mapping == mapping


@pytest.mark.parametrize("mapping", ["softmax", "sparsemax", "entmax15"])
def test_autocast_and_sixteen_bits(mapping: str) -> None:
    module = built(sl.MultiheadAttention, mapping=mapping, dtype=torch.float32, add_bias_kv=True, add_zero_attn=True)
    leaves = tuple(x.detach().float() for x in inputs(module, "three"))
    pads, added = masks(S)["padding"]["key_padding_mask"], masks(S)["attn added"]["attn_mask"].float()
    expected = module(*leaves, pads, attn_mask=added)[0]
    with torch.autocast("cpu", torch.bfloat16):
        for need in (True, False):
            out = module(*leaves, pads, attn_mask=added, need_weights=need)[0]
            assert out.dtype == torch.bfloat16
            torch.testing.assert_close(out.float(), expected, atol=0.5, rtol=0.1)
    half = module.bfloat16()
    out, weights = half(*(x.bfloat16() for x in leaves), pads)
    assert out.dtype == weights.dtype == torch.bfloat16
    assert out.isfinite().all()


@pytest.mark.parametrize("mapping", ["softmax", "sparsemax", "entmax15"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_compile_in_one_graph(mapping: str, need_weights: bool) -> None:
    module = built(sl.MultiheadAttention, mapping=mapping)
    leaves = inputs(module, "self")
    pads = masks(L)["padding"]["key_padding_mask"]
    call = lambda *x: module(*x, pads, need_weights=need_weights)[0]  # noqa: E731
    torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(*leaves), call(*leaves))


@pytest.mark.parametrize("mapping", ["softmax", "sparsemax", "entmax15"])
def test_long_sequences_without_weights_are_the_same(mapping: str) -> None:
    module = built(sl.MultiheadAttention, mapping=mapping, dtype=torch.float32)
    x = random(2, 1100, E, seed=1, dtype=torch.float32).requires_grad_()
    pads = torch.arange(1100) >= torch.tensor([[1100], [700]])
    for options in ({"key_padding_mask": pads}, {"is_causal": True}, {"is_causal": True, "key_padding_mask": pads}):
        found, expected = (everything(module, (x, x, x), need_weights=need, **options) for need in (False, True))
        for i in (0, *range(2, len(found))):
            torch.testing.assert_close(found[i], expected[i], atol=1e-3, rtol=1e-3)


def test_empty_batches_queries_and_keys() -> None:
    for mapping in NAMED:
        module = built(sl.MultiheadAttention, mapping=mapping)
        for n, queries, keys in ((0, L, S), (N, 0, S), (N, L, 0)):
            q, k, v = (torch.zeros(n, m, E, dtype=torch.float64) for m in (queries, keys, keys))
            for need in (True, False):
                out, weights = module(q, k, v, need_weights=need)
                torch.testing.assert_close(out, out if keys else module.out_proj.bias.expand(n, queries, E))
                assert out.shape == (n, queries, E)
                assert weights is None or weights.shape == (n, queries, keys)


@EVERY
def test_inputs_are_left_alone(mapping) -> None:
    module = built(sl.MultiheadAttention, mapping=copy.deepcopy(mapping), add_bias_kv=True)
    leaves, options = inputs(module, "three", grad=False), masks(S)["both"]
    before = [x.clone() for x in (*leaves, *options.values(), *module.parameters())]
    module(*leaves, is_causal=True, **options)
    after = (*leaves, *options.values(), *module.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


X, Y = torch.ones(N, L, E), torch.ones(N, S, E)
MHA = sl.MultiheadAttention(E, HEADS, batch_first=True)
WRONG = [
    (lambda: sl.MultiheadAttention(8, 3), ValueError, "embed_dim must be a multiple of num_heads, got 8 and 3"),
    (lambda: sl.MultiheadAttention(0, 1), ValueError, "embed_dim must be at least 1, got 0"),
    (lambda: sl.MultiheadAttention(8, 0), ValueError, "num_heads must be at least 1, got 0"),
    (lambda: sl.MultiheadAttention(8, 2, dropout=1.5), ValueError, r"dropout must lie in \[0, 1\], got 1.5"),
    (
        lambda: sl.MultiheadAttention(8, 2, mapping="entmax"),
        ValueError,
        "mapping must be one of softmax.*scale_free.*got 'entmax'",
    ),
    (
        lambda: sl.MultiheadAttention(8, 2, mapping=1.5),
        TypeError,
        "mapping must be one of .* or an nn.Module instance, got 1.5",
    ),
    (lambda: sl.MultiheadAttention(8, 2, mapping=None), TypeError, "mapping must be one of"),
    (lambda: sl.MultiheadAttention(8, 2, mapping=sl.Sparsemax), TypeError, "an nn.Module instance, got <class"),
    (lambda: MHA(X.long(), Y, Y), TypeError, r"query must be floating point, got torch.int64; use query.float\(\)"),
    (lambda: MHA(X, Y, Y.int()), TypeError, "value must be floating point"),
    (
        lambda: MHA(X[..., :3], Y, Y),
        ValueError,
        r"query must be \(length, 8\) or, .* batched with 3 axes, got \(3, 5, 3\)",
    ),
    (lambda: MHA(X, Y[0], Y[0]), ValueError, r"key must be .* got \(7, 8\) beside a query of shape \(3, 5, 8\)"),
    (lambda: MHA(X[0, 0], Y, Y), ValueError, "query must be"),
    (
        lambda: MHA(X, Y, Y[:, :6]),
        ValueError,
        r"key and value must have one length and batch size, got \(3, 7, 8\) and \(3, 6, 8\)",
    ),
    (
        lambda: MHA(X, Y[:2], Y[:2]),
        ValueError,
        r"query, key and value must have one batch size, got 3, 2, 2 \(batch_first=True\)",
    ),
    (
        lambda: MHA(X, Y, Y, torch.zeros(N, L).bool()),
        ValueError,
        r"key_padding_mask must be \(batch, keys\) = \(3, 7\).*got \(3, 5\)",
    ),
    (
        lambda: MHA(X, Y, Y, torch.zeros(N, S).long()),
        TypeError,
        r"key_padding_mask must be boolean \(True = ignore\).*torch.int64; use",
    ),
    (
        lambda: MHA(X, Y, Y, attn_mask=torch.zeros(S, L)),
        ValueError,
        r"attn_mask must be \(queries, keys\) = \(5, 7\) or .*\(6, 5, 7\), got \(7, 5\)",
    ),
    (lambda: MHA(X, Y, Y, attn_mask=torch.zeros(N, L, S)), ValueError, r"got \(3, 5, 7\)"),
    (lambda: MHA(X, Y, Y, attn_mask=torch.zeros(L, S).int()), TypeError, "attn_mask must be boolean"),
    (lambda: sl.SparseAttention("entmax"), ValueError, "mapping must be one of softmax"),
    (lambda: sl.SparseAttention(None), TypeError, "mapping must be one of"),
    (lambda: sl.SparseAttention(dropout=-1.0), ValueError, r"dropout must lie in \[0, 1\], got -1.0"),
    (
        lambda: sl.SparseAttention("scale_free", scale=1.0),
        ValueError,
        "does not depend on a scale, got scale=1.0; leave it out",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[f"{i}-{w[2][:40]}" for i, w in enumerate(WRONG)])
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
def test_a_nested_tensor_is_refused_with_its_remedy() -> None:
    nested = torch.nested.as_nested_tensor([X[0], X[1, :3]])
    with pytest.raises(ValueError, match=r"query is a nested tensor.*set its use_nested_tensor = False"):
        MHA(nested, nested, nested)


def heads(*, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(random(2, 4, n, 8, seed=seed + i).requires_grad_() for i, n in enumerate((L, S, S)))


@pytest.mark.parametrize("mapping", [*NAMED, torch.softmax])
def test_sparse_attention_is_the_function(mapping) -> None:
    q, k, v = heads()
    mask = ~masks(S)["attn"]["attn_mask"]
    mask[2] = False
    scale = None if mapping == "scale_free" else 0.3
    module = sl.SparseAttention(mapping, scale=scale)
    assert not list(module.parameters())
    for options in ({}, {"is_causal": True}, {"attn_mask": mask}, {"attn_mask": mask, "is_causal": True}):
        if mapping == "scale_free":
            expected = F.scale_free_attention(q, k, v, **options, locality=LOCALITY)
        else:
            expected = F.scaled_dot_product_attention(q, k, v, **options, scale=scale, mapping=mapping)
        assert torch.equal(module(q, k, v, **options), expected)
    grouped = module(q, k[:, :2], v[:, :2], enable_gqa=True)
    torch.testing.assert_close(grouped, module(q, k[:, :2].repeat_interleave(2, 1), v[:, :2].repeat_interleave(2, 1)))


@EVERY
def test_sparse_attention_drops_weights_in_training_only(mapping) -> None:
    q, k, _ = heads()
    module = sl.SparseAttention(copy.deepcopy(mapping), dropout=0.5)
    v = torch.eye(S, dtype=torch.float64).expand(2, 4, S, S)
    whole = module.eval()(q, k, v)
    assert torch.equal(module(q, k, v), whole)
    dropped = module.train()(q, k, v)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])
    assert not torch.equal(kept, whole != 0)


def test_sparse_attention_with_a_module_registers_it() -> None:
    module = sl.SparseAttention(sl.Entmax(1.7, learn_alpha=True))
    assert list(module.state_dict()) == ["mapping.logit_alpha"]
    q, k, v = heads()
    module.double()(q, k, v, is_causal=True).square().sum().backward()
    assert module.mapping.logit_alpha.grad.ne(0)
    assert repr(sl.SparseAttention("entmax15", 0.1)) == "SparseAttention(mapping='entmax15', dropout=0.1, scale=None)"
