"""Sparse attention in the flash manner, in Triton for CUDA: scores are made in tiles and never held.

Two kernels forward: one finds each query's level, by Newton passes over the keys, and notes which tiles hold weights;
one sums the values, over these tiles alone. Imported only where there is a CUDA device or Triton's interpreter.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton  # noqa: TID253 - kernels are decorated at import; this module is itself imported lazily
import triton.language as tl  # noqa: TID253 - as above
from torch import Tensor

from .triton_attention_backward import attention_backward
from .triton_scores import above, place, plan, product, put, scores, tile, used_rows

__all__ = ["attention_backward", "attention_forward"]

ROUNDING = 4 * torch.finfo(torch.float32).eps


@triton.jit
def _sums(y, SQUARE: tl.constexpr):
    """sum y, and what its Newton step needs besides: sum y² for entmax-1.5, else the size of the support."""
    return tl.sum(y, axis=1), tl.sum(y * y if SQUARE else (y > 0).to(tl.float32), axis=1)


@triton.jit
def _rise(tau, live, size, area, second, ROUNDING: tl.constexpr, SQUARE: tl.constexpr):
    """A Newton step from below, and the rows that need another one: those whose support has shrunk, or for entmax-1.5
    those that moved by more than rounding. A row that needs none stays where it is, whatever the others do."""
    if SQUARE:
        step = tl.where(area > 0, second - tl.sqrt(second), 0.0) / tl.where(area > 0, area, 1.0)
        again = step > ROUNDING
    else:
        step = tl.where(second > 0, area - 1.0, 0.0) / tl.maximum(second, 1.0)
        again = second < size
    return tau + tl.where(live, step, 0.0), live & again, second


@triton.jit
def _threshold_kernel(
    q, k, top_out, tau_out, busy, q_steps, k_steps, how, H, L, S, group,
    E: tl.constexpr, PADDED_E: tl.constexpr, EV: tl.constexpr, PADDED_EV: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, SQUARE: tl.constexpr, GUARDED: tl.constexpr, ROUNDING: tl.constexpr,
):  # fmt: skip
    block, pair, batch, head = place(L, H, M)
    q += batch * q_steps[0] + head * q_steps[1]
    k += batch * k_steps[0] + head // group * k_steps[1]
    busy += (pair * tl.cdiv(L, M) + block) * tl.cdiv(S, N)
    row = block * M + tl.arange(0, M)
    lane = tl.arange(0, N)
    queries = tile(q, q_steps, row, L, E, PADDED_E)
    end = S
    if CAUSAL:
        end = tl.minimum(S, (block + 1) * M)
    # The largest score of every lane: a part of the row, so its level lies below the row's, and close to it.
    folded = tl.full((M, N), float("-inf"), tl.float32)
    for start in range(0, end, N):
        col = start + lane
        keys = tile(k, k_steps, col, S, E, PADDED_E)
        s = scores(queries, keys, row, col, L, S, batch, head, how, CAUSAL)
        folded = tl.maximum(folded, s)
    top = tl.max(folded, axis=1)
    spoilt = top == float("inf")
    top = tl.where(top == float("-inf"), float("inf"), top)  # above which nothing stands

    tau = tl.full((M,), -1.0, tl.float32)  # where the largest score alone has weight 1
    size = tl.full((M,), float("inf"), tl.float32)
    live = row < L
    moving = 1
    while moving > 0:
        area, second = _sums(above(folded, top, tau, SQUARE), SQUARE)
        tau, live, size = _rise(tau, live, size, area, second, ROUNDING, SQUARE)
        moving = tl.max(live.to(tl.int32))

    size = tl.full((M,), float("inf"), tl.float32)
    live = row < L
    moving = 1
    while moving > 0:
        area = tl.zeros((M,), tl.float32)
        second = tl.zeros((M,), tl.float32)
        for start in range(0, end, N):
            col = start + lane
            keys = tile(k, k_steps, col, S, E, PADDED_E)
            s = scores(queries, keys, row, col, L, S, batch, head, how, CAUSAL)
            here, there = _sums(above(s, top, tau, SQUARE), SQUARE)
            area += here
            second += there
            # Written in every pass, read by other kernels only: the last pass stands on the final support.
            tl.store(busy + start // N, (tl.max(here) > 0).to(tl.int8))
        tau, live, size = _rise(tau, live, size, area, second, ROUNDING, SQUARE)
        moving = tl.max(live.to(tl.int32))
    tl.store(top_out + pair * L + row, tl.where(spoilt, float("nan"), top), mask=row < L)
    tl.store(tau_out + pair * L + row, tau, mask=row < L)


@triton.jit
def _output_kernel(
    q, k, v, top_in, tau_in, busy, out, q_steps, k_steps, v_steps, out_steps, how, H, L, S, group,
    E: tl.constexpr, PADDED_E: tl.constexpr, EV: tl.constexpr, PADDED_EV: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, SQUARE: tl.constexpr, GUARDED: tl.constexpr,
):  # fmt: skip
    block, pair, batch, head = place(L, H, M)
    q += batch * q_steps[0] + head * q_steps[1]
    k += batch * k_steps[0] + head // group * k_steps[1]
    v += batch * v_steps[0] + head // group * v_steps[1]
    out += batch * out_steps[0] + head * out_steps[1]
    busy += (pair * tl.cdiv(L, M) + block) * tl.cdiv(S, N)
    row = block * M + tl.arange(0, M)
    queries = tile(q, q_steps, row, L, E, PADDED_E)
    top = tl.load(top_in + pair * L + row, mask=row < L, other=float("inf"))
    tau = tl.load(tau_in + pair * L + row, mask=row < L, other=0.0)
    end = S
    if CAUSAL:
        end = tl.minimum(S, (block + 1) * M)
    total = tl.zeros((M, PADDED_EV), tl.float32)
    for start in range(0, end, N):
        if tl.load(busy + start // N) != 0:
            col = start + tl.arange(0, N)
            keys = tile(k, k_steps, col, S, E, PADDED_E)
            s = scores(queries, keys, row, col, L, S, batch, head, how, CAUSAL)
            p = above(s, top, tau, SQUARE)
            if SQUARE:
                p = p * p
            values = used_rows(tile(v, v_steps, col, S, EV, PADDED_EV), p, GUARDED)
            total += product(p.to(values.dtype), values)
    total = tl.where((top == top)[:, None], total, float("nan"))
    put(out, out_steps, total, row, L, EV, PADDED_EV)


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    is_causal: bool,
    scale: float,
    mapping: Literal["sparsemax", "entmax15"],
    largest: int | None = None,
) -> tuple[Tensor, Tensor]:
    """mapping(scale q k^T + bias) v, and what the backward needs of the levels: each row's top and the level below it.

    The level is kept relative to the top: rounded as one number, a level of 10 under 1000 equal scores would move the
    sum of their weights by 5e-4.

    Args:
        q: (B, H, L, E), any strides, float16, bfloat16 or float32; E and Ev up to 256.
        k: (B, Hkv, S, E), H a multiple of Hkv: head h reads h // (H / Hkv).
        v: (B, Hkv, S, Ev).
        mask: boolean, broadcasts to (B, H, L, S), True = may attend.
        bias: floating, broadcasts likewise, added to the scores; half of finfo.min and below count as masked.
        is_causal: query i sees keys 0..i; masks, bias and this all apply.
        scale: factor of the scores.
        mapping: "sparsemax" or "entmax15".
        largest: the largest tile, a power of two from 16 on; None chooses.

    Returns: out (B, H, L, Ev) in q's dtype, and the levels (2, B, H, L) in float32. A query that may attend to nothing
        gives 0; one with NaN or +inf among its scores gives NaN.
    """
    (B, H, L, _), S = q.shape, k.shape[2]
    out = q.new_zeros((B, H, L, v.shape[3]))
    levels = torch.full((2, B, H, L), torch.inf, dtype=torch.float32, device=q.device)
    if out.numel() == 0 or S == 0:
        return out, levels
    told = plan(q, k, v, mask, bias, is_causal, scale, mapping, largest)
    rows = triton.cdiv(L, told["M"])
    busy = torch.zeros((B, H, rows, triton.cdiv(S, told["N"])), dtype=torch.int8, device=q.device)
    with torch.cuda.device_of(q):
        _threshold_kernel[rows * B * H,](
            q, k, levels[0], levels[1], busy, q.stride(), k.stride(), ROUNDING=ROUNDING, **told
        )
        _output_kernel[rows * B * H,](
            q, k, v, levels[0], levels[1], busy, out, q.stride(), k.stride(), v.stride(), out.stride(), **told
        )
    return out, levels
