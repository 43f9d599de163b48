"""Attention in blocks against attention with whole weights: values, two derivatives, masks, dropout, and what is held."""

import itertools

import pytest
import torch
from torch import Tensor

import sparselayers as sl
import sparselayers.functional as F
from sparselayers.attention import lean
from sparselayers.ops.kernels import supports

MAPPINGS = ("softmax", "sparsemax", "entmax15")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def in_blocks(monkeypatch):
    """Call a function with blocks of `room` weights, whatever its size."""

    def call(fn, room: int, share: float = 1 / 16):
        with monkeypatch.context() as patch:
            patch.setattr(lean, "WORTH", 0)
            patch.setattr(supports, "SHARE", share)
            patch.setattr(lean, "BLOCK", {"cpu": room, "cuda": room})
            return fn()

    return call


def gradients(fn, *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = fn(*leaves)
    pull = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return out.detach(), *torch.autograd.grad(out, leaves, pull)


def cases() -> dict[str, tuple[tuple[Tensor, Tensor, Tensor], dict]]:
    q, k, v = 2 * randn(2, 3, 7, 5), randn(2, 3, 9, 5, seed=1), randn(2, 3, 9, 4, seed=2)
    whole = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(3)) > 0.4
    whole[0, 1, 2] = False  # a query that may attend to nothing
    padding = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    padding[1, ..., 6:] = False
    added = torch.where(whole, randn(2, 3, 7, 9, seed=4), torch.finfo(torch.float64).min)
    return {
        "plain": ((q, k, v), {}),
        "two axes": ((q[0, 0], k[0, 0], v[0, 0]), {}),
        "boolean": ((q, k, v), {"attn_mask": whole}),
        "padding": ((q, k, v), {"attn_mask": padding}),
        "one axis": ((q, k, v), {"attn_mask": padding[1, 0, 0]}),
        "per query": ((q, k, v), {"attn_mask": whole[0, 0]}),
        "per head": ((q, k, v), {"attn_mask": whole[:1, :, :1]}),
        "added": ((q, k, v), {"attn_mask": added}),
        "causal": ((q, k, v), {"is_causal": True}),
        "causal, more queries": ((k, q, randn(2, 3, 7, 4)), {"is_causal": True}),
        "causal and boolean": ((q, k, v), {"is_causal": True, "attn_mask": whole}),
        "causal and padding": ((q, k, v), {"is_causal": True, "attn_mask": padding}),
        "scale": ((q, k, v), {"scale": 0.1}),
        "grouped heads": ((randn(2, 6, 7, 5), k, v), {"enable_gqa": True}),
        "shared keys": ((q, k[:1, :1], v[:, :1]), {}),
        "more masks than queries": ((q[0, 0], k[0, 0], v[0, 0]), {"attn_mask": whole[0]}),
        "one query": ((q[..., :1, :], k, v), {}),
    }


@pytest.mark.parametrize("room", [1, 20, 70, 10**6], ids="room{}".format)
@pytest.mark.parametrize("name", cases())
def test_blocks_agree_with_whole_weights(name: str, room: int, in_blocks) -> None:
    inputs, options = cases()[name]
    for mapping in MAPPINGS:

        def attention(q, k, v, mapping=mapping):
            return F.scaled_dot_product_attention(q, k, v, mapping=mapping, **options)

        expected = gradients(attention, *inputs)
        for share in (0.0, 0.5, 1.0):  # no block by its support, some, all
            found = in_blocks(lambda attention=attention: gradients(attention, *inputs), room, share)
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_second_derivatives_in_blocks(mapping: str, in_blocks) -> None:
    inputs = [x.requires_grad_() for x in (2 * randn(2, 3, 4), randn(2, 5, 4, seed=1), randn(2, 5, 2, seed=2))]

    def attention(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, mapping=mapping)

    for share in (0.0, 1.0):
        in_blocks(lambda: torch.autograd.gradcheck(attention, inputs), 7, share)
        in_blocks(lambda: torch.autograd.gradgradcheck(attention, inputs, atol=1e-4), 7, share)


