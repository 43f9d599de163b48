"""The Triton kernels against float64 twins and the plain path: in Triton's interpreter, or on a CUDA device if there is one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

import sparselayers as sl
import sparselayers.functional as F
from sparselayers.attention import fused

from . import oracles
from .test_ops import hard_rows

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def interpret(patch: pytest.MonkeyPatch) -> None:
    if not GPU:
        patch.setenv("TRITON_INTERPRET", "1")


# Triton reads the switch when it decorates and when it runs; in between it is put back, for the other tests.
with pytest.MonkeyPatch.context() as patch:
    interpret(patch)
    pytest.importorskip("triton")
    from sparselayers.ops.kernels import triton_rows as rows
    from sparselayers.ops.kernels.triton_attention import attention_backward, attention_forward
    from sparselayers.ops.kernels.triton_waterline import row_sum

if not GPU and type(row_sum).__name__ != "InterpretedFunction":
    raise RuntimeError(
        "triton was imported without TRITON_INTERPRET=1 before this file; run the tests before the package"
    )

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, about inf - inf in the interpreter
ON_GPU = (pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(monkeypatch)


PRECISE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# n, and the longest row kept in registers: all of it, none but a few entries, on a device also real sizes
FORMS = pytest.mark.parametrize(
    ("n", "tile"),
    [
        *((n, None) for n in (1, 7, 100)),
        *((n, 8) for n in (9, 33)),
        *(pytest.param(n, None, marks=ON_GPU) for n in (64, 4096, 16384, 20000)),
        pytest.param(4097, 1024, marks=ON_GPU),
    ],
)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    made = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return made.to(DEVICE, dtype)


def hard(n: int, dtype: torch.dtype) -> Tensor:
    return torch.stack(list(hard_rows(n, dtype).values())).to(DEVICE)


def spread(v: Tensor) -> float:
    return max(1.0, float(v.abs().max()))


@PRECISE
@FORMS
def test_simplex_of_hard_rows(n: int, tile: int | None, dtype: torch.dtype) -> None:
    rounding = torch.finfo(dtype).eps
    v = hard(n, dtype)
    out, tau = rows.project(v, 1.0, 1.0, 0.0, False, tile)
    assert (out.dtype, tau.dtype, tau.shape) == (dtype, dtype, (len(v), 1))
    for row, found, level in zip(v.cpu().double(), out.cpu().double(), tau.cpu().double(), strict=True):
        u = row.numpy()
        exact = oracles.sorted_waterline(u - u.max(), np.ones(n), 1.0, 0.0)
        assert abs(found.numpy() - np.maximum(u - u.max() - exact, 0)).max() <= 8 * rounding * spread(row)
        assert abs(found.sum() - 1) <= 4 * rounding * max(4, n**0.5)
        assert abs(level - float(exact + u.max())) <= 8 * rounding * spread(row)


@PRECISE
@FORMS
def test_exclusive_and_l1_ball_of_hard_rows(n: int, tile: int | None, dtype: torch.dtype) -> None:
    v = hard(n, dtype) * torch.where(torch.arange(n, device=DEVICE) % 3 == 1, -1, 1)
    t = torch.linspace(0, 3, len(v), dtype=dtype, device=DEVICE)
    radius = v.abs().sum(-1, keepdim=True) * torch.linspace(0.05, 1.2, len(v), dtype=dtype, device=DEVICE)[:, None]
    for (a, b, c), twin in (
        ((t, 0.0, 1.0), lambda i, row: oracles.exclusive(row, float(t[i]), np.ones(n))),
        ((1.0, radius, 0.0), lambda i, row: oracles.l1_ball(row, np.ones(n), float(radius[i]))),
    ):
        out, tau = rows.project(v, a, b, c, True, tile)
        for i, row in enumerate(v.cpu().double()):
            expected = twin(i, row.numpy())
            assert abs(out[i].cpu().double().numpy() - expected).max() <= 16 * torch.finfo(dtype).eps * spread(row)
        assert (tau >= 0).all()
        assert torch.equal(out[(tau == 0).squeeze(-1)], v[(tau == 0).squeeze(-1)])
        assert not (torch.signbit(out) & (out == 0) & (v != 0)).any(), "what vanished must read 0, not -0"
    assert torch.equal(out[-2:], v[-2:]), "rows inside the ball must come back as they are"


@PRECISE
@FORMS
def test_weighted_level_of_hard_rows(n: int, tile: int | None, dtype: torch.dtype) -> None:
    v = hard(n, dtype)
    weights = (10 ** (6 * torch.rand(v.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 3)).to(
        v
    )
    for a in (weights, weights[:, :1], 0.7):
        for b, c in ((1.0, 0.0), (0.0, 1.0), (0.5, 2.0)):
            u = v - v.amin(-1, keepdim=True) if c else v
            start = ((a * u - b) / (a + c)).amax(-1, keepdim=True)
            tau = rows.level(u, a, b, c, start, tile)
            each = torch.full_like(u, a) if isinstance(a, float) else a.expand_as(u)
            for i, row in enumerate(u.cpu().double()):
                exact = float(oracles.sorted_waterline(row.numpy(), each[i].cpu().double().numpy(), b, c))
                assert abs(float(tau[i]) - exact) <= 1e3 * torch.finfo(dtype).eps * spread(row)


@PRECISE
@FORMS
def test_entmax15_of_hard_rows(n: int, tile: int | None, dtype: torch.dtype) -> None:
    rounding = torch.finfo(dtype).eps
    z = hard(n, dtype)
    for row, found in zip(z.cpu().double(), rows.entmax15(z, tile).cpu().double(), strict=True):
        assert abs(found.numpy() - oracles.entmax15(row.numpy() - row.numpy().max())).max() <= 16 * rounding * spread(
            row
        )
        assert abs(found.sum() - 1) <= 8 * rounding * max(4, n**0.5)


@pytest.mark.parametrize("n", [2000, pytest.param(16384, marks=pytest.mark.slow), 32000])
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0, 1e4])
def test_float32_rows_sum_to_one(n: int, scale: float) -> None:
    z = scale * random(2, n)
    z[1] += 5 * scale
    for p in (rows.project(z, 1.0, 1.0, 0.0, False)[0], rows.entmax15(z)):
        assert (p.double().sum(-1) - 1).abs().max() <= 2e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tile", [None, 16])
def test_sixteen_bits_are_the_rounded_float32_answer(dtype: torch.dtype, tile: int | None) -> None:
    v, g = random(5, 40, dtype=dtype), random(5, 40, seed=1, dtype=dtype)
    wide = v.float()
    out, tau = rows.project(v, 1.0, 1.0, 0.0, False, tile)
    exact, level = rows.project(wide, 1.0, 1.0, 0.0, False, tile)
    assert tau.dtype == torch.float32
    torch.testing.assert_close(tau, level)
    p = rows.entmax15(v, tile)
    for found, expected in (
        (out, exact),
        (p, rows.entmax15(wide, tile)),
        (rows.project_backward(out, g, 1.0, 0.0, tau, False, tile), rows.project_backward(exact, g.float(), 1.0, 0.0, tau, False, tile)),
        (rows.entmax15_backward(p, g, tile), rows.entmax15_backward(p.float(), g.float(), tile)),
    ):  # fmt: skip
        assert found.dtype == dtype
        # the interpreter cuts bfloat16 off where a device rounds it
        torch.testing.assert_close(found.float(), expected.float(), rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("tile", [None, 4])
def test_special_rows(tile: int | None) -> None:
    inf, nan = torch.inf, torch.nan
    v = torch.tensor(
        [[0.3, 1.2, -inf, 0.1, -inf], [-inf] * 5, [0, nan, 1, 2, 3], [0, 1, inf, 2, 3], [7.0] * 5, [nan] * 5],
        device=DEVICE,
    )
    out, tau = rows.project(v, 1.0, 1.0, 0.0, False, tile)
    masked = torch.tensor([[0.05, 0.95, 0, 0, 0], [0] * 5, [nan] * 5, [nan] * 5, [0.2] * 5, [nan] * 5], device=DEVICE)
    torch.testing.assert_close(out, masked, equal_nan=True)
    assert tau.isnan().squeeze(-1).tolist() == [False, False, True, True, False, True]
    g = random(6, 5)
    gv = rows.project_backward(out, g, 1.0, 0.0, tau, False, tile)
    assert gv[1].tolist() == [0] * 5
    assert gv.isnan().any(-1).tolist() == gv.isnan().all(-1).tolist() == [False, False, True, True, False, True]

    p = rows.entmax15(v, tile)
    torch.testing.assert_close(p[[0, 4]], F.entmax15(v[[0, 4]].double()).float())
    assert p[1].tolist() == [0] * 5
    gz = rows.entmax15_backward(p, g, tile)
    assert gz[1].tolist() == [0] * 5
    for x in (p, gz):
        assert x.isnan().any(-1).tolist() == x.isnan().all(-1).tolist() == [False, False, True, True, False, True]

    for x in (v.abs(), -v.abs()):  # either infinity spoils a row whose sizes compete
        out, tau = rows.project(x, 1.0, 1.0, 0.0, True, tile)
        assert out.isnan().all(-1).tolist() == out.isnan().any(-1).tolist() == [True, True, True, True, False, True]
        assert tau.isnan().squeeze(-1).tolist() == [True, True, True, True, False, True]

    start = v.amax(-1, keepdim=True) - 1
    for a in (torch.ones_like(v), 1.0):
        weighted = rows.level(v, a, 1.0, 0.0, start, tile)
        assert weighted.isnan().squeeze(-1).tolist() == [False, False, True, True, False, True]
        torch.testing.assert_close(weighted[[0, 4]], torch.tensor([[0.25], [6.8]], device=DEVICE))


def test_strengths_of_every_form_and_empty_batches() -> None:
    for dtype in (torch.float32, torch.float64):
        v = random(3, 6, dtype=dtype)
        expected = rows.project(v, 0.3, 0.0, 1.0, True)[0]
        for t in (torch.tensor(0.3), torch.full((1,), 0.3), torch.full((3,), 0.3), torch.full((3, 1), 0.3)):
            torch.testing.assert_close(rows.project(v, t.to(v), 0.0, 1.0, True)[0], expected)
        torch.testing.assert_close(expected, F.exclusive_threshold(v.cpu(), 0.3).to(DEVICE))
        assert rows.project(v[:0], 1.0, 1.0, 0.0, False)[1].shape == (0, 1)
        assert rows.entmax15(v[:0]).shape == (0, 6)
        # strengths of 0: nothing is cut, nothing is left
        assert torch.equal(rows.project(v, 0.0, 0.0, 1.0, True)[0], v)
        assert (rows.project(v, 1.0, 0.0, 0.0, False)[0] == 0).all()
        assert (rows.project(v, 1.0, 0.0, 0.0, True)[0] == 0).all()
        assert torch.equal(rows.project(torch.zeros_like(v), 1.0, 0.0, 0.0, True)[0], torch.zeros_like(v))


@PRECISE
@FORMS
def test_backward_is_autograds_of_the_plain_path(n: int, tile: int | None, dtype: torch.dtype) -> None:
    v, g = random(6, n, dtype=dtype), random(6, n, seed=1, dtype=dtype)
    t = torch.linspace(0, 2, 6, dtype=dtype, device=DEVICE)
    radius = v.abs().sum(-1, keepdim=True) * torch.linspace(0.1, 1.5, 6, dtype=dtype, device=DEVICE)[:, None]
    tolerance = {"rtol": 0, "atol": 100 * torch.finfo(dtype).eps}
    for (a, b, c), signed, plain in (
        ((1.0, 1.0, 0.0), False, lambda x: F.project_simplex(x)),
        ((t, 0.0, 1.0), True, lambda x: F.exclusive_threshold(x, t.to(x)[:, None])),
        ((1.0, radius, 0.0), True, lambda x: F.project_l1_ball(x, radius.to(x))),
    ):
        x = v.cpu().double().requires_grad_()
        expected = torch.autograd.grad(plain(x), x, g.to(x))[0].to(v)
        out, tau = rows.project(v, a, b, c, signed, tile)
        torch.testing.assert_close(rows.project_backward(out, g, a, c, tau, signed, tile), expected, **tolerance)
    x = v.cpu().double().requires_grad_()
    expected = torch.autograd.grad(F.entmax15(x), x, g.to(x))[0].to(v)
    torch.testing.assert_close(rows.entmax15_backward(rows.entmax15(v, tile), g, tile), expected, **tolerance)


def test_what_is_dispatched_to_triton_is_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user of the row kernels with its gradient, as on a CUDA device."""
    v = random(2, 3, 20, seed=2, dtype=torch.float64)
    g, metric = random(2, 3, 20, seed=3, dtype=torch.float64), 0.5 + random(20, dtype=torch.float64).abs()
    t = torch.linspace(0, 2, 3, dtype=torch.float64, device=DEVICE)[:, None]
    users = (
        F.sparsemax, F.entmax15, F.project_l1_ball, sl.LInf().prox,
        lambda v, _: F.project_simplex(v, 2.0, dim=1), lambda v, _: sl.Simplex().prox(v, 1.0, metric),
        F.exclusive_threshold, lambda v, t: sl.Exclusive().prox(v, t, metric),
    )  # fmt: skip
    answers = []
    for served in (None, "triton"):
        monkeypatch.setattr("sparselayers.ops.kernels.rows.serve", lambda x, served=served: served)
        for user in users:
            x = v.clone().requires_grad_()
            out = user(x) if user in users[:2] else user(x, t)
            answers.append((out, torch.autograd.grad(out, x, g)[0]))
    for plain, ours in zip(answers[: len(users)], answers[len(users) :], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-14)


