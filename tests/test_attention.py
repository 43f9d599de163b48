"""Dot-product attention: against torch's own with softmax, the formula with the other mappings; masks, dtypes, errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as torchs

import sparselayers as sl
import sparselayers.functional as F

SPARSE = {"sparsemax": F.sparsemax, "entmax15": F.entmax15}
EVERY = pytest.mark.parametrize("mapping", ["softmax", "sparsemax", "entmax15", "scale_free", torch.softmax])
DOT = pytest.mark.parametrize("mapping", ["softmax", "sparsemax", "entmax15", torch.softmax])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(lead=(2, 3), L=5, S=7, E=4, Ev=4, kv_lead=None, dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    kv_lead = lead if kv_lead is None else kv_lead
    shapes = ((*lead, L, E), (*kv_lead, S, E), (*kv_lead, S, Ev))
    return tuple(random(*s, seed=i, dtype=dtype).requires_grad_() for i, s in enumerate(shapes))


def a_mask(*shape: int) -> Tensor:
    """True = may attend; every query keeps key 0, so that torch gives numbers too."""
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(9)) > 0.4
    mask[..., 0] = True
    return mask


def with_gradients(f, *leaves: Tensor) -> tuple[Tensor, ...]:
    out = f(*leaves)
    return out, *torch.autograd.grad((out * random(*out.shape, seed=5, dtype=out.dtype)).sum(), leaves)


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], **tolerance: float) -> None:
    for name, a, b in zip(("output", "query", "key", "value", "mask"), found, expected, strict=False):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def by_torch(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return torchs(q, k, v, attn_mask=mask, **options)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize(("L", "S"), [(5, 7), (7, 5), (1, 1)])
@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"scale": 0.3}, {"scale": 2.0, "is_causal": True}], ids=str
)
def test_softmax_is_torchs(lead, L: int, S: int, options: dict) -> None:
    leaves = inputs(lead, L, S)
    found = with_gradients(lambda *t: F.scaled_dot_product_attention(*t, mapping="softmax", **options), *leaves)
    assert_same(found, with_gradients(lambda *t: by_torch(*t, **options), *leaves), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7), (2, 1, 5, 7), (2, 3, 5, 7), (1, 7)], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_softmax_with_a_boolean_mask_is_torchs(shape, is_causal: bool) -> None:
    leaves, mask = inputs(), a_mask(*shape)
    both = mask & torch.ones(5, 7, dtype=torch.bool).tril() if is_causal else mask
    found = with_gradients(
        lambda *t: F.scaled_dot_product_attention(*t, mask, is_causal=is_causal, mapping="softmax"), *leaves
    )
    assert_same(found, with_gradients(lambda *t: by_torch(*t, both), *leaves), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 5, 7), (2, 3, 1, 7)], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_softmax_with_a_floating_mask_is_torchs_and_the_mask_learns(shape, is_causal: bool) -> None:
    leaves = (*inputs(), random(*shape, seed=4).requires_grad_())
    above = torch.ones(5, 7, dtype=torch.bool).triu(1) & is_causal
    found = with_gradients(
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, is_causal=is_causal, mapping="softmax"), *leaves
    )
    expected = with_gradients(lambda q, k, v, m: by_torch(q, k, v, m.masked_fill(above, -torch.inf)), *leaves)
    assert_same(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lead", [(2,), ()], ids=str)
@pytest.mark.parametrize("heads", [1, 2, 6])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=str)
def test_grouped_queries_are_torchs(lead, heads: int, options: dict) -> None:
    leaves = inputs((*lead, 6), kv_lead=(*lead, heads), Ev=3)
    ours = lambda *t: F.scaled_dot_product_attention(*t, mapping="softmax", enable_gqa=True, **options)  # noqa: E731
    assert_same(
        with_gradients(ours, *leaves),
        with_gradients(lambda *t: by_torch(*t, enable_gqa=True, **options), *leaves),
        rtol=1e-10,
        atol=1e-12,
    )


def test_value_width_is_free_and_leading_axes_broadcast() -> None:
    leaves = inputs(Ev=9)
    found = with_gradients(lambda *t: F.scaled_dot_product_attention(*t, mapping="softmax"), *leaves)
    assert found[0].shape == (2, 3, 5, 9)
    assert_same(found, with_gradients(by_torch, *leaves), rtol=1e-10, atol=1e-12)
    q, k, v = inputs((2, 3), kv_lead=(3,))
    expected = by_torch(q, k.expand(2, 3, 7, 4), v.expand(2, 3, 7, 4))
    torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, mapping="softmax"), expected)
    for mapping in (*SPARSE, "scale_free"):
        found = F.scaled_dot_product_attention(q, k, v, mapping=mapping)
        each = [F.scaled_dot_product_attention(sample, k, v, mapping=mapping) for sample in q]
        torch.testing.assert_close(found, torch.stack(each))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=str)
def test_softmax_in_sixteen_bits_is_torchs(dtype: torch.dtype, options: dict) -> None:
    leaves = inputs(dtype=dtype)
    found = with_gradients(lambda *t: F.scaled_dot_product_attention(*t, mapping="softmax", **options), *leaves)
    assert all(t.dtype == dtype for t in found)
    assert_same(found, with_gradients(lambda *t: by_torch(*t, **options), *leaves), rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("mapping", SPARSE)
@pytest.mark.parametrize("masked", [None, "boolean", "floating"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_sparse_mappings_are_the_formula(mapping: str, masked: str | None, is_causal: bool) -> None:
    leaves = inputs(Ev=3)
    seen = a_mask(2, 3, 5, 7) if masked == "boolean" else torch.ones(2, 3, 5, 7, dtype=torch.bool)
    if is_causal:
        seen = seen & torch.ones(5, 7, dtype=torch.bool).tril()
    bias = random(2, 3, 5, 7, seed=4) if masked == "floating" else torch.zeros(1, dtype=torch.float64)
    mask = {None: None, "boolean": a_mask(2, 3, 5, 7), "floating": bias}[masked]

    def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (torch.einsum("...le,...se->...ls", q, k) * 1.7 + bias).masked_fill(~seen, -torch.inf)
        return SPARSE[mapping](scores, -1) @ v

    ours = lambda q, k, v: F.scaled_dot_product_attention(  # noqa: E731
        q, k, v, mask, is_causal=is_causal, scale=1.7, mapping=mapping
    )
    assert_same(with_gradients(ours, *leaves), with_gradients(naive, *leaves), rtol=1e-10, atol=1e-11)


def test_sparsemax_is_the_default_and_its_weights_have_exact_zeros() -> None:
    q, k, _ = inputs()
    eye = torch.eye(7, dtype=torch.float64).expand(2, 3, 7, 7)
    weights = F.scaled_dot_product_attention(q, k, eye, scale=3.0)
    torch.testing.assert_close(weights, F.scaled_dot_product_attention(q, k, eye, scale=3.0, mapping="sparsemax"))
    assert (weights == 0).any(-1).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5, dtype=torch.float64))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("fill", ["-inf", "finfo.min", "below half of it"])
def test_what_counts_as_masked(mapping, dtype: torch.dtype, fill: str) -> None:
    leaves, mask = inputs(dtype=dtype), a_mask(2, 1, 5, 7)
    mask[0, 0, 2] = False
    least = torch.finfo(dtype).min
    number = {"-inf": -torch.inf, "finfo.min": least, "below half of it": 0.75 * least}[fill]
    added = torch.zeros(2, 1, 5, 7, dtype=dtype).masked_fill(~mask, number)
    found = with_gradients(lambda *t: F.scaled_dot_product_attention(*t, added, mapping=mapping), *leaves)
    expected = with_gradients(lambda *t: F.scaled_dot_product_attention(*t, mask, mapping=mapping), *leaves)
    assert all(t.isfinite().all() for t in found)
    assert_same(found, expected, rtol=0, atol=0)


@DOT
def test_a_finite_bias_beside_masked_keys(mapping) -> None:
    leaves, mask, bias = inputs(), a_mask(5, 7), random(5, 7, seed=4)
    added = bias.masked_fill(~mask, torch.finfo(torch.float64).min)
    found = with_gradients(lambda *t: F.scaled_dot_product_attention(*t, added, mapping=mapping), *leaves)
    expected = with_gradients(
        lambda *t: F.scaled_dot_product_attention(
            *t,
            bias,
            mapping=lambda s, d: {"softmax": torch.softmax, **SPARSE}.get(mapping, torch.softmax)(
                s.masked_fill(~mask, -torch.inf), d
            ),
        ),
        *leaves,
    )
    assert_same(found, expected)


@DOT
def test_nan_in_an_additive_mask_is_not_hidden(mapping) -> None:
    q, k, v = inputs()
    added = torch.zeros(5, 7, dtype=torch.float64)
    added[1, 2] = torch.nan
    out = F.scaled_dot_product_attention(q, k, v, added, mapping=mapping)
    assert out[..., 1, :].isnan().all()
    assert out[..., [0, 2, 3, 4], :].isfinite().all()


@EVERY
@pytest.mark.parametrize("kind", ["boolean", "-inf", "finfo.min"])
def test_a_fully_masked_query_gives_zero_and_gets_zero(mapping, kind: str) -> None:
    q, k, v = inputs()
    seen = a_mask(2, 3, 5, 7)
    seen[:, :, 3] = False
    fill = -torch.inf if kind == "-inf" else torch.finfo(torch.float64).min
    mask = seen if kind == "boolean" else torch.zeros(2, 3, 5, 7, dtype=torch.float64).masked_fill(~seen, fill)
    weight = random(2, 3, 5, 4, seed=6)
    out = F.scaled_dot_product_attention(q, k, v, mask, mapping=mapping)
    found = torch.autograd.grad((out * weight).sum(), (q, k, v))
    assert (out[:, :, 3] == 0).all()
    assert (found[0][:, :, 3] == 0).all()
    rest = [0, 1, 2, 4]
    part = F.scaled_dot_product_attention(q[:, :, rest], k, v, seen[:, :, rest], mapping=mapping)
    torch.testing.assert_close(out[:, :, rest], part)
    for a, b in zip(found, torch.autograd.grad((part * weight[:, :, rest]).sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b)


@EVERY
def test_everything_masked_is_zero(mapping) -> None:
    leaves = inputs()
    none = torch.zeros(5, 7, dtype=torch.bool)
    found = with_gradients(lambda *t: F.scaled_dot_product_attention(*t, none, mapping=mapping), *leaves)
    assert all((t == 0).all() for t in found)


@EVERY
@pytest.mark.parametrize("kind", ["boolean", "-inf", "keys"])
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e300])
def test_keys_masked_for_every_query_may_hold_anything(mapping, kind: str, junk: float) -> None:
    q, k, v = inputs((2,))
    seen = a_mask(2, 5, 7)
    seen[0, :, 4:] = False
    seen[1, :, 1] = False
    if kind == "keys":
        seen = seen.any(-2, keepdim=True)
    unused = ~seen.any(-2).unsqueeze(-1)
    mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf) if kind == "-inf" else seen
    dirty = tuple(t.detach().masked_fill(unused, junk).requires_grad_() for t in (k, v))
    found = with_gradients(lambda *t: F.scaled_dot_product_attention(*t, mask, mapping=mapping), q, *dirty)
    assert all(t.isfinite().all() for t in found)
    assert_same(found, with_gradients(lambda *t: F.scaled_dot_product_attention(*t, mask, mapping=mapping), q, k, v))
    assert all((t[unused.expand_as(t)] == 0).all() for t in found[2:])


@EVERY
def test_keys_beyond_the_causal_triangle_may_hold_anything(mapping) -> None:
    q, k, v = inputs((2,), L=3)
    clean = F.scaled_dot_product_attention(q, k, v, is_causal=True, mapping=mapping)
    k, v = k.detach().clone(), v.detach().clone()
    k[:, 3:], v[:, 3:] = torch.nan, torch.nan
    torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, is_causal=True, mapping=mapping), clean)


@EVERY
def test_grouped_queries_with_unused_keys(mapping) -> None:
    q, k, v = inputs((2, 6), kv_lead=(2, 2))
    seen = a_mask(2, 1, 5, 7)
    seen[..., 5:] = False
    call = lambda k, v, **o: F.scaled_dot_product_attention(q, k, v, seen, mapping=mapping, **o)  # noqa: E731
    expected = call(k.repeat_interleave(3, -3), v.repeat_interleave(3, -3))
    k, v = k.detach().clone(), v.detach().clone()
    k[..., 5:, :], v[..., 5:, :] = torch.nan, torch.nan
    torch.testing.assert_close(call(k, v, enable_gqa=True), expected)


def test_a_callable_gets_scores_and_dim_and_its_weights_are_used() -> None:
    q, k, v = inputs()
    calls = []

    def mapping(scores: Tensor, dim: int) -> Tensor:
        calls.append((scores, dim))
        return scores.square()

    out = F.scaled_dot_product_attention(q, k, v, scale=0.7, mapping=mapping)
    ((scores, dim),) = calls
    assert dim == -1
    torch.testing.assert_close(scores, 0.7 * q @ k.mT)
    torch.testing.assert_close(out, (0.7 * q @ k.mT).square() @ v)
    half = inputs(dtype=torch.bfloat16)
    F.scaled_dot_product_attention(*half, mapping=mapping)
    assert calls[-1][0].dtype == torch.float32


def test_a_callable_sees_masked_scores_as_minus_inf() -> None:
    q, k, v = inputs()
    seen = a_mask(5, 7)
    calls = []

    def mapping(scores: Tensor, dim: int) -> Tensor:
        calls.append(scores)
        return torch.ones_like(scores)

    out = F.scaled_dot_product_attention(q, k, v, seen, mapping=mapping)
    assert torch.equal(calls[0] == -torch.inf, (~seen).expand(2, 3, 5, 7))
    torch.testing.assert_close(out, seen.double() @ v)  # what is masked has weight 0, whatever the mapping says


@DOT
def test_dropout(mapping) -> None:
    q, k, _ = inputs(L=40, S=30)
    eye = torch.eye(30, dtype=torch.float64).expand(2, 3, 30, 30)
    weights = F.scaled_dot_product_attention(q, k, eye, mapping=mapping)
    assert (F.scaled_dot_product_attention(q, k, eye, dropout_p=1.0, mapping=mapping) == 0).all()
    torch.manual_seed(0)
    out = F.scaled_dot_product_attention(q, k, eye, dropout_p=0.5, mapping=mapping)
    kept = (out != 0) & (weights != 0)
    torch.testing.assert_close(out, torch.where(kept, 2 * weights, 0))
    assert 0.4 < kept.sum() / (weights != 0).sum() < 0.6
    torch.testing.assert_close(F.scaled_dot_product_attention(q, k, eye, None, 0.0, mapping=mapping), weights)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_row_sums(mapping, dtype: torch.dtype) -> None:
    q, k, _ = inputs(L=20, S=200, E=16, dtype=dtype)
    ones = torch.ones(2, 3, 200, 5, dtype=dtype)
    out = F.scaled_dot_product_attention(q, k, ones, mapping=mapping)
    assert out.dtype == dtype
    assert (out.double() - 1).abs().max() <= torch.finfo(dtype).eps


@pytest.mark.parametrize("mapping", ["softmax", "sparsemax", "entmax15"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_the_rounded_answer(mapping, dtype: torch.dtype) -> None:
    q, k, v = (t.detach() for t in inputs(L=20, S=200, E=16, dtype=dtype))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), mapping=mapping)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        F.scaled_dot_product_attention(q, k, v, mapping=mapping).double(), exact, rtol=eps, atol=2e-5
    )


@EVERY
def test_empty_batches_no_queries_and_no_keys(mapping) -> None:
    for lead, L, S in (((0,), 5, 7), ((2, 0), 5, 7), ((2,), 0, 7), ((2,), 5, 0), ((2,), 0, 0)):
        for options in ({}, {"is_causal": True}, {"attn_mask": torch.ones(L, S, dtype=torch.bool)}):
            leaves = inputs(lead, L, S, Ev=3)
            out = F.scaled_dot_product_attention(*leaves, **options, mapping=mapping)
            assert out.shape == (*lead, L, 3)
            assert (out == 0).all()
            out.sum().backward()


@EVERY
def test_inputs_are_left_alone(mapping) -> None:
    leaves, mask = tuple(t.detach() for t in inputs()), a_mask(5, 7)
    before = [t.clone() for t in (*leaves, mask)]
    F.scaled_dot_product_attention(*leaves, mask, is_causal=True, mapping=mapping)
    assert all(torch.equal(a, b) for a, b in zip(before, (*leaves, mask), strict=True))


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"attn_mask": a_mask(5, 7)}], ids=["plain", "causal", "mask"]
)
def test_scale_free_is_scale_free_attention(options: dict) -> None:
    leaves = inputs(Ev=3)
    found = with_gradients(lambda *t: F.scaled_dot_product_attention(*t, **options, mapping="scale_free"), *leaves)
    assert_same(found, with_gradients(lambda *t: F.scale_free_attention(*t, **options), *leaves), rtol=0, atol=0)
    q, k, v = inputs((6,), kv_lead=(2,))
    found = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, mapping="scale_free")
    assert torch.equal(found, F.scale_free_attention(q, k, v, enable_gqa=True))


Q, K, V = torch.ones(2, 6, 5, 4), torch.ones(2, 6, 7, 4), torch.ones(2, 6, 7, 3)
attend = F.scaled_dot_product_attention
WRONG = [
    (lambda: attend(Q.int(), K, V), TypeError, r"query must be floating point, got torch.int32; use query.float\(\)"),
    (lambda: attend(Q, K.int(), V), TypeError, "key must be floating point"),
    (lambda: attend(Q, K, V.bool()), TypeError, "value must be floating point, got torch.bool"),
    (lambda: attend(Q, K, V.double()), TypeError, "query, key and value must have one dtype, got torch.float32"),
    (lambda: attend(Q.half(), K, V), TypeError, "query, key and value must have one dtype, got torch.float16"),
    (lambda: attend(Q[0, 0, 0], K, V), ValueError, r"query must be \(..., length, width\), got \(4,\)"),
    (lambda: attend(Q, K[0, 0, 0], V), ValueError, r"key must be \(..., length, width\)"),
    (lambda: attend(Q, K, V[0, 0, 0]), ValueError, r"value must be \(..., length, width\)"),
    (lambda: attend(Q[..., :3], K, V), ValueError, r"query and key must have the same last axis, got \(2, 6, 5, 3\)"),
    (lambda: attend(Q, K, V[..., :6, :]), ValueError, r"key and value must have the same length \(axis -2\)"),
    (lambda: attend(Q, K[:, :2], V[:, :2]), ValueError, r"leading axes must broadcast.*query \(2, 6\), key \(2, 2\)"),
    (lambda: attend(Q, K, V[:, :2]), ValueError, r"leading axes must broadcast.*value \(2, 2\)"),
    (
        lambda: attend(Q, K[:, :4], V[:, :4], enable_gqa=True),
        ValueError,
        "query heads a multiple of key",
    ),
    (
        lambda: attend(torch.ones(4, 5, 4), torch.ones(2, 7, 4), torch.ones(2, 7, 4)),
        ValueError,
        r"got query \(4,\), key \(2,\), value \(2,\); where axis -3 is heads, enable_gqa=True lets",
    ),
    (lambda: attend(Q[0, 0], K, V, enable_gqa=True), ValueError, "enable_gqa needs heads on axis -3"),
    (lambda: attend(Q, K[0, 0], V[0, 0], enable_gqa=True), ValueError, "enable_gqa needs heads on axis -3"),
    (
        lambda: attend(Q, torch.ones(3, 2, 7, 4), torch.ones(3, 2, 7, 4), enable_gqa=True),
        ValueError,
        r"leading axes must broadcast against each other, got query \(2,\), key \(3,\), value \(3,\)",
    ),
    (lambda: attend(Q, K, V, mapping="entmax"), ValueError, "mapping must be one of softmax.*scale_free.*got 'entmax'"),
    (lambda: attend(Q, K, V, mapping=1.5), TypeError, "mapping must be one of .* or an nn.Module instance, got 1.5"),
    (lambda: attend(Q, K, V, mapping=None), TypeError, "mapping must be one of .*a callable"),
    (lambda: attend(Q, K, V, dropout_p=-0.1), ValueError, r"dropout_p must lie in \[0, 1\], got -0.1"),
    (lambda: attend(Q, K, V, dropout_p=1.5), ValueError, r"dropout_p must lie in \[0, 1\]"),
    (lambda: attend(Q, K, V, dropout_p=float("nan")), ValueError, r"dropout_p must lie in \[0, 1\], got nan"),
    (lambda: attend(Q, K, V, scale=1.0, mapping="scale_free"), ValueError, "does not depend on a scale, got scale=1.0"),
    (lambda: attend(Q, K, V, dropout_p=0.5, mapping="scale_free"), ValueError, "has no dropout, got dropout_p=0.5"),
    (lambda: attend(Q, K, V, torch.ones(5, 7).long()), TypeError, r"attn_mask must be boolean.*torch.int64; use .bool"),
    (lambda: attend(Q, K, V, torch.ones(7, 5)), ValueError, r"attn_mask must broadcast to \(..., 5, 7\).*\(7, 5\)"),
    (lambda: attend(Q, K, V, torch.ones(5, 6).bool()), ValueError, "attn_mask must broadcast to"),
    (lambda: attend(Q, K, V, torch.ones(())), ValueError, "attn_mask must broadcast to"),
    (lambda: attend(Q, K, V, torch.ones(4, 7).bool(), mapping="scale_free"), ValueError, "attn_mask must broadcast to"),
    # The conventions ask for a ValueError on shapes and a TypeError on dtypes, with the remedy.
    (lambda: attend(Q, K, V, torch.ones(3, 1, 5, 7).bool()), ValueError, "attn_mask"),
    (lambda: attend(Q, K, V, torch.ones(3, 1, 5, 7)), ValueError, "attn_mask"),
    (lambda: attend(Q, K, V, torch.ones(3, 1, 5, 7).bool(), mapping="scale_free"), ValueError, "mask"),
    (lambda: attend(Q, K, V, torch.ones(5, 7).double()), TypeError, "attn_mask"),
    (lambda: attend(Q, K[:, :2], V[:, :4], enable_gqa=True), ValueError, "value"),
    (lambda: attend(Q, K[:, :2], V[0, 0], enable_gqa=True), ValueError, "enable_gqa|value"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[f"{i}-{w[2][:40]}" for i, w in enumerate(WRONG)])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_module_as_the_mapping_is_called_with_the_scores_alone() -> None:
    q, k, v = (torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(s)) for s in range(3))
    mapping = sl.Entmax(1.5, learn_alpha=True)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, mapping=mapping)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, is_causal=True, mapping="entmax15"))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mapping.parameters())