def test_supports_on_several_threads(in_blocks) -> None:
    q, k, v = (randn(3, 300, 16, seed=s, dtype=torch.float32) for s in range(3))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(in_blocks(lambda: gradients(F.scaled_dot_product_attention, q, k, v), 10**5, 1.0))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


def test_a_spoilt_query_spoils_its_own_output_only(in_blocks) -> None:
    q, k, v = randn(1, 5, 3), randn(1, 6, 3, seed=1), randn(1, 6, 2, seed=2)
    q[0, 2, 0] = torch.nan
    for share in (0.0, 1.0):
        out = in_blocks(lambda: F.scaled_dot_product_attention(q, k, v), 12, share)
        assert out[0, 2].isnan().all()
        assert out[0, [0, 1, 3, 4]].isfinite().all()


def test_queries_and_keys_that_nobody_uses_may_hold_nan(in_blocks) -> None:
    q, k, v = randn(1, 4, 3), randn(1, 6, 3, seed=1), randn(1, 6, 2, seed=2)
    mask = torch.tensor([True, True, False, True, True, True])
    k[:, 2], v[:, 2], k[:, 5], v[:, 4] = (
        torch.nan,
        torch.inf,
        torch.nan,
        torch.nan,
    )  # causal: keys 4 and 5 are never seen
    for mapping in MAPPINGS:
        found = in_blocks(
            lambda mapping=mapping: gradients(
                lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask, is_causal=True, mapping=mapping), q, k, v
            ),
            6,
        )
        assert all(x.isfinite().all() for x in found)


def test_dropout_draws_the_same_weights_in_the_backward(in_blocks) -> None:
    q, k, v = randn(2, 6, 3), randn(2, 8, 3, seed=1), randn(2, 8, 2, seed=2)

    def attention(q, k, v):
        torch.manual_seed(5)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.4, mapping="entmax15")

    leaves = [x.requires_grad_() for x in (q, k, v)]
    in_blocks(lambda: torch.autograd.gradcheck(attention, leaves), 10)
    one = in_blocks(lambda: attention(q, k, v), 10)
    again = in_blocks(lambda: attention(q, k, v), 10)
    assert torch.equal(one, again)
    everything = in_blocks(lambda: F.scaled_dot_product_attention(q, k, v, dropout_p=1.0), 10)
    assert not everything.any()


def test_dropout_keeps_the_mean(in_blocks) -> None:
    torch.manual_seed(0)
    q, k, v = torch.zeros(1, 4000, 1), torch.zeros(1, 10, 1), torch.ones(1, 10, 1)
    out = in_blocks(lambda: F.scaled_dot_product_attention(q, k, v, dropout_p=0.5), 5000)
    assert abs(float(out.mean()) - 1) < 0.03


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_blocks_in_other_dtypes(dtype: torch.dtype, in_blocks) -> None:
    q, k, v = (x.to(dtype) for x in (randn(2, 9, 4), randn(2, 11, 4, seed=1), randn(2, 11, 4, seed=2)))
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    found = in_blocks(lambda: F.scaled_dot_product_attention(q, k, v), 30)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps
    )


def test_nothing_of_the_size_of_the_weights_is_saved() -> None:
    """By default, at a size from which blocks are used: one million weights a head."""
    saved = []
    q, k, v = (randn(4, 1024, 8, seed=s, dtype=torch.float32).requires_grad_() for s in range(3))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    assert saved
    assert max(saved) <= q.numel()


def test_where_blocks_are_not_used() -> None:
    query = torch.zeros(4, 1024, 8)
    assert lean.serves(query, 1024, None)
    assert not lean.serves(query[:1], 1024, None)
    assert not lean.serves(query, 1024, torch.zeros(1024, 1024, requires_grad=True))
    assert not torch.func.vmap(lambda q: torch.tensor(lean.serves(q, 2**20, None)))(query).any()


def test_empty_attention_in_blocks(in_blocks) -> None:
    for batch, length, n_keys in itertools.product((0, 2), (0, 3), (0, 4)):
        q, k, v = torch.ones(batch, length, 2), torch.ones(batch, n_keys, 2), torch.ones(batch, n_keys, 3)
        out = in_blocks(lambda q=q, k=k, v=v: gradients(F.scaled_dot_product_attention, q, k, v)[0], 5)
        assert out.shape == (batch, length, 3)
        if n_keys == 0:
            assert not out.any()