def boolean(*shape: int) -> Tensor:
    """True = may attend; a third of the queries may attend to nothing."""
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(9)) > 0.4
    mask[..., ::3, :] = False
    return mask.to(DEVICE)


def floating(*shape: int) -> Tensor:
    bias = random(*shape, seed=4)
    bias[..., 0], bias[..., 4], bias[..., 7] = -torch.inf, torch.finfo(torch.float32).min, 2.0
    if bias.ndim > 1:
        bias[..., 3, :] = torch.finfo(torch.float32).min  # a query that sees nothing
    return bias


SHAPES = {"B": 1, "H": 2, "Hkv": 2, "L": 17, "S": 33, "E": 8, "Ev": 8}
CASES = {
    "plain": {},
    "one block": {"L": 5, "S": 9, "B": 2},
    "one key": {"L": 3, "S": 1},
    "one query": {"L": 1},
    "causal": {"L": 33, "causal": True},
    "causal, more queries than keys": {"L": 40, "S": 20, "causal": True},
    "causal, fewer queries than keys": {"causal": True},
    "causal, tall tiles": {"L": 40, "S": 20, "causal": True, "largest": 64},
    "causal, wide tiles": {"L": 20, "S": 40, "causal": True, "largest": 64},
    "mask with queries that see nothing": {"mask": boolean(1, 1, 17, 33)},
    "mask of keys": {"B": 2, "H": 1, "Hkv": 1, "mask": boolean(2, 1, 3, 33)[:, :, 1:2]},
    "bias": {"bias": floating(1, 2, 17, 33)},
    "bias of keys, causal, mask": {"bias": floating(33), "mask": boolean(17, 33), "causal": True},
    "grouped": {"H": 4, "causal": True},
    "grouped, one key head": {"H": 3, "Hkv": 1, "B": 2, "S": 10, "mask": boolean(2, 3, 17, 10)},
    "wider values": {"E": 3, "Ev": 20},
    "narrower values": {"E": 17, "Ev": 1},
}


