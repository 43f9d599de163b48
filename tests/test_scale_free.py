"""ScaleFreeAttention and F.scale_free_attention: invariance, masks, caches, derivatives, and what the layer is made of."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparselayers as sl
import sparselayers.functional as F
from sparselayers.attention import lean_scale_free
from sparselayers.attention.weights import LOCALITY

N, L, S, E, HEADS = 2, 6, 9, 8, 2
attend = F.scale_free_attention


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def built(**options) -> sl.ScaleFreeAttention:
    torch.manual_seed(0)
    return sl.ScaleFreeAttention(E, HEADS, **{"dtype": torch.float64, "batch_first": True, "tol": 0.0} | options)


def heads(d: int = 3, width: int = 5, near: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    return near * random(N, HEADS, L, d), random(N, HEADS, S, d, seed=1), random(N, HEADS, S, width, seed=2)


def rotation(d: int) -> Tensor:
    return torch.linalg.qr(random(d, d, seed=9))[0]


def exact(got: Tensor, expected: Tensor, tol: float = 1e-12) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tol)


def split(x: Tensor, n_heads: int) -> Tensor:
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def test_the_layer_is_its_projections_around_the_function() -> None:
    layer = built(kdim=5, vdim=7, num_kv_heads=1, head_dim=3, v_head_dim=6, locality=0.3)
    q, k, v = random(N, L, E), random(N, S, 5, seed=1), random(N, S, 7, seed=2)
    out, weights = layer(q, k, v)
    parts = split(layer.q_proj(q), 2), split(layer.k_proj(k), 1), split(layer.v_proj(v), 1)
    assert [tuple(p.shape) for p in parts] == [(N, 2, L, 3), (N, 1, S, 3), (N, 1, S, 6)]
    read = attend(*parts, locality=0.3, tol=0.0, enable_gqa=True)
    exact(out, layer.out_proj(read.transpose(1, 2).flatten(2)), 1e-10)
    eye = torch.eye(S, dtype=torch.float64).expand(N, 1, S, S)
    exact(weights, attend(parts[0], parts[1], eye, locality=0.3, tol=0.0, enable_gqa=True).mean(1), 1e-10)
    exact(weights.sum(-1), torch.ones(N, L).double())
    none = layer(q, k, v, need_weights=False)
    assert none[1] is None
    exact(none[0], out)


def test_by_nnls() -> None:
    """The layer against an independent solver: scipy's nnls on the query-centred keys."""
    from scipy.optimize import nnls

    layer = built(locality=0.0, learn_locality=False)
    x, memory = 6 * random(1, L, E), random(1, S, E, seed=1)  # far queries, which have unique weights
    _, weights = layer(x, memory, memory, average_attn_weights=False)
    q, k = split(layer.q_proj(x), HEADS)[0].detach().numpy(), split(layer.k_proj(memory), HEADS)[0].detach().numpy()
    for h in range(HEADS):
        for i in range(L):
            scale = np.abs(k[h] - q[h, i]).max()
            system = np.vstack([(k[h] - q[h, i]).T, scale * np.ones(S)])
            y = nnls(system, np.append(np.zeros(E // HEADS), scale))[0]
            exact(weights[0, h, i].detach(), torch.from_numpy(y / y.sum()), 1e-9)


MOVES = {
    "scale": lambda x, d: 37.0 * x,
    "small": lambda x, d: x / 512,
    "shift": lambda x, d: x + random(d, seed=8),
    "rotate": lambda x, d: x @ rotation(d),
    "all": lambda x, d: 5.0 * x @ rotation(d) - 3.0 * random(d, seed=8),
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("near", [0.1, 1.0, 4.0])
def test_no_move_of_queries_and_keys_together_changes_anything(name: str, near: float) -> None:
    q, k, v = heads(near=near)
    move = MOVES[name]
    options = {"locality": 0.1, "tol": 0.0}
    exact(attend(move(q, 3), move(k, 3), v, **options), attend(q, k, v, **options), 1e-10)


@pytest.mark.parametrize("name", MOVES)
def test_no_move_of_a_heads_queries_and_keys_changes_the_layer(name: str) -> None:
    layer, x = built(), random(N, L, E)
    expected = layer(x, x, x)
    d = E // HEADS

    def moved(projection: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return torch.cat([MOVES[name](part, d) for part in out.chunk(HEADS, -1)], -1)

    hooks = [projection.register_forward_hook(moved) for projection in (layer.q_proj, layer.k_proj)]
    for got, wanted in zip(layer(x, x, x), expected, strict=True):
        exact(got, wanted, 1e-10)
    for hook in hooks:
        hook.remove()


def test_no_scale_of_the_input_changes_the_weights() -> None:
    """There is no bias in queries and keys that could."""
    layer, x = built(), random(N, L, E)
    with torch.no_grad():
        layer.out_proj.bias.fill_(3.0)
    exact(layer(100 * x, 100 * x, x)[1], layer(x, x, x)[1], 1e-10)


def test_ridge_breaks_the_scale_invariance_only() -> None:
    q, k, v = heads()
    options = {"locality": 0.1, "ridge": 0.5, "tol": 0.0}
    out = attend(q, k, v, **options)
    assert (attend(10 * q, 10 * k, v, **options) - out).abs().max() > 0.01
    exact(attend(q @ rotation(3) + 2, k @ rotation(3) + 2, v, **options), out, 1e-10)
    exact(attend(10 * q, 10 * k, v, **(options | {"ridge": 50.0})), out, 1e-10)


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [x.clone().requires_grad_() for x in tensors]


@pytest.mark.parametrize("locality", [0.0, 0.1])
@pytest.mark.parametrize("near", [0.3, 2.0])
def test_the_three_symmetries_of_the_gradient(locality: float, near: float) -> None:
    q, k, v = leaves(*heads(near=near))
    out = attend(q, k, v, locality=locality, tol=0.0)
    gq, gk = torch.autograd.grad((out * random(*out.shape, seed=5)).sum(), (q, k))
    size = max(gq.abs().max(), gk.abs().max(), 1)
    exact((gq.sum(-2) + gk.sum(-2)) / size, torch.zeros(N, HEADS, 3).double())
    exact(((gq * q).sum((-2, -1)) + (gk * k).sum((-2, -1))) / size, torch.zeros(N, HEADS).double())
    turn = (q.mT @ gq + k.mT @ gk) / size
    exact(turn, turn.mT)


@pytest.mark.parametrize("near", [0.3, 2.0])
@pytest.mark.parametrize("ridge", [0.0, 0.2])
def test_gradcheck_of_the_function(near: float, ridge: float) -> None:
    q, k, v = (x[0] for x in heads(near=near))
    strengths = torch.tensor([[[0.2]], [[0.5]]], dtype=torch.float64)

    def fn(q: Tensor, k: Tensor, v: Tensor, locality: Tensor) -> Tensor:
        return attend(q, k, v, locality=locality, ridge=ridge, tol=0.0)

    inputs = leaves(q[:, :2], k[:, :6], v[:, :6, :2], strengths)
    assert torch.autograd.gradcheck(fn, inputs)
    assert torch.autograd.gradgradcheck(fn, inputs, atol=1e-4)


def test_gradcheck_of_the_layer() -> None:
    torch.manual_seed(0)
    layer = sl.ScaleFreeAttention(4, 2, num_kv_heads=1, v_head_dim=1, dtype=torch.float64, batch_first=True, tol=0.0)
    x, memory = random(1, 2, 4), random(1, 4, 4, seed=1)
    names = [name for name, _ in layer.named_parameters()]
    values = leaves(*layer.state_dict().values())

    def fn(*values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, memory, memory))[0]

    assert "log_locality" in names
    assert torch.autograd.gradcheck(fn, values)
    assert torch.autograd.gradgradcheck(fn, values, atol=1e-4)


DEGENERATE = {
    "query is a key": lambda q, k: (k[..., :L, :], k),
    "duplicate keys": lambda q, k: (q, torch.cat([k[..., :4, :], k[..., :4, :], k[..., :1, :]], -2)),
    "all keys equal": lambda q, k: (q, k[..., :1, :].expand_as(k)),
    "all equal": lambda q, k: (k[..., :1, :].expand_as(q), k[..., :1, :].expand_as(k)),
    "zeros": lambda q, k: (0 * q, 0 * k),
    "a tie of two": lambda q, k: (0 * q, torch.cat([k, -k], -2)[..., [0, 1, 2, 3, 9, 10, 11, 12, 3], :]),
    "in the middle of a segment": lambda q, k: ((k[..., :1, :] + k[..., 1:2, :]).expand_as(q) / 2, k),
}


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("locality", [0.0, 0.1])
def test_degenerate_supports_have_finite_valid_derivatives(name: str, locality: float, kernels: bool) -> None:
    q, k, v = heads()
    q, k, v = leaves(*DEGENERATE[name](q, k), v)
    strength = torch.tensor(locality, dtype=torch.float64, requires_grad=True)
    with sl.kernels(kernels):
        out = attend(q, k, v, locality=strength, tol=0.0)
        grads = torch.autograd.grad((out * random(*out.shape, seed=5)).sum(), (q, k, v, strength), create_graph=True)
        again = torch.autograd.grad(sum(g.square().sum() for g in grads[:2]), (q, k, v), allow_unused=True)
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in (*grads, *(g for g in again if g is not None)))
    # Valid: what no shift of queries and keys together changes has no derivative along it, at a kink too.
    gq, gk = grads[:2]
    exact(gq.sum(-2) + gk.sum(-2), torch.zeros(N, HEADS, 3).double(), 1e-6 * max(1.0, float(gq.detach().abs().max())))


@pytest.mark.parametrize("kernels", [True, False])
def test_masked_is_dropped(kernels: bool) -> None:
    q, k, v = heads()
    kept = torch.tensor([True, False, True, True, False, True, True, False, True])
    layer, x, memory = built(), random(N, L, E), random(N, S, E, seed=1)
    with sl.kernels(kernels):
        out = attend(q, k, v, kept, locality=0.1, tol=0.0)
        exact(out, attend(q, k[..., kept, :], v[..., kept, :], locality=0.1, tol=0.0))
        whole = layer(x, memory, memory, key_padding_mask=~kept.expand(N, S))
        exact(whole[0], layer(x, memory[:, kept], memory[:, kept])[0])
    assert not whole[1][..., ~kept].any()
    broken = memory.clone()
    broken[:, ~kept] = torch.nan
    spoilt = [torch.where(kept.unsqueeze(-1), part, torch.nan) for part in (k, v)]
    exact(attend(q, *spoilt, kept, locality=0.1, tol=0.0), out)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("near", [0.2, 2.0])
def test_causal_is_prefix_by_prefix_and_cached_is_uncached(kernels: bool, near: float) -> None:
    q, k, v = heads(near=near)
    k, v = k[..., :L, :], v[..., :L, :]
    options = {"locality": 0.1, "tol": 0.0}
    with sl.kernels(kernels):
        whole = attend(q, k, v, is_causal=True, **options)
        for i in range(L):
            exact(
                attend(q[..., i : i + 1, :], k[..., : i + 1, :], v[..., : i + 1, :], **options),
                whole[..., i : i + 1, :],
            )
        # A chunk of new queries after a cache: aligned lower right, which torch's is_causal is not.
        seen = torch.ones(2, L, dtype=torch.bool).tril(L - 2)
        exact(attend(q[..., -2:, :], k, v, seen, **options), whole[..., -2:, :])


def test_fewer_queries_than_keys_are_aligned_upper_left_as_in_torch() -> None:
    q, k, v = heads()
    out = attend(q, k, v, is_causal=True, locality=0.1, tol=0.0)
    exact(out, attend(q, k[..., :L, :], v[..., :L, :], is_causal=True, locality=0.1, tol=0.0))
    with torch.no_grad():
        exact(attend(q, k, v, torch.ones(L, S, dtype=torch.bool).tril(), locality=0.1, tol=0.0), out)


def test_a_cached_layer_is_the_uncached_one() -> None:
    layer, x = built(num_kv_heads=1), random(N, L, E)
    whole, _ = layer(x, x, x, is_causal=True, need_weights=False)
    k, v = split(layer.k_proj(x), 1), split(layer.v_proj(x), 1)
    for i in range(L):
        exact(layer(x[:, i : i + 1], x[:, : i + 1], x[:, : i + 1])[0], whole[:, i : i + 1])
        q = split(layer.q_proj(x[:, i : i + 1]), HEADS)
        locality = layer.locality.view(-1, 1, 1)
        read = attend(q, k[..., : i + 1, :], v[..., : i + 1, :], locality=locality, tol=0.0, enable_gqa=True)
        exact(layer.out_proj(read.transpose(1, 2).flatten(2)), whole[:, i : i + 1])


def test_grouped_heads_are_repeated_heads() -> None:
    grouped, whole = built(num_kv_heads=1), built()
    state = grouped.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        state[name] = state[name].repeat(HEADS, 1)
    whole.load_state_dict(state)
    x = random(N, L, E)
    for a, b in zip(grouped(x, x, x), whole(x, x, x), strict=True):
        exact(a, b)


def ignoring() -> dict[str, dict[str, Tensor]]:
    drop = torch.rand(L, S, generator=torch.Generator().manual_seed(3)) > 0.6
    by_head = torch.rand(N * HEADS, L, S, generator=torch.Generator().manual_seed(4)) > 0.6
    pads = torch.rand(N, S, generator=torch.Generator().manual_seed(5)) > 0.6
    drop[2], pads[1] = True, True  # nothing to attend to
    added = torch.zeros(L, S, dtype=torch.float64).masked_fill(drop, -torch.inf)
    lowest = torch.zeros(N, S, dtype=torch.float64).masked_fill(pads, torch.finfo(torch.float64).min)
    return {
        "attn": {"attn_mask": drop},
        "attn by head": {"attn_mask": by_head},
        "attn added": {"attn_mask": added},
        "padding": {"key_padding_mask": pads},
        "padding added": {"key_padding_mask": lowest},
        "both": {"attn_mask": by_head, "key_padding_mask": pads},
        "both added": {"attn_mask": added, "key_padding_mask": lowest},
        "mixed": {"attn_mask": drop, "key_padding_mask": lowest},
    }


@pytest.mark.parametrize("kind", ignoring())
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_masks_of_the_layer(kind: str, is_causal: bool, training: bool) -> None:
    layer = built().train(training)
    x, memory = leaves(random(N, L, E), random(N, S, E, seed=1))
    options = ignoring()[kind]
    out, weights = layer(x, memory, memory, average_attn_weights=False, is_causal=is_causal, **options)
    ignored = torch.zeros(N, HEADS, L, S, dtype=torch.bool)
    if "attn_mask" in options:
        mask = options["attn_mask"] != 0
        ignored |= mask if mask.ndim == 2 else mask.unflatten(0, (N, HEADS))
    if "key_padding_mask" in options:
        ignored |= (options["key_padding_mask"] != 0)[:, None, None]
    if is_causal:
        ignored |= ~torch.ones(L, S, dtype=torch.bool).tril()
    assert not weights[ignored].any()
    blind = ignored.all(-1)
    exact(weights.sum(-1), (~blind).double())
    exact(weights, layer(x, memory, memory, attn_mask=ignored.flatten(0, 1), average_attn_weights=False)[1])
    assert not out[blind.all(1)].any()  # the bias of out_proj starts at 0
    gx, gm = torch.autograd.grad(out.square().sum(), (x, memory))
    assert gx.isfinite().all()
    assert gm.isfinite().all()
    assert not gx[blind.all(1)].any()


def test_layouts() -> None:
    layer, second = built(), built(batch_first=False)
    x, memory = random(N, L, E), random(N, S, E, seed=1)
    expected = layer(x, memory, memory)
    out, weights = second(x.mT.movedim(-1, 0), memory.transpose(0, 1), memory.transpose(0, 1))
    exact(out.transpose(0, 1), expected[0])
    exact(weights, expected[1])
    out, weights = layer(x[0], memory[0], memory[0])
    exact(out, expected[0][0])
    exact(weights, expected[1][0])
    assert layer(x[:0], memory[:0], memory[:0])[0].shape == (0, L, E)
    assert layer(x[:, :0], memory, memory)[0].shape == (N, 0, E)
    assert not layer(x, memory[:, :0], memory[:, :0])[0].any()


def test_dropout_is_on_in_training_only() -> None:
    layer, x = built(dropout=0.5), random(N, L, E)
    torch.manual_seed(1)
    out, weights = layer(x, x, x, average_attn_weights=False)
    v = split(layer.v_proj(x), HEADS)
    exact(out, layer.out_proj((weights @ v).transpose(1, 2).flatten(2)))
    whole = layer.eval()(x, x, x, average_attn_weights=False)[1]
    kept = weights != 0
    exact(weights[kept], 2 * whole[kept])
    assert kept.sum() < (whole != 0).sum()


def test_locality_is_learned_a_head_and_stays_positive() -> None:
    layer, x = built(locality=torch.tensor([0.05, 2.0])), random(N, L, E)
    _, weights = layer(x, x, x, average_attn_weights=False)
    sizes = (weights > 0).sum((0, 2, 3))
    assert sizes[0] > sizes[1]  # a larger one is sparser
    optimizer = torch.optim.SGD([layer.log_locality], lr=1e3)
    layer(x, x, x)[0].square().sum().backward()
    assert (layer.log_locality.grad != 0).all()
    optimizer.step()
    assert layer.locality.shape == (HEADS,)
    assert (layer.locality >= 0).all()


def test_fixed_localities() -> None:
    x = random(N, L, E)
    plain = built(locality=0.3, learn_locality=False)
    learned = built(locality=0.3)
    assert "log_locality" not in plain.state_dict()
    assert plain.locality == 0.3
    exact(plain(x, x, x)[0], learned(x, x, x)[0])
    each = built(locality=torch.tensor([0.3, 0.3], dtype=torch.float64), learn_locality=False)
    assert each.state_dict()["fixed_locality"].shape == (HEADS,)
    exact(each(x, x, x)[0], learned(x, x, x)[0])
    assert built(locality=0.0, learn_locality=False)(x, x, x)[0].isfinite().all()


def test_state_dict_copies_and_repr() -> None:
    layer, x = built(), random(N, L, E)
    assert list(layer.state_dict()) == [
        "log_locality", "q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight", "out_proj.bias",
    ]  # fmt: skip
    expected = layer(x, x, x)[0]
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other = built(locality=3.0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), other):
        exact(twin(x, x, x)[0], expected)
    assert "bias" not in "".join(built(bias=False).state_dict())
    assert "8, 2, locality=learned" in repr(layer)
    shown = repr(built(num_kv_heads=1, locality=0.5, learn_locality=False, ridge=0.1))
    assert "8, 2, num_kv_heads=1, locality=0.5, ridge=0.1" in shown
    assert {p.device.type for p in sl.ScaleFreeAttention(8, 2, device="meta").parameters()} == {"meta"}


def test_queries_and_keys_start_with_one_spread() -> None:
    torch.manual_seed(0)
    layer = sl.ScaleFreeAttention(64, 4, kdim=16, num_kv_heads=1)
    q, k = layer.q_proj(torch.randn(500, 64)), layer.k_proj(torch.randn(500, 16))
    torch.testing.assert_close(q.std(), k.std(), rtol=0.1, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_dtypes(dtype: torch.dtype) -> None:
    layer = built(dtype=dtype, tol=1e-6)
    twin = built()
    twin.load_state_dict(layer.state_dict())
    x = random(N, L, E).to(dtype)
    pads = torch.zeros(N, L, dtype=dtype).masked_fill(torch.arange(L) > 3, torch.finfo(dtype).min)
    out, weights = layer(x, x, x, key_padding_mask=pads)
    assert out.dtype == weights.dtype == dtype
    assert not weights[..., 4:].any()
    expected = twin(x.double(), x.double(), x.double(), key_padding_mask=pads < 0)[0]
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=50 * torch.finfo(dtype).eps)
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("kernels", [True, False])
def test_autocast_takes_no_bits(kernels: bool) -> None:
    q, k, v = leaves(*(x.float() for x in heads()))
    expected = torch.autograd.grad(attend(q, k, v, locality=0.1).square().sum(), (q, k, v))
    with sl.kernels(kernels), torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(q, k, v, locality=0.1)
        assert built(dtype=torch.float32)(*[random(N, L, E).float()] * 3)[0].dtype == torch.bfloat16
    for got, wanted in zip(torch.autograd.grad(out.square().sum(), (q, k, v)), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_nan_spoils_its_own_row_alone() -> None:
    layer, x, memory = built(), random(N, L, E), random(N, S, E, seed=1)
    expected = layer(x, memory, memory)[0]
    x[0, 3] = torch.nan
    out = layer(x, memory, memory)[0]
    assert out[0, 3].isnan().all()
    others = torch.arange(L) != 3
    exact(out[0, others], expected[0, others])
    exact(out[1], expected[1])


def test_inputs_are_left_alone_and_may_be_strided() -> None:
    layer, x = built(), random(E, L, N).movedim(0, -1).transpose(0, 1)
    before, twin = x.clone(), x.contiguous()
    out = layer(x, x, x)[0]
    assert torch.equal(x, before)
    exact(out, layer(twin, twin, twin)[0])


def test_transforms_of_the_layer() -> None:
    layer, x = built(), random(N, 3, E)
    one = torch.func.vmap(lambda x: layer(x, x, x, need_weights=False)[0])(x)
    expected = layer(x, x, x, need_weights=False)[0]
    exact(one, expected, 1e-9)
    direction = random(N, 3, E, seed=4)
    _, tangent = torch.func.jvp(lambda x: layer(x, x, x, need_weights=False)[0], (x,), (direction,))
    x.requires_grad_()
    out = layer(x, x, x, need_weights=False)[0]
    weight = random(*out.shape, seed=5)
    (gx,) = torch.autograd.grad(out, x, weight)
    torch.testing.assert_close((tangent * weight).sum(), (gx * direction).sum())


@pytest.mark.slow
def test_compile() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    layer = sl.ScaleFreeAttention(4, 2, head_dim=1, dtype=torch.float64, batch_first=True)
    x = random(1, 3, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=False)
    got, expected = compiled(x, x, x, is_causal=True), layer(x, x, x, is_causal=True)
    for a, b in zip(got, expected, strict=True):
        exact(a, b, 1e-6)


def test_inside_the_layers_of_torch() -> None:
    layer = nn.TransformerEncoderLayer(E, 2, 16, dropout=0.0, batch_first=True)
    layer.self_attn = sl.ScaleFreeAttention(E, 2, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x, padding = random(N, L, E).float(), torch.arange(L).ge(L - 2).expand(N, L)
    trained = encoder(x, src_key_padding_mask=padding)
    with torch.no_grad():  # where torch would take its fused path
        torch.testing.assert_close(encoder.eval()(x, src_key_padding_mask=padding), trained)


X = torch.ones(N, L, E)
WRONG = [
    (
        lambda: sl.ScaleFreeAttention(7, 2),
        ValueError,
        "embed_dim must be a multiple of num_heads, got 7 and 2; or give",
    ),
    (lambda: sl.ScaleFreeAttention(8, 0), ValueError, "num_heads must be at least 1, got 0"),
    (lambda: sl.ScaleFreeAttention(8, 2.0), TypeError, "num_heads must be an int, got float"),
    (lambda: sl.ScaleFreeAttention(8, 4, num_kv_heads=3), ValueError, "num_heads must be a multiple of num_kv_heads"),
    (lambda: sl.ScaleFreeAttention(8, 2, v_head_dim=0), ValueError, "v_head_dim must be at least 1, got 0"),
    (lambda: sl.ScaleFreeAttention(8, 2, dropout=1.5), ValueError, "dropout must lie in"),
    (lambda: sl.ScaleFreeAttention(8, 2, ridge=-1.0), ValueError, "ridge must lie in"),
    (lambda: sl.ScaleFreeAttention(8, 2, locality=-1.0), ValueError, "locality must lie in"),
    (lambda: sl.ScaleFreeAttention(8, 2, locality=0.0), ValueError, "a learned locality stays positive"),
    (lambda: sl.ScaleFreeAttention(8, 2, locality=torch.ones(3)), ValueError, r"locality must be a number or \(2,\)"),
    (lambda: built()(X.int(), X, X), TypeError, r"query must be floating point, got torch.int32; use query.float\(\)"),
    (lambda: built()(X[..., :3], X, X), ValueError, r"query must be \(length, 8\).* got \(2, 6, 3\)$"),
    (lambda: built()(X, X, X[:, :2]), ValueError, "key and value must have one length"),
    (lambda: built()(X[:1], X, X), ValueError, "query, key and value must have one batch size"),
    (lambda: built()(X, X, X, attn_mask=torch.zeros(L, L + 1)), ValueError, "attn_mask must be"),
    (lambda: built()(X, X, X, attn_mask=torch.zeros(L, L).int()), TypeError, "attn_mask must be boolean"),
    (lambda: built()(X, X, X, key_padding_mask=torch.ones(N)), ValueError, "key_padding_mask must be"),
    (
        lambda: built(dtype=torch.float32)(X, X, X, attn_mask=torch.eye(L)),
        TypeError,
        "drops keys and cannot add scores.*use a boolean mask",
    ),
    (
        lambda: attend(X, X, X, torch.zeros(L, L, requires_grad=True)),
        TypeError,
        "no gradient for a mask.*use a boolean mask",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[message[:60] for *_, message in WRONG])
def test_errors_say_what_was_expected(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.fixture
def in_blocks(monkeypatch):
    """Call a function with blocks of `room` weights, whatever its size."""

    def call(fn, room: int):
        with monkeypatch.context() as patch:
            patch.setattr(lean_scale_free, "WORTH", 0)
            patch.setattr(lean_scale_free, "BLOCK", {"cpu": room, "cuda": room})
            return fn()

    return call


def blocked_cases() -> dict[str, tuple[tuple[Tensor, ...], dict]]:
    q, k, v = heads()
    whole = torch.rand(N, HEADS, L, S, generator=torch.Generator().manual_seed(3)) > 0.4
    whole[0, 1, 2] = False
    a_head = torch.tensor([0.1, 0.5], dtype=torch.float64).view(HEADS, 1, 1)
    a_query = 0.2 + random(N, 1, L, 1, seed=7).abs()
    return {
        "plain": ((q, k, v), {}),
        "two axes": ((q[0, 0], k[0, 0], v[0, 0]), {}),
        "causal": ((q, k, v), {"is_causal": True}),
        "more queries than keys": ((random(N, HEADS, 12, 3), k[..., :4, :], v[..., :4, :]), {"is_causal": True}),
        "mask": ((q, k, v), {"attn_mask": whole}),
        "mask and causal": ((q, k, v), {"attn_mask": whole[:1, :1], "is_causal": True}),
        "padding": ((q, k, v), {"attn_mask": whole[:, :1, :1]}),
        "one mask": ((q, k, v), {"attn_mask": whole[0, 0]}),
        "keys only": ((q, k, v), {"attn_mask": whole[0, 0, 0]}),
        "floating": ((q, k, v), {"attn_mask": torch.zeros(L, S).double().masked_fill(~whole[0, 1], -torch.inf)}),
        "shared keys": ((q, k[:1, :1], v[:, :1]), {}),
        "grouped heads": ((random(N, 6, L, 3), k, v), {"enable_gqa": True}),
        "a strength a head": ((q, k, v, a_head), {}),
        "a strength a query": ((q, k, v, a_query), {"is_causal": True}),
        "both strengths": ((q, k, v, a_head, a_query), {}),
        "a number": ((q, k, v, torch.tensor(0.3).double()), {"ridge": 0.2}),
        "one query": ((q[..., :1, :], k, v), {}),
        "no query": ((q[..., :0, :], k, v), {}),
    }


def pulled(inputs: tuple[Tensor, ...], options: dict) -> tuple[Tensor, ...]:
    q, k, v, *strengths = leaves(*inputs)
    named = {"locality": 0.1} | dict(zip(("locality", "ridge"), strengths, strict=False)) | options
    out = attend(q, k, v, tol=0.0, **named)
    return out.detach(), *torch.autograd.grad((out * random(*out.shape, seed=5)).sum(), [q, k, v, *strengths])


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("name", blocked_cases())
def test_blocks_agree_with_whole_weights(name: str, kernels: bool, in_blocks) -> None:
    inputs, options = blocked_cases()[name]
    with sl.kernels(kernels):
        expected = pulled(inputs, options)
        for room in (1, 20, 10**6) if kernels else (20,):
            for got, wanted in zip(in_blocks(lambda: pulled(inputs, options), room), expected, strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)


def test_gradients_in_blocks_of_some_inputs_only(in_blocks) -> None:
    inputs, _ = blocked_cases()["both strengths"]
    expected = pulled(inputs, {})[1:]
    for i, wanted in enumerate(expected):
        chosen = [x.clone().requires_grad_(i == j) for j, x in enumerate(inputs)]

        def gradient(chosen: list[Tensor] = chosen, i: int = i) -> Tensor:
            out = attend(*chosen[:3], None, False, *chosen[3:], tol=0.0)
            return torch.autograd.grad((out * random(*out.shape, seed=5)).sum(), chosen[i])[0]

        torch.testing.assert_close(in_blocks(gradient, 20), wanted)


def test_second_derivatives_in_blocks(in_blocks) -> None:
    q, k, v = (x[0] for x in heads())
    inputs = leaves(q[:, :2], k[:, :5], v[:, :5, :2], torch.tensor([[[0.2]], [[0.5]]], dtype=torch.float64))

    def fn(q: Tensor, k: Tensor, v: Tensor, locality: Tensor) -> Tensor:
        return attend(q, k, v, locality=locality, tol=0.0)

    assert in_blocks(lambda: torch.autograd.gradcheck(fn, inputs), 5)
    assert in_blocks(lambda: torch.autograd.gradgradcheck(fn, inputs, atol=1e-4), 5)


def test_what_blocks_are_asked_for(in_blocks) -> None:
    """Errors, NaN, dtypes, autocast and in-place changes as without blocks."""
    q, k, v = heads()
    for wrong in (torch.ones(3, 1, 1), torch.ones(HEADS)):
        for call in (lambda fn, room: fn(), in_blocks):
            with pytest.raises(ValueError, match="locality"):
                call(lambda wrong=wrong: attend(q, k, v, locality=wrong), 20)
    broken = q.clone()
    broken[0, 0, 2] = torch.nan
    out, expected = in_blocks(lambda: attend(broken, k, v, locality=0.1), 20), attend(q, k, v, locality=0.1)
    assert out[0, 0, 2].isnan().all()
    assert torch.equal(out.nan_to_num(7.0) == expected, (broken == q).any(-1, keepdim=True).expand_as(out))
    parts = leaves(*(x.bfloat16() for x in (q, k, v)))
    in_blocks(lambda: attend(*parts, locality=0.1).float().sum().backward(), 20)
    assert in_blocks(lambda: attend(*parts, locality=0.1), 20).dtype == torch.bfloat16
    assert all(x.grad.dtype == torch.bfloat16 and x.grad.isfinite().all() for x in parts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        singles = in_blocks(lambda: attend(q.float(), k.float(), v.float(), locality=0.1), 20)
    torch.testing.assert_close(singles.double(), expected, rtol=1e-4, atol=1e-4)
    parts = leaves(q, k, v)
    mask = torch.ones(L, S, dtype=torch.bool)

    def changed() -> None:
        out = attend(*parts, mask)
        mask[0] = False
        out.sum().backward()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        in_blocks(changed, 20)


def test_nothing_of_the_size_of_the_weights_is_saved() -> None:
    """By default, at a size from which blocks are used."""
    saved = []
    q, k, v = (random(4, 1024, 2, seed=s, dtype=torch.float32).requires_grad_() for s in range(3))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        out = attend(q, k, v, locality=0.1, is_causal=True)
    out.sum().backward()
    assert sum(saved) <= 4 * 1024 * (3 * 2 + 2 * 3 + 1)  # inputs, supports of three, and which keys are used; not 1024


def swapped(kind: str) -> tuple[nn.Module, dict]:
    """Something with mapping="scale_free", and how it is called with a mask whose True = ignore."""
    torch.manual_seed(0)
    if kind == "MultiheadAttention":
        module = sl.MultiheadAttention(E, HEADS, batch_first=True, dtype=torch.float64, mapping="scale_free")
        return module, {"call": lambda q, k, mask: module(q, k, k, attn_mask=mask)[0]}
    layer = nn.TransformerDecoderLayer(E, HEADS, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    assert sl.swap_attention(layer, "scale_free") == 2
    return layer, {"call": lambda q, k, mask: layer(q, k, memory_mask=mask)}


@pytest.mark.parametrize("kind", ["MultiheadAttention", "swap_attention"])
def test_the_mapping_drops_masked_keys(kind: str) -> None:
    _, options = swapped(kind)
    x, memory = random(N, L, E), random(N, S, E, seed=1)
    drop = torch.tensor([False, True, False, False, True, False, True, False, False]).expand(L, S)
    expected = options["call"](x, memory[:, ~drop[0]], None)
    for mask in (drop, torch.zeros(L, S).double().masked_fill(drop, -torch.inf)):
        exact(options["call"](x, memory, mask), expected, 1e-10)
    with pytest.raises(TypeError, match="drops keys and cannot add scores"):
        options["call"](x, memory, random(L, S))


def test_the_name_in_transformers_drops_masked_keys() -> None:
    from sparselayers.integrations.transformers import attention

    q, k, v = heads()
    drop = torch.rand(N, 1, L, S, generator=torch.Generator().manual_seed(2)) > 0.6
    added = torch.zeros(drop.shape, dtype=torch.float64).masked_fill(drop, torch.finfo(torch.float64).min)
    out = attend(q, k, v, ~drop, locality=LOCALITY).transpose(1, 2)
    for mask in (~drop, added):
        exact(attention(nn.Identity(), q, k, v, mask, scaling=0.3, mapping="scale_free")[0], out, 1e-10)
    with pytest.raises(TypeError, match="drops keys and cannot add scores"):
        attention(nn.Identity(), q, k, v, added + 1, mapping="scale_free")


def test_the_locality_of_the_mapping() -> None:
    """In modules it is that of `ScaleFreeAttention`; in the function it is 0."""
    q, k, v = heads(near=0.3)
    exact(sl.SparseAttention("scale_free")(q, k, v), attend(q, k, v, locality=LOCALITY))
    exact(F.scaled_dot_product_attention(q, k, v, mapping="scale_free"), attend(q, k, v))
    assert float(sl.ScaleFreeAttention(8, 2).log_locality.detach().exp()[0]) == pytest.approx(LOCALITY)