def test_blocks_without_kernels(in_blocks) -> None:
    q, k, v = randn(2, 6, 3), randn(2, 8, 3, seed=1), randn(2, 8, 2, seed=2)
    for mapping in MAPPINGS:

        def attention(q, k, v, mapping=mapping):
            return F.scaled_dot_product_attention(q, k, v, mapping=mapping)

        with_kernels = in_blocks(lambda attention=attention: gradients(attention, q, k, v), 10)
        with sl.kernels(False):
            without = in_blocks(lambda attention=attention: gradients(attention, q, k, v), 10)
        for ours, theirs in zip(with_kernels, without, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_added_mask_of_16_bits(dtype: torch.dtype, in_blocks) -> None:
    q, k, v = (randn(2, 5, 4, seed=s).to(dtype) for s in range(3))
    mask = randn(5, 5, seed=3).to(dtype)
    mask[0, 1:], mask[2] = torch.finfo(dtype).min, torch.finfo(dtype).min
    expected = F.scaled_dot_product_attention(q, k, v, mask)
    found = in_blocks(lambda: F.scaled_dot_product_attention(q, k, v, mask), 12)
    torch.testing.assert_close(found, expected)
    assert not found[:, 2].any()


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_forward_and_backward_under_autocast(mapping: str, in_blocks) -> None:
    inputs = [randn(2, 6, 4, seed=s, dtype=torch.float32) for s in range(3)]

    def attention(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, mapping=mapping)

    expected = gradients(attention, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = in_blocks(lambda: gradients(attention, *inputs), 12)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_mask_changed_in_place_is_noticed(in_blocks) -> None:
    q, k, v = (randn(2, 6, 4, seed=s).requires_grad_() for s in range(3))
    mask = torch.ones(6, 6, dtype=torch.bool)
    out = in_blocks(lambda: F.scaled_dot_product_attention(q, k, v, mask), 12)
    mask[:, ::2] = False
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_batch_of_gradients_at_once(in_blocks) -> None:
    q, k, v = (randn(1, 3, 2, seed=s).requires_grad_() for s in range(3))

    def rows() -> tuple[Tensor, Tensor]:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        pulls = torch.eye(out.numel(), dtype=out.dtype).view(-1, *out.shape)
        together = torch.autograd.grad(out, q, pulls, is_grads_batched=True, retain_graph=True)[0]
        return together, torch.stack([torch.autograd.grad(out, q, pull, retain_graph=True)[0] for pull in pulls])

    torch.testing.assert_close(*in_blocks(rows, 6))


def test_other_defaults_and_odd_arguments(in_blocks) -> None:
    q, k, v = (randn(2, 5, 4, seed=s, dtype=torch.float32) for s in range(3))
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        out = in_blocks(lambda: F.scaled_dot_product_attention(q, k, v, dropout_p=0.5), 10)
        sparse = in_blocks(lambda: F.scaled_dot_product_attention(q, k, v), 10, 1.0)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert out.dtype == torch.float32
    torch.testing.assert_close(sparse, F.scaled_dot_product_attention(q, k, v))
    assert in_blocks(lambda: F.scaled_dot_product_attention(q, k, v[..., :0]), 10, 1.0).shape == (2, 5, 0)
    scale = torch.tensor(0.5, requires_grad=True)
    in_blocks(lambda: F.scaled_dot_product_attention(q, k, v, scale=scale), 10).sum().backward()
    assert scale.grad.isfinite()


def test_export_of_any_length() -> None:
    class Attention(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    length = torch.export.Dim("length", min=2, max=100000)
    inputs = tuple(torch.randn(1, 2, 20, 8) for _ in range(3))
    program = torch.export.export(Attention(), inputs, dynamic_shapes=({2: length},) * 3)
    longer = tuple(torch.randn(1, 2, 33, 8) for _ in range(3))
    torch.testing.assert_close(program.module()(*longer), Attention()(*longer))