def attention_inputs(dtype: torch.dtype = torch.float32, B=1, H=2, Hkv=2, L=17, S=33, E=8, Ev=8) -> list[Tensor]:
    """Heads lie inside the sequence axis, as a projection leaves them, so that strides are not those of a whole tensor."""
    shapes = ((B, L, H, E), (B, S, Hkv, E), (B, S, Hkv, Ev), (B, L, H, Ev))
    return [random(*shape, seed=i, dtype=dtype).transpose(1, 2) for i, shape in enumerate(shapes)]


def plain_attention(q, k, v, g, mask, bias, is_causal, scale, mapping) -> tuple[Tensor, ...]:
    """Output and gradients of the plain path in float64."""
    leaves = [x.cpu().double().requires_grad_() for x in (q, k, v)]
    both = torch.zeros(*q.shape[:2], q.shape[2], k.shape[2], dtype=torch.float64)
    if bias is not None:
        bias = bias.cpu().double()
        both = both + bias.masked_fill(bias < torch.finfo(torch.float32).min / 2, -torch.inf)
    if mask is not None:
        both = both.masked_fill(~mask.cpu(), -torch.inf)
    out = F.scaled_dot_product_attention(
        *leaves, both, is_causal=is_causal, scale=scale, enable_gqa=True, mapping=mapping
    )
    return out.detach(), *torch.autograd.grad(out, leaves, g.cpu().double())


def fused_attention(q, k, v, g, *told, largest: int | None = 16) -> tuple[Tensor, ...]:
    out, levels = attention_forward(q, k, v, *told, largest)
    return out, *attention_backward(g, q, k, v, levels, *told, largest)


def assert_attention(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for name, x, y in zip(("output", "query", "key", "value"), found, expected, strict=True):
        torch.testing.assert_close(
            x.cpu().double(), y, rtol=0, atol=tolerance * spread(y), msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("mapping", ["sparsemax", "entmax15"])
@pytest.mark.parametrize("case", CASES)
def test_attention_is_the_plain_path(case: str, mapping: str) -> None:
    options = dict(CASES[case])
    told = (options.pop("mask", None), options.pop("bias", None), options.pop("causal", False), 1.3, mapping)
    largest = options.pop("largest", 16)
    inputs = attention_inputs(**options)
    assert_attention(fused_attention(*inputs, *told, largest=largest), plain_attention(*inputs, *told), 1e-5)


@pytest.mark.parametrize("mapping", ["sparsemax", "entmax15"])
@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=ON_GPU)], ids=str)
def test_attention_in_sixteen_bits(dtype: torch.dtype, mapping: str) -> None:
    """bfloat16 on a device only: the interpreter multiplies the bit patterns of bfloat16 matrices."""
    inputs, told = attention_inputs(dtype), (None, None, True, 0.5, mapping)
    found = fused_attention(*inputs, *told, largest=None)
    assert all(x.dtype == dtype for x in found)
    assert_attention(found, plain_attention(*inputs, *told), 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("mapping", ["sparsemax", "entmax15"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
def test_attention_at_real_sizes(mapping: str, dtype: torch.dtype, width: int, masked: bool) -> None:
    inputs = attention_inputs(dtype, H=4, L=1000, S=777, E=width, Ev=width)
    told = (boolean(1, 1, 1000, 777) if masked else None, None, not masked, width**-0.5, mapping)
    tolerance = max(8 * torch.finfo(dtype).eps, 1e-5)
    assert_attention(fused_attention(*inputs, *told, largest=None), plain_attention(*inputs, *told), tolerance)


@pytest.mark.parametrize("mapping", ["sparsemax", "entmax15"])
def test_attention_sums_to_one_far_from_zero(mapping: str) -> None:
    """Many almost equal scores near 1000: the level is kept relative to the top, else the sum would be off by 1e-3."""
    q, k = torch.ones(1, 1, 2, 1, device=DEVICE), 1000 + 1e-3 * random(1, 1, 200, 1)
    out, _ = attention_forward(q, k, torch.ones(1, 1, 200, 1, device=DEVICE), None, None, False, 1.0, mapping)
    assert (out - 1).abs().max() <= 2e-6


@pytest.mark.parametrize("mapping", ["sparsemax", "entmax15"])
def test_attention_and_nan(mapping: str) -> None:
    """A masked key may hold NaN; a query with NaN is spoilt alone; one that sees nothing gives 0 and gets 0."""
    q, k, v, g = attention_inputs()
    mask = boolean(17, 33)
    mask[:, 5] = False
    told = (mask, None, False, 1.3, mapping)
    expected = fused_attention(q, k, v, g, *told)
    k[:, :, 5], v[:, :, 5] = torch.nan, torch.nan
    found = fused_attention(q, k, v, g, *told)
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)
    assert (found[0][:, :, ::3] == 0).all()
    assert (found[1][:, :, ::3] == 0).all()
    q[:, :, 4] = torch.nan
    spoilt = fused_attention(q, k, v, g, *told)
    for x, y in zip(spoilt[:2], expected[:2], strict=True):
        assert x[:, :, 4].isnan().all()
        assert torch.equal(x[:, :, :4], y[:, :, :4])
        assert torch.equal(x[:, :, 5:], y[:, :, 5:])


def test_attention_of_nothing() -> None:
    for sizes in ({"S": 0}, {"L": 0}, {"B": 0}):
        q, k, v, g = attention_inputs(**(SHAPES | sizes))
        found = fused_attention(q, k, v, g, None, None, False, 1.0, "sparsemax")
        assert [x.shape for x in found] == [g.shape, q.shape, k.shape, v.shape]
        assert all((x == 0).all() for x in found)


COMPILE = """
import os, torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class Hopper:  # a device that can be compiled for, not run on
    get_current_device = get_current_stream = lambda self, *device: 0
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)

def compile_only(self, grid):
    def launch(*args, **options):
        kernel = JITFunction.run(self, *args, grid=grid, warmup=True, **options)
        print(self.fn.__name__, len(kernel.asm["cubin"]) > 0)
    return launch

driver.set_active(Hopper())
JITFunction.__getitem__ = compile_only
from sparselayers.ops.kernels import triton_attention as attention, triton_rows as rows
for dtype, n in ((torch.float32, 512), (torch.float32, 32000), (torch.float64, 512), (torch.bfloat16, 512)):
    v = torch.zeros(4, n, dtype=dtype)
    for signed, a in ((False, 1.0), (True, torch.ones(4))):
        out, tau = rows.project(v, a, 1.0, 1.0, signed)
        rows.project_backward(out, v, a, 1.0, tau, signed)
    rows.entmax15_backward(rows.entmax15(v), v)
    if dtype != torch.bfloat16:
        rows.level(v, v, 1.0, 0.0, tau.to(dtype))
for dtype, mapping, mask, bias, causal in (
    (torch.bfloat16, "sparsemax", None, None, True),
    (torch.float16, "entmax15", torch.ones(1, 1, 1, 100, dtype=torch.bool), torch.zeros(100, 100).half(), False),
    (torch.float32, "sparsemax", None, None, False),
):
    q, k = (torch.zeros(1, heads, 100, 64, dtype=dtype) for heads in (4, 2))
    out, levels = attention.attention_forward(q, k, k, mask, bias, causal, 1.0, mapping)
    attention.attention_backward(out, q, k, k, levels, mask, bias, causal, 1.0, mapping)
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper(tmp_path) -> None:
    """The compiler's types are stricter than the interpreter's, and it needs no device."""
    environment = {"TRITON_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path), "PATH": ""}
    command = [sys.executable, "-W", "error", "-c", COMPILE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    compiled = done.stdout.split("\n")[:-1]
    assert len(compiled) == 4 * 6 + 3 + 3 * 5
    assert all(line.endswith(" True") for line in compiled)


@pytest.mark.skipif(GPU, reason="a CUDA tensor is dispatched without help")
@pytest.mark.parametrize("mapping", ["sparsemax", "entmax15"])
def test_attention_is_dispatched_to_the_fused_kernel(mapping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any leading axes, shared and grouped heads, masks: the same as the plain path, which sees repeated heads."""
    q, k, v = random(2, 4, 5, 3, seed=0), random(2, 2, 7, 3, seed=1), random(2, 2, 7, 2, seed=2)
    calls = {
        "grouped": (lambda x: x, {"enable_gqa": True, "is_causal": True}),
        "three axes, grouped": (lambda x: x[0], {"enable_gqa": True, "attn_mask": boolean(4, 5, 7)}),
        "two axes": (lambda x: x[0, 0], {"attn_mask": boolean(1, 7)}),
        "five axes": (lambda x: x[:, None, :2], {"attn_mask": boolean(2, 1, 1, 1, 7), "scale": 0.5}),
        "shared keys": (lambda x: x if x.shape[1] == 4 else x[:1, :1], {"attn_mask": floating(5, 8)[:, 1:]}),
        "one axis of queries less": (lambda x: x[0, 0] if x.shape[1] == 4 else x[0], {}),
    }
    for name, (cut, options) in calls.items():
        inputs = [cut(x).clone().requires_grad_() for x in (q, k, v)]
        with sl.kernels(False):
            expected = F.scaled_dot_product_attention(*inputs, mapping=mapping, **options)
        pull = torch.linspace(-1, 1, expected.numel()).view(expected.shape)
        grads = torch.autograd.grad(expected, inputs, pull)
        with monkeypatch.context() as patch:
            patch.setattr("sparselayers.attention.fused.serve", lambda x: "triton")
            found = F.scaled_dot_product_attention(*inputs, mapping=mapping, **options)
            assert "_Fused" in str(found.grad_fn) or "Fused" in str(found.grad_fn.next_functions), name
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            for ours, theirs in zip(torch.autograd.grad(found, inputs, pull), grads, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(GPU, reason="a CUDA tensor is dispatched without help")
def test_a_second_derivative_of_fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [random(1, heads, 4, 3, seed=s).requires_grad_() for s, heads in enumerate((4, 2, 2))]

    def second() -> list[Tensor]:
        out = F.scaled_dot_product_attention(*inputs, enable_gqa=True)
        first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        return list(torch.autograd.grad(sum(x.square().sum() for x in first), inputs))

    with sl.kernels(False):
        expected = second()
    monkeypatch.setattr("sparselayers.attention.fused.serve", lambda x: "triton")
    for ours, theirs in zip(second(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_what_the_fused_kernel_leaves_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparselayers.attention.fused.serve", lambda x: "triton")
    q = torch.zeros(2, 3, 4)
    assert fused.serves(q, q, q, None, 0.0, "sparsemax")
    assert not fused.serves(q, q, q, None, 0.1, "sparsemax")
    assert not fused.serves(q, q, q, None, 0.0, "softmax")
    assert not fused.serves(q.double(), q, q, None, 0.0, "entmax15")
    assert not fused.serves(q, q, torch.zeros(2, 3, 257), None, 0.0, "entmax15")
    assert not fused.serves(q, q[:, :0], q[:, :0], None, 0.0, "entmax15")
    assert not fused.serves(q, q, q, torch.zeros(3, 3, requires_grad=True), 0.0, "entmax15")
    assert not fused.serves(q, q, q, torch.zeros(5, 2, 3, 3), 0.0, "entmax15")
